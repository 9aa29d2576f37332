// One cell per head (or neuron): its colour is its score, a cross says that it goes.

const MAX_CELL_WIDTH = 64;

const boxOf = (from, to) => [
  Math.min(from.layer, to.layer), Math.min(from.unit, to.unit),
  Math.max(from.layer, to.layer), Math.max(from.unit, to.unit),
];

function formatScore(score) {
  if (!Number.isFinite(score)) return String(score);
  const size = Math.abs(score);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return score.toExponential(2);
  return String(Number(score.toPrecision(3)));
}

class HeatGrid extends LayerView {
  constructor(root) {
    super(root);
    this.unit = 0; // with `layer`: the cell that the keyboard is on
    this.anchor = null; // the cell and the state of the last edit: shift+click extends it
    this.selection = null; // where Shift+arrows began
  }

  read(data) {
    this.columns = data.width;
    this.scores = unpack(data.scores, Float32Array);
    this.shade = unpack(data.shade, Uint8Array);
    this.exists = unpack(data.exists, Uint8Array);
    this.removed = unpack(data.removed, Uint8Array);
    this.kv = data.kv_groups && unpack(data.kv_groups, Int16Array);
    // With one query head to a KV head a group is a cell, and needs no mark of its own.
    const sharesWithLeft = (_, i) => i % this.columns > 0 && this.sharesKv(i - 1, i);
    this.grouped = this.kv !== null && this.kv.some(sharesWithLeft);
    this.unit = clamp(this.unit, 0, this.columns - 1);
    const fits = (cell) => cell !== null && cell.layer < data.layers && cell.unit < data.width;
    if (!fits(this.anchor)) this.anchor = null;
    if (!fits(this.selection)) this.selection = null;
    this.canvas.classList.toggle('editable', data.editable);
    this.root.querySelector('.low').textContent = data.lo_text;
    this.root.querySelector('.high').textContent = data.hi_text;
    this.root.querySelector('.freed').hidden = !this.grouped;
    this.paintLegend();
  }

  hints(data) {
    return data.editable ? ['click or drag to remove and restore', 'shift+click extends'] : [];
  }

  sharesKv(i, j) {
    return this.exists[i] === 1 && this.exists[j] === 1 && this.kv[i] >= 0 && this.kv[i] === this.kv[j];
  }

  apply(gesture) {
    super.apply(gesture);
    if (gesture.kind !== 'edit') return;
    this.editable(gesture.box).forEach((i) => {
      this.removed[i] = gesture.removed ? 1 : 0;
    });
  }

  // The cells of a box that an edit changes: those that exist, in layers that are not locked.
  editable([layer0, unit0, layer1, unit1]) {
    const cells = [];
    for (let layer = layer0; layer <= layer1; layer += 1) {
      if (this.locked.has(layer)) continue;
      for (let unit = unit0; unit <= unit1; unit += 1) {
        const i = layer * this.columns + unit;
        if (this.exists[i]) cells.push(i);
      }
    }
    return cells;
  }

  edit(from, to, removed) {
    const box = boxOf(from, to);
    if (this.editable(box).length === 0) return null;
    this.anchor = { ...from, removed };
    return { kind: 'edit', box, removed };
  }

  // ---- pointer

  cellAt({ layer, x }) {
    return { layer, unit: clamp(Math.floor(x / this.cellWidth), 0, this.columns - 1) };
  }

  isRemoved({ layer, unit }) {
    return this.removed[layer * this.columns + unit] === 1;
  }

  startDrag(place, event) {
    const cell = this.cellAt(place);
    this.unit = cell.unit;
    this.selection = null;
    if (!this.data.editable) return;
    const extend = event.shiftKey && this.anchor !== null;
    const from = extend ? this.anchor : cell;
    this.drag = { from, to: cell, removed: extend ? this.anchor.removed : !this.isRemoved(cell) };
  }

  moveDrag(place) {
    this.drag.to = this.cellAt(place);
  }

  dragGesture() {
    const { from, to, removed } = this.drag;
    Object.assign(this, to);
    return this.edit({ layer: from.layer, unit: from.unit }, to, removed);
  }

  bodyCursor({ layer }) {
    if (!this.data.editable) return 'default';
    return this.locked.has(layer) && !this.drag ? 'not-allowed' : 'crosshair';
  }

  tipX(place) {
    return this.left + (this.cellAt(place).unit + 1) * this.cellWidth + 6;
  }

  // ---- keyboard

