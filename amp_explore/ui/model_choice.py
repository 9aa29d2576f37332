"""Which model a session explores: picked in the sidebar, named in the link, and loaded by a job."""

from __future__ import annotations

import streamlit as st

from amp_explore.models.loading import prepare
from amp_explore.models.random_weights import PREFIX, SHAPES
from amp_explore.ui.jobs import start, wait_for
from amp_explore.ui.session import DEFAULT_MODEL, Session, runner, workbench


def model_picker(state: Session) -> None:
    """The form that names another model."""
    with st.expander("Model", icon=":material/memory:"), st.form("model-form", border=False):
        source = st.text_input(
            "demo, a hub id, a folder or a .gguf file",
            state.source,
            max_chars=500,
            help=f"Or random weights of a known shape, to measure speed: {', '.join(PREFIX + name for name in SHAPES)}",
        )
        options = ["auto", "float32", "bfloat16", "float16"]
        dtype = st.selectbox("Precision", options, index=options.index(state.dtype))
        if st.form_submit_button("Load", width="stretch"):
            state.source, state.dtype = source.strip(), dtype
            st.session_state.pop("load_job", None)
            st.rerun()


def load_chosen(state: Session) -> None:
    """Have the session take up its model; where it is not in memory, load it in a job and stop the script."""
    source, dtype = state.source, state.dtype
    loaded = workbench().pool.peek(source, dtype=dtype)
    if loaded is not None:
        state.begin(loaded)
        return
    job = runner().get(st.session_state.get("load_job", ""))
    if job is not None and job.state in ("failed", "cancelled"):
        del st.session_state.load_job
        _loading_failed(state, job.error or f"Loading {source} was cancelled.")
    job = start(
        f"Loading {source}",
        f"load:{source}:{dtype}",
        lambda job: workbench().pool.get(source, dtype=dtype, progress=job) and None,
        urgent=True,
        before=lambda job: prepare(source, job),
    )
    if job:
        st.session_state.load_job = job.id
        wait_for(job)
    st.stop()


def _loading_failed(state: Session, message: str) -> None:
    """Go back to the model before, or to the demo model; only where that is what failed, stay and offer another try."""
    fallback = state.last_good or (DEFAULT_MODEL, "auto")
    if fallback != (state.source, state.dtype):
        state.notice(message)
        state.source, state.dtype = fallback
        st.rerun()
    st.error(message)
    st.button("Try again", type="primary")
    st.stop()
