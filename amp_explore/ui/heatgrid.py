"""A heatmap with one cell per head (or neuron) that is edited with the pointer and the keyboard.

Click toggles a cell, drag paints a box, shift+click extends the last edit, arrows move, Shift+arrows select,
Space or Enter applies, Escape cancels. Edits show at once, before Python has answered; see
`amp_explore.ui.canvas` for how they arrive. Cells that share a KV head stand together, and a group that is
gone as a whole is hatched: only then is the memory of its keys and values freed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from amp_explore.ui.canvas import draw, is_index, layer_handler, pack, register

Box = tuple[int, int, int, int]
"""``(layer0, unit0, layer1, unit1)``, both ends included."""

_HTML = """
<div class="view">
  <div class="stage">
    <canvas tabindex="0" role="application" aria-roledescription="heatmap"
      aria-description="Arrows move, with Shift select. Space removes or restores. O opens, L locks.">
    </canvas>
    <div class="tip" role="status" aria-live="polite"></div>
  </div>
  <div class="legend">
    <span><span class="low"></span><span class="scale" role="img" aria-label="colour scale"></span>
      <span class="high"></span></span>
    <span><canvas class="cross"></canvas>removed</span>
    <span class="freed"><canvas class="hatch"></canvas>whole KV group removed: its KV head goes too</span>
    <span class="hint"></span>
  </div>
</div>
"""
_component = register("heatgrid", _HTML)


def heatgrid(
    scores: np.ndarray,
    removed: np.ndarray,
    *,
    key: str,
    label: str,
    shade: np.ndarray,
    on_edit: Callable[[Box, bool], None] | None = None,
    on_open: Callable[[int], None] | None = None,
    on_lock: Callable[[int], None] | None = None,
    kv_groups: np.ndarray | None = None,
    locked: Collection[int] = (),
    unit: str = "head",
    only_layer: int | None = None,
    editable: bool = True,
    lo_text: str = "low",
    hi_text: str = "high",
) -> None:
    """Draw ``scores`` and report what a person does to them.

    ``scores`` (layers, width) float is what the tip shows; NaN: the layer has no such unit, nothing is drawn.
    ``shade`` (layers, width) from 0 to 1 is where a cell's colour lies on the scale, whose ends are named
    ``lo_text`` and ``hi_text``. ``removed`` (layers, width) bool. ``kv_groups`` (layers, width) int is the KV
    head of a cell, -1 for none. ``label`` tells what is shown to those who cannot see it.

    ``on_edit(box, removed)`` is called once per gesture, in order (twice where a rerun cut it short). The box
    may cover layers in ``locked`` and cells that do not exist: they were not drawn as edited, and whoever
    applies the edit leaves them out. ``on_open(layer)``: the layer's number was clicked, or O pressed.
    ``on_lock(layer)``: its padlock was clicked, or L pressed; without ``editable`` neither does anything.

    With ``only_layer`` the grid shows the units of that one layer, wrapped into rows of equal width: tips and
    labels say so, "layer" above then means a row, and there is nothing to open or lock.

    Raises ValueError where the arrays differ in shape.
    """
    layers, width = scores.shape
    for name, array in (("removed", removed), ("shade", shade), ("kv_groups", kv_groups)):
        if array is not None and array.shape != scores.shape:
            raise ValueError(f"{name} has shape {array.shape}, the scores have {scores.shape}.")

    def edit(gesture: Mapping[str, Any]) -> None:
        box, wanted = read_box(gesture.get("box"), layers, width), gesture.get("removed")
        if box is not None and isinstance(wanted, bool):
            on_edit(box, wanted)

    can_edit = editable and on_edit is not None
    can_open = on_open is not None and only_layer is None
    can_lock = editable and on_lock is not None and only_layer is None
    handlers = {
        "edit": edit if can_edit else None,
        "open": layer_handler(on_open, layers) if can_open else None,
        "lock": layer_handler(on_lock, layers) if can_lock else None,
    }
    exists = ~np.isnan(scores)
    draw(
        _component,
        key=key,
        handlers=handlers,
        data={
            "label": label,
            "layers": layers,
            "width": width,
            "unit": unit,
            "only_layer": only_layer,
            "scores": pack(scores, "<f4"),
            "shade": pack(np.clip(np.nan_to_num(shade), 0, 1) * 255 + 0.5, "u1"),
            "exists": pack(exists, "u1"),
            "removed": pack(np.asarray(removed, bool) & exists, "u1"),
            "kv_groups": None if kv_groups is None else pack(kv_groups, "<i2"),
            "locked": sorted(int(layer) for layer in locked),
            "editable": can_edit,
            "opens": can_open,
            "locks": can_lock,
            "lo_text": lo_text,
            "hi_text": hi_text,
        },
    )


def read_box(value: object, layers: int, width: int) -> Box | None:
    """The box that the browser sent, or None where it is not one inside ``layers`` x ``width``."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    layer0, unit0, layer1, unit1 = value
    if not (is_index(layer1, layers) and is_index(unit1, width)):
        return None
    if not (is_index(layer0, layer1 + 1) and is_index(unit0, unit1 + 1)):
        return None
    return layer0, unit0, layer1, unit1
