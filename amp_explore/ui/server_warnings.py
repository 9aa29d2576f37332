"""What everybody who uses this server must know before they trust a number."""

from __future__ import annotations

import streamlit as st

from amp_explore.ui.errors import end_page
from amp_explore.ui.jobs import begin, wait_for
from amp_explore.ui.session import runner, workbench

_TOPIC = "check"


def server_warnings() -> list[str]:
    """Plain texts, for the top of every page.

    Versions of libraries that nobody has tried are tried first, once; the script stops until that is done.
    """
    failures = workbench().known_failures()
    if failures is None:
        failures = _tried()
    if not failures:
        return []
    return [
        f"Trust no number here: with the installed libraries, {failures[0]}"
        + (f", and {len(failures) - 1} more checks fail" if len(failures) > 1 else "")
        + ". `make setup` installs versions that were tried."
    ]


def _tried() -> list[str]:
    """What the check found. Where it could not be made, that is a failure too."""
    job = next((job for job in reversed(runner().jobs(_TOPIC)) if job.state in ("done", "failed")), None)
    if job is not None:
        return job.result if job.state == "done" else [f"the check of the libraries failed: {job.error}"]
    st.info("This server has versions of libraries that nobody has tried; they are tried now, once.")
    job = begin("Checking the libraries", _TOPIC, lambda job: workbench().check_libraries(progress=job))
    if job is not None:
        wait_for(job)
    end_page()
