"""Prune: decide by ratio, by curve or by hand what goes, and see at once what that does."""

import streamlit as st

from amp_explore.surgery.repair import caveat
from amp_explore.ui import editors
from amp_explore.ui.errors import end_page
from amp_explore.ui.frame import open_page
from amp_explore.ui.live import live_panel
from amp_explore.ui.planning import Planner, budget_options, keep_size
from amp_explore.ui.scoring import scores_or_wait, scoring_options
from amp_explore.ui.text import literal
from amp_explore.ui.token_windows import windows_of

with open_page("Prune") as state:
    with st.expander("Criterion, calibration, budget and repair", icon=":material/tune:"):
        scoring = scoring_options(st.container(), state.loaded, keep_size)
        budget_options(state, scoring.calibration)
    scores = scores_or_wait(state, scoring)
    if scores is None:
        end_page()
    if chosen := state.plan.repair:
        windows = windows_of(state.loaded, scoring.calibration)
        if said := caveat(chosen.method, state.shape, windows):
            st.warning(literal(said), icon=":material/warning:")
    planner = Planner(state, scoring, scores)
    planner.resize()
    work, numbers = st.columns([3, 2], gap="large")
    with work:
        planner.take_over()
        planner.master()
        planner.presets()
        view = st.segmented_control(
            "Edit",
            list(editors.VIEWS),
            default="Heads",
            required=True,
            wrap=True,
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