  key(key, shift) {
    const { layer, unit } = this;
    const moves = {
      ArrowUp: [layer - 1, unit],
      ArrowDown: [layer + 1, unit],
      ArrowLeft: [layer, unit - 1],
      ArrowRight: [layer, unit + 1],
      Home: [layer, 0],
      End: [layer, this.exists.lastIndexOf(1, (layer + 1) * this.columns - 1) - layer * this.columns],
    };
    if (key in moves) this.moveTo(...moves[key], shift);
    else if (key === ' ' || key === 'Enter') this.applySelection();
    else if (key === 'Escape' && this.selection) this.selection = null;
    else return false;
    this.draw();
    this.showTip(this.describe(), this.tipX({ layer, x: this.unit * this.cellWidth }), this.layer);
    return true;
  }

  moveTo(layer, unit, shift) {
    if (!shift) this.selection = null;
    else if (this.data.editable) this.selection ??= { layer: this.layer, unit: this.unit };
    this.hover = null;
    this.layer = clamp(layer, 0, this.layers - 1);
    this.unit = clamp(unit, 0, this.columns - 1);
  }

  applySelection() {
    if (!this.data.editable) return;
    const to = { layer: this.layer, unit: this.unit };
    const from = this.selection ?? to;
    const gesture = this.edit(from, to, !this.isRemoved(from));
    this.selection = null;
    if (gesture) this.emit(gesture);
  }

  // ---- words

  // Rows are layers, or else stretches of one layer, named by the first unit.
  rowName(layer) {
    return this.data.only_layer === null ? layer : layer * this.columns;
  }

  describe(place) {
    if (this.drag) return this.describeBox(boxOf(this.drag.from, this.drag.to), this.drag.removed);
    const { layer, unit } = place ? this.cellAt(place) : this;
    if (this.selection) {
      return this.describeBox(boxOf(this.selection, this), !this.isRemoved(this.selection));
    }
    const i = layer * this.columns + unit;
    const only = this.data.only_layer;
    const row = `layer ${only ?? layer}`;
    const name = `${this.data.unit} ${only === null ? unit : i}`;
    if (!this.exists[i]) return `${row} · no ${name}`;
    const words = [row, name];
    if (this.kv && this.kv[i] >= 0) words.push(`KV ${this.kv[i]}`);
    words.push(formatScore(this.scores[i]));
    if (this.removed[i]) words.push('removed');
    if (this.grouped && this.freedGroups(layer).has(this.kv[i])) words.push('KV freed');
    if (this.locked.has(layer)) words.push('locked');
    return words.join(' · ');
  }

  describeBox(box, removed) {
    const cells = this.editable(box);
    if (cells.length === 0) return `nothing to ${removed ? 'remove' : 'restore'} here`;
    const count = cells.filter((i) => (this.removed[i] === 1) !== removed).length;
    return `${removed ? 'remove' : 'restore'} ${count} ${this.data.unit}${count === 1 ? '' : 's'}`;
  }

  // ---- drawing

  measure(available) {
    this.left = 44;
    this.top = 20;
    const fitting = Math.min(MAX_CELL_WIDTH, (available - this.left - 32) / this.columns);
    // Whole device pixels, so that all cells are equally wide; narrow ones may differ to use the room.
    this.cellWidth = fitting > 12 ? Math.floor(fitting / this.pixel) * this.pixel : fitting;
    this.rowHeight = Math.round(clamp(600 / this.layers, 9, 20));
    this.bodyWidth = this.columns * this.cellWidth;
    this.lockX = this.left + this.bodyWidth + 6;
    this.width = Math.ceil(this.lockX + 26);
    this.height = this.top + this.layers * this.rowHeight + 2;
  }

  paint() {
    this.paintColumnNumbers();
    const dragged = this.drag && boxOf(this.drag.from, this.drag.to);
    const shown = this.removed.slice();
    if (dragged) this.editable(dragged).forEach((i) => { shown[i] = this.drag.removed ? 1 : 0; });
    for (let layer = 0; layer < this.layers; layer += 1) this.paintLayer(layer, shown);
    if (dragged) this.outline(dragged, this.theme.primary);
    else if (this.selection) this.outline(boxOf(this.selection, this), this.theme.primary);
    if (this.focused && !this.drag) this.outline(boxOf(this, this), this.theme.text);
  }

  paintColumnNumbers() {
    const { context, theme, left } = this;
    const step = labelStep(this.cellWidth, 24);
    context.font = theme.font;
    context.fillStyle = theme.text;
    context.globalAlpha = 0.7;
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    const whole = this.data.only_layer === null;
    context.fillText(whole ? 'layer' : this.data.unit, left - 10, 8);
    context.textAlign = 'center';
    for (let unit = 0; unit < this.columns; unit += step) {
      const first = unit === 0 && this.cellWidth > 48 ? `${this.data.unit} 0` : unit;
      const name = whole ? first : `+${unit}`;
      context.fillText(name, left + (unit + 0.5) * this.cellWidth, 8);
    }
    context.globalAlpha = 1;
  }

