"""Jobs as a page shows them: begun by a click, watched with a bar and a cancel button, and heard of when they fail.

Work that takes time runs as a job; a page shows it with `wait_for`, which polls while the job is active and draws the
page again when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import streamlit as st

from amp_explore.errors import AmpExploreError
from amp_explore.keeping.jobs import Job
from amp_explore.ui.session import runner, session
from amp_explore.ui.text import megabytes


def start(label: str, topic: str, work: Callable[[Job], Any], **options: Any) -> Job | None:
    """Queue work, unless a job of this topic is active already."""
    session().stopped.discard(topic)
    for job in runner().jobs(topic):
        if job.active:
            return job
    return submit(label, topic, work, **options)


def submit(label: str, topic: str, work: Callable[[Job], Any], **options: Any) -> Job | None:
    """Queue work; a full queue becomes a notice and None."""
    try:
        return runner().submit(label, work, topic=topic, **options)
    except AmpExploreError as error:
        session().notice(error)
        return None


def latest_job(topic: str) -> Job | None:
    """The newest job of a topic, whatever became of it."""
    return next(reversed(runner().jobs(topic)), None)


def show_failure(topic: str) -> None:
    """Say it if the newest job of this topic failed."""
    job = latest_job(topic)
    if job is not None and job.state == "failed":
        st.error(f"{job.label} failed: {job.error}")


def wait_for(job: Job) -> None:
    """Show a job's progress with a cancel button; the page is drawn again when the job ends."""
    _watch(job.id)


@st.fragment(run_every=0.3)
def _watch(job_id: str) -> None:
    job = runner().get(job_id)
    if job is None or not job.active:
        st.rerun()
    job.watched[session().id] = time.monotonic()
    if job.state == "queued":
        ahead = runner().running
        text = f"{job.label}: waiting for {ahead.label}" if ahead else f"{job.label}: waiting"
    else:
        text, left = _at_work(job), job.seconds_left
        text += f", about {left:.0f} s left" if left and left > 1 else ""
    bar, button = st.columns([6, 1], vertical_alignment="center")
    bar.progress(min(job.done / job.total, 1.0) if job.total else 0.0, text=text)
    button.button("Cancel", key=f"cancel-{job_id}", on_click=_cancel, args=(job,), width="stretch")


def others_wait_for(job: Job) -> bool:
    """Whether another session shows this job, or did a moment ago."""
    me, now = session().id, time.monotonic()
    return any(who != me and now - when < 3 for who, when in list(job.watched.items()))


def long_jobs() -> list[Job]:
    """The jobs that may take long, whoever began them, as long as they wait or run."""
    return [job for job in runner().jobs() if job.active and not job.urgent]


@st.fragment(run_every=1.0)
def show_long_jobs() -> None:
    """Everybody's long jobs, seen from every page."""
    jobs = long_jobs()
    if not jobs:
        st.rerun()
    st.caption("At work")
    for job in jobs:
        left = "" if job.seconds_left is None else f", about {job.seconds_left:.0f} s left"
        line, button = st.columns([5, 1], vertical_alignment="center")
        line.progress(
            min(job.done / job.total, 1.0) if job.total else 0.0,
            text=(f"{job.label}: waiting" if job.state == "queued" else _at_work(job)) + left,
        )
        button.button(
            "", icon=":material/close:", key=f"stop-{job.id}", help=f"Stop {job.label}", on_click=_cancel, args=(job,)
        )


def _at_work(job: Job) -> str:
    """What a job is, and what it is at, where it said so; of a download, how much of it is here."""
    text = f"{job.label}: {job.note}" if job.note else job.label
    return f"{text}, {megabytes(job.done)} of {megabytes(job.total)}" if job.aside and job.total > 1 else text


def _cancel(job: Job) -> None:
    session().stopped.add(job.topic)
    job.cancel()


def clicked(container, label: str, *, shown: bool = True, disabled: bool = False, **options: Any) -> bool:
    """Draw a button, and say whether it was clicked: once for each click.

    A run of the page may end before it comes to the button, because a job has ended or another widget was touched.
    The click then waits for the next run, which knows the newest values of all widgets; a callback would not. Where the
    button has no place (any more), call this all the same, with `shown` false: nothing may come of a late click.
    """
    clicks = session().clicks
    if shown:
        container.button(label, disabled=disabled, on_click=clicks.add, args=(label,), **options)
    if label not in clicks:
        return False
    clicks.remove(label)
    return shown and not disabled
