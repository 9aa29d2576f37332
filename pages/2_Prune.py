"""Prune: decide by ratio, by curve or by hand what goes, and see at once what that does."""

import streamlit as st

from amp_explore.allocation import allocate, allocate_by_unit, random_like, rank, ratio_of_layers
from amp_explore.criteria import CRITERIA
from amp_explore.errors import AmpExploreError
from amp_explore.ui import editors
from amp_explore.ui.live import live_panel
from amp_explore.ui.shell import open_page, scores_or_wait, scoring_options

state = open_page("Prune")
shape = state.loaded.shape
with st.expander("Criterion and calibration", icon=":material/tune:"):
    calibration, criterion = scoring_options(st.container())
    st.caption(f"{CRITERIA[criterion].formula} · {CRITERIA[criterion].source}")
scores = scores_or_wait(state, calibration, criterion)
if scores is None:
    st.stop()


def plan_by_ratio(ratio: float, order: str, seed: int = 0) -> None:
    """Put AMP's uniform allocation at this ratio in place of the plan; locked layers stay."""
    try:
        plan = allocate(rank(shape, scores, order, seed), ratio, locked=state.locked_layers, current=state.plan)
    except AmpExploreError as error:
        state.notice(error)
        return
    state.edit(plan.described(criterion=criterion, allocation="uniform", order=order, ratio=ratio, seed=seed))


def plan_by_units(heads: float, neurons: float, order: str) -> None:
    """The same share of heads, and of neurons, from every layer that is not locked."""
    plan = allocate_by_unit(rank(shape, scores, order), heads, neurons)
    state.edit(plan.described(criterion=criterion, order=order, heads_ratio=heads, neurons_ratio=neurons))


def master_moved() -> None:
    """The master ratio, its unit or the order changed."""
    moved, order = st.session_state, st.session_state.order
    if moved.size == "parameters":
        plan_by_ratio(moved.ratio / 100, order)
    elif moved.size == "whole layers":
        plan_by_ratio(ratio_of_layers(shape, moved.layers_worth), order)
    else:
        plan_by_units(moved.heads_share / 100, moved.neurons_share / 100, order)


def master() -> None:
    """The row of controls that plan the whole model at once."""
    most = int(1000 * shape.prunable_parameters / shape.parameters) / 10
    size, slider, order = st.columns([1.3, 2.6, 1.5])
    kept = {"persist_state": "session", "on_change": master_moved}
    size.selectbox(
        "Remove by", ["parameters", "whole layers", "heads and neurons"], key="size", persist_state="session"
    )
    with slider:
        if st.session_state.size == "parameters":
            st.slider("Share of all parameters", 0.0, most, 0.0, 0.5, format="%.1f %%", key="ratio", **kept)
        elif st.session_state.size == "whole layers":
            st.slider("As many parameters as so many layers", 0, len(shape.layers), 0, key="layers_worth", **kept)
        else:
            left, right = st.columns(2)
            left.slider("Heads", 0, 100, 0, 1, format="%d %%", key="heads_share", **kept)
            right.slider("Neurons", 0, 100, 0, 1, format="%d %%", key="neurons_share", **kept)
    order.segmented_control(
        "Which go first", ["standard", "reversed", "random"], default="standard", required=True, key="order", **kept,
        help="standard: lowest scores; reversed: highest; random: by lot",
    )  # fmt: skip


def presets() -> None:
    """Plans that one click makes."""
    row = st.container(horizontal=True)
    for percent in (10, 20, 30):
        row.button(
            f"AMP {percent} %",
            on_click=plan_by_ratio,
            args=(percent / 100, "standard"),
            help="of all parameters, lowest scores first",
        )
    row.button("Reversed 20 %", on_click=plan_by_ratio, args=(0.2, "reversed"))
    row.button("Heads only", on_click=plan_by_units, args=(0.3, 0.0, "standard"), help="30 % of the heads")
    row.button("Neurons only", on_click=plan_by_units, args=(0.0, 0.3, "standard"), help="30 % of the neurons")
    row.button(
        "Random control",
        icon=":material/casino:",
        disabled=state.plan.is_empty,
        on_click=lambda: state.edit(random_like(state.plan, seed=int(state.plan.made_by.get("seed", -1)) + 1)),
        help="As many heads and neurons from every layer, chosen by lot. Each click draws anew.",
    )


work, numbers = st.columns([5, 2], gap="large")
with work:
    master()
    presets()
    view = st.segmented_control(
        "Edit",
        list(editors.VIEWS),
        default="Heads",
        required=True,
        key="view",
        persist_state="session",
        label_visibility="collapsed",
    )
    editors.VIEWS[view](state, scores)
    if state.locked_layers:
        locked = ", ".join(map(str, sorted(state.locked_layers)))
        st.caption(f":material/lock: Locked, and left as they are by every control: layer {locked}.")
with numbers:
    live_panel(state)