  paintLayer(layer, shown) {
    const freed = this.grouped ? this.freedGroups(layer, shown) : new Set();
    let start = 0;
    for (let unit = 0; unit < this.columns; unit += 1) {
      const i = layer * this.columns + unit;
      if (!this.exists[i]) continue;
      const group = this.grouped ? this.kv[i] : null;
      this.paintCell(layer, unit, shown[i] === 1, freed.has(group));
      if (!this.joined(layer, unit - 1)) start = unit;
      if (freed.has(group) && !this.joined(layer, unit)) this.paintFreed(layer, start, unit);
    }
  }

  // Whether a cell and the one at its right share a KV head.
  joined(layer, unit) {
    if (!this.grouped || unit < 0 || unit + 1 >= this.columns) return false;
    const i = layer * this.columns + unit;
    return this.sharesKv(i, i + 1);
  }

  // The KV heads of a layer that have lost all their query heads, and go with them.
  freedGroups(layer, removed = this.removed) {
    const freed = new Set();
    const kept = new Set();
    for (let i = layer * this.columns; i < (layer + 1) * this.columns; i += 1) {
      if (this.exists[i] && this.kv[i] >= 0) (removed[i] ? freed : kept).add(this.kv[i]);
    }
    kept.forEach((head) => freed.delete(head));
    return freed;
  }

  // Between the cells of one KV group there is a hairline at most; between groups there is a gap.
  cellEdges(layer, unit) {
    const gap = this.grouped ? clamp(this.cellWidth * 0.1, 1, 2.5) : 0.5;
    const hairline = this.cellWidth > 12 ? this.pixel : 0;
    const x = this.left + unit * this.cellWidth;
    const left = this.joined(layer, unit - 1) ? this.snap(x) + hairline : this.snap(x + gap);
    const right = this.snap(x + this.cellWidth - (this.joined(layer, unit) ? 0 : gap));
    return [left, right];
  }

  paintCell(layer, unit, removed, freed) {
    const { context, rowHeight } = this;
    const [left, right] = this.cellEdges(layer, unit);
    const y = this.rowTop(layer);
    context.globalAlpha = removed ? 0.22 : 1;
    context.fillStyle = COLOURS[this.shade[layer * this.columns + unit]];
    context.fillRect(left, y, right - left, rowHeight - 1);
    context.globalAlpha = 1;
    if (!removed || freed) return;
    const arm = Math.min(right - left, rowHeight) * 0.26;
    drawCross(context, (left + right) / 2, y + (rowHeight - 1) / 2, arm);
  }

  paintFreed(layer, first, last) {
    const left = this.cellEdges(layer, first)[0];
    const right = this.cellEdges(layer, last)[1];
    drawHatched(this.context, left, this.rowTop(layer), right - left, this.rowHeight - 1);
  }

  outline([layer0, unit0, layer1, unit1], colour) {
    const { context } = this;
    const [left, right] = [this.left + unit0 * this.cellWidth, this.left + (unit1 + 1) * this.cellWidth];
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.strokeRect(left, this.rowTop(layer0) - 0.5, right - left, (layer1 - layer0 + 1) * this.rowHeight);
  }

  paintLegend() {
    for (const canvas of this.root.querySelectorAll('.legend canvas')) {
      const context = sharpen(canvas, 20, 13);
      context.globalAlpha = 0.3;
      context.fillStyle = COLOURS[128];
      context.fillRect(0, 0, 20, 13);
      context.globalAlpha = 1;
      if (canvas.className === 'cross') drawCross(context, 10, 6.5, 3.4);
      else drawHatched(context, 0, 0, 20, 13);
    }
  }
}

function drawCross(context, x, y, arm) {
  context.strokeStyle = RED;
  context.lineWidth = arm > 3 ? 1.75 : 1.25;
  context.beginPath();
  context.moveTo(x - arm, y - arm);
  context.lineTo(x + arm, y + arm);
  context.moveTo(x + arm, y - arm);
  context.lineTo(x - arm, y + arm);
  context.stroke();
}

function drawHatched(context, x, y, width, height) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = RED;
  context.lineWidth = 1;
  context.globalAlpha = 0.6;
  context.beginPath();
  for (let at = x - height; at < x + width; at += 6) {
    context.moveTo(at, y + height);
    context.lineTo(at + height, y);
  }
  context.stroke();
  context.restore();
  context.strokeStyle = RED;
  context.lineWidth = 1.5;
  context.strokeRect(x + 0.75, y + 0.75, width - 1.5, height - 1.5);
}

export default (component) => mount(HeatGrid, component);
