"""The four ways to edit a plan by hand:

the head grid, ratio strips for heads and for neurons, and one layer's neurons.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import streamlit as st

from amp_explore.budgets.allocation import rank
from amp_explore.criteria.scores import Scores
from amp_explore.plan import PruningPlan, Unit
from amp_explore.surgery.costs import removed_parameters
from amp_explore.ui.charts import as_grid, shade
from amp_explore.ui.heatgrid import heatgrid
from amp_explore.ui.rank_strips import Strips, bin_ranks, rank_strips
from amp_explore.ui.session import Session

NEURONS_PER_ROW = 64


def head_grid(state: Session, scores: Scores) -> None:
    """Every head of the model; click, drag, shift or keys take it out and put it back."""
    plan = state.plan
    grid = as_grid(scores.heads)
    shaded, low, high = shade(grid, _scale())
    kv = as_grid([np.array(layer.kv_of_head) for layer in plan.shape.layers])
    heatgrid(
        grid,
        np.nan_to_num(as_grid(plan.heads)).astype(bool),
        key=f"head-grid-{state.fingerprint}",
        label="Heads, layer by layer, coloured by score",
        shade=shaded,
        kv_groups=np.nan_to_num(kv, nan=-1).astype(int),
        locked=state.locked_layers,
        on_edit=lambda box, removed: state.edit(state.plan.with_box("heads", box, removed).described(by="hand")),
        on_open=_open_layer,
        on_lock=state.toggle_lock,
        lo_text=low,
        hi_text=high,
    )


def head_strips(state: Session, scores: Scores) -> None:
    """The ratio of heads, layer by layer."""
    _strips(state, scores, "heads")


def neuron_strips(state: Session, scores: Scores) -> None:
    """The ratio of neurons, layer by layer."""
    _strips(state, scores, "neurons")


def layer_neurons(state: Session, scores: Scores) -> None:
    """Every neuron of one layer, in rows of 64, each cell editable."""
    plan, last = state.plan, len(state.plan.shape.layers) - 1
    st.session_state["layer"] = min(st.session_state.get("layer", 0), last)
    layer = st.slider("Layer", 0, last, key="layer", persist_state="session")
    values = scores.neurons[layer]
    rows = -(-len(values) // NEURONS_PER_ROW)
    grid = np.full(rows * NEURONS_PER_ROW, np.nan)
    grid[: len(values)] = values
    removed = np.zeros(grid.shape, bool)
    removed[: len(values)] = plan.neurons[layer]
    grid, removed = grid.reshape(rows, -1), removed.reshape(rows, -1)
    shaded, low, high = shade(grid, "log")

    def edit(box: tuple[int, int, int, int], gone: bool) -> None:
        row0, column0, row1, column1 = box
        picked = [
            row * NEURONS_PER_ROW + column for row in range(row0, row1 + 1) for column in range(column0, column1 + 1)
        ]
        state.edit(
            state.plan.with_units("neurons", layer, [i for i in picked if i < len(values)], gone).described(by="hand")
        )

    heatgrid(
        grid,
        removed,
        key=f"neuron-grid-{state.fingerprint}-{layer}",
        label=f"Neurons of layer {layer}, in rows of {NEURONS_PER_ROW}, coloured by score",
        shade=shaded,
        unit="neuron",
        only_layer=layer,
        on_edit=edit,
        editable=layer not in state.locked_layers,
        lo_text=low,
        hi_text=high,
    )
    st.caption(f"{int(plan.neurons[layer].sum()):,} of {len(values):,} neurons of layer {layer} removed")


VIEWS: dict[str, Callable[[Session, Scores], None]] = {
    "Heads": head_grid,
    "Head ratios": head_strips,
    "Neuron ratios": neuron_strips,
    "Neurons of a layer": layer_neurons,
}


def _strips(state: Session, scores: Scores, unit: Unit) -> None:
    plan, layers = state.plan, state.plan.shape.layers
    ranking = rank(plan.shape, scores, st.session_state.get("order", "standard"))
    order, values = getattr(ranking, unit), getattr(scores, unit)
    is_heads = unit == "heads"
    widths = plan.shape.heads if is_heads else plan.shape.neurons
    binned, gone = bin_ranks(values, getattr(plan, unit), order, bins=max(widths) if is_heads else 96)
    strips = Strips(
        unit="head" if is_heads else "neuron",
        binned=binned,
        gone=gone,
        counts=plan.removed_per_layer(unit),
        widths=widths,
        unit_parameters=[layer.head_parameters if is_heads else layer.neuron_parameters for layer in layers],
        kv_parameters=[layer.kv_parameters for layer in layers] if is_heads else (),
        kv_of_rank=[np.array(layer.kv_of_head)[order[n]] for n, layer in enumerate(layers)] if is_heads else (),
        total_parameters=plan.shape.parameters,
        other_removed=_removed_otherwise(plan, unit),
        locked=state.locked_layers,
    )

    def cut(counts: dict[int, int]) -> None:
        edited = state.plan
        for layer, count in counts.items():
            chosen = ranking.take(unit, layer, count)
            edited = edited.with_units(unit, layer, ~chosen, False).with_units(unit, layer, chosen, True)
        state.edit(edited.described(by="hand"))

    rank_strips(
        strips,
        key=f"{unit}-strips-{state.fingerprint}",
        label=f"Share of {unit} removed in each layer",
        on_cut=cut,
        on_open=_open_layer,
        on_lock=state.toggle_lock,
    )


def _removed_otherwise(plan: PruningPlan, unit: Unit) -> int:
    """Parameters removed by the other kind of unit."""
    heads_alone = PruningPlan(plan.shape, plan.heads, PruningPlan.empty(plan.shape).neurons)
    by_heads = removed_parameters(heads_alone)
    return removed_parameters(plan) - by_heads if unit == "heads" else by_heads


def _open_layer(layer: int) -> None:
    st.session_state.layer = layer
    st.session_state.view = "Neurons of a layer"


def _scale() -> str:
    return st.session_state.get("scale", "log")
