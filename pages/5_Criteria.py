"""Criteria: every way to score beside the measured truth, beside the others, and by what its plans leave."""

import streamlit as st

from amp_explore.errors import AmpExploreError
from amp_explore.ui.all_criteria import scored_criteria
from amp_explore.ui.criteria_agreement import against_each_other
from amp_explore.ui.frame import open_page
from amp_explore.ui.measured_truth import against_truth, measured_truth
from amp_explore.ui.scoring import calibration_options
from amp_explore.ui.session import windows_of
from amp_explore.ui.sweep import sweep

state = open_page("Criteria")
loaded = state.loaded
if loaded.random:
    st.info("Random weights have nothing to compare; load a model that was trained.")
    st.stop()
calibration = calibration_options(st.container(), loaded)
try:
    windows = windows_of(loaded, calibration)
except AmpExploreError as error:
    st.error(str(error))
    st.stop()

if "open_layer" in st.session_state:
    st.session_state.layer = st.session_state.pop("open_layer")
    st.switch_page("pages/1_Importance.py")
scores = scored_criteria(loaded, windows)
measured = measured_truth(loaded, calibration)
if measured is not None and scores:
    against_truth(loaded, windows, scores, measured)
if scores:
    against_each_other(loaded.shape, scores)
sweep(loaded, calibration, windows)
