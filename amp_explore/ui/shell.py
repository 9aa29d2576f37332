"""What every page begins with: page settings, the sidebar, a loaded model, and the session's state.

Work that takes time runs as a job; a page shows it with `wait_for`, which polls while the job is active and draws the
page again when it ends.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import streamlit as st
from transformers.utils import logging as transformers_logging

from amp_explore.criteria.registry import CRITERIA, unavailable
from amp_explore.criteria.scores import Scores, scores_by_lot
from amp_explore.errors import AmpExploreError
from amp_explore.keeping.jobs import Job
from amp_explore.keeping.store import write_atomically
from amp_explore.models.loading import LoadedModel
from amp_explore.models.random_weights import PREFIX, SHAPES
from amp_explore.models.sharding import devices
from amp_explore.plan import PruningPlan
from amp_explore.surgery.costs import costs_of_plan
from amp_explore.surgery.repair import METHODS
from amp_explore.texts.assets import cache_root
from amp_explore.ui.session import (
    DEFAULT_MODEL,
    Calibration,
    Scoring,
    Session,
    runner,
    scores_of,
    session,
    window_of,
    windows_of,
    workbench,
)
from amp_explore.ui.text import all_explained, by_reason, compact, explained, option, signed_percent

PAGES = (
    ("app.py", "Overview", ":material/home:"),
    ("pages/1_Importance.py", "Importance", ":material/grid_on:"),
    ("pages/2_Prune.py", "Prune", ":material/content_cut:"),
    ("pages/3_Evaluate.py", "Evaluate", ":material/checklist:"),
    ("pages/4_Speed.py", "Speed", ":material/speed:"),
    ("pages/5_Criteria.py", "Criteria", ":material/compare_arrows:"),
)

_STYLE = """<style>
.stMainBlockContainer {padding: 2.5rem 3rem 4rem}
/* an open picker is as narrow as its field: long options go on in a second line instead of being cut off */
[role=option] {height: auto; min-height: 2.5rem}
[role=option] > [data-item-hl] {white-space: normal; height: auto; padding-block: 0.2rem}
</style>"""


def open_page(title: str) -> Session:
    """Draw the shell around the page and return the session, its model loaded.

    Stops the script while the model loads.
    """
    st.set_page_config(page_title=f"{title} · AMP Explore", page_icon="✂️", layout="wide")
    transformers_logging.disable_progress_bar()
    st.html(_STYLE)
    state = session()
    if state.page != title:
        state.page = title
        state.clicks.clear()
    with st.sidebar:
        st.markdown("### :material/content_cut: AMP Explore")
        for path, label, icon in PAGES:
            st.page_link(path, label=label, icon=icon)
        st.divider()
        vitals = st.container()
        _model_picker(state)
        files = st.container()
    st.title(title)
    notices = st.container()
    try:
        _load(state)
    finally:  # also when the script stops there, or starts over: a message must not wait for the next model
        with notices:
            _notices(state)
    if state.loaded.random:
        st.warning(
            "Random weights: speed, memory and counts are real; scores, perplexity and answers mean nothing.",
            icon=":material/casino:",
        )
    with vitals:
        _vitals(state)
        if _long_jobs():
            _show_long_jobs()
    with files, st.expander("Plan file", icon=":material/description:"):
        _plan_files(state)
    state.mirror()
    return state


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


def _others_wait_for(job: Job) -> bool:
    """Whether another session shows this job, or did a moment ago."""
    me, now = session().id, time.monotonic()
    return any(who != me and now - when < 3 for who, when in list(job.watched.items()))


def _at_work(job: Job) -> str:
    """What a job is, and what it is at, where it said so."""
    return f"{job.label}: {job.note}" if job.note else job.label


def _long_jobs() -> list[Job]:
    return [job for job in runner().jobs() if job.active and not job.urgent]


@st.fragment(run_every=1.0)
def _show_long_jobs() -> None:
    """Everybody's long jobs, seen from every page."""
    jobs = _long_jobs()
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


def start(label: str, topic: str, work: Callable[[Job], Any], **options: bool) -> Job | None:
    """Queue work, unless a job of this topic is active already."""
    session().stopped.discard(topic)
    for job in runner().jobs(topic):
        if job.active:
            return job
    return submit(label, topic, work, **options)


def submit(label: str, topic: str, work: Callable[[Job], Any], **options: bool) -> Job | None:
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


def scores_or_wait(state: Session, scoring: Scoring, *, chosen: bool = True) -> Scores | None:
    """The scores, at once where what they need is kept.

    Otherwise scoring starts, its progress is shown and None returned. What this person chose before and nobody else
    waits for is cancelled, if this was `chosen` too. Random weights have nothing to score: their units are ordered by
    lot.
    """
    found = _scores_or_job(state, scoring)
    job = found if isinstance(found, Job) else None
    before = state.scoring
    if chosen:
        if before is not None and before is not job and not _others_wait_for(before):
            before.cancel()
        state.scoring = job
    if job is None:
        return found
    wait_for(job)
    return None


def _scores_or_job(state: Session, scoring: Scoring) -> Scores | Job | None:
    """The scores, or the job that makes them; None where there are none to be had now, and the page says why."""
    loaded = state.loaded
    if loaded.random:
        return scores_by_lot(loaded.shape)
    for name in (scoring.criterion, scoring.heads_by):
        if reason := unavailable(name, loaded):
            st.info(f"{CRITERIA[name].title} cannot score this model: {reason}.")
            return None
    try:
        windows = windows_of(loaded, scoring.calibration)
        if workbench().has_scores(loaded, windows, scoring.criterion, scoring.heads):
            return scores_of(loaded, scoring)
    except AmpExploreError as error:
        st.error(str(error))
        return None
    topic = f"score:{state.fingerprint}:{loaded.dtype}:{windows.digest}:{scoring.criterion}:{scoring.heads_by}"
    show_failure(topic)
    failed = (job := latest_job(topic)) is not None and job.state == "failed"
    idle = topic in state.stopped or failed
    if not clicked(st, "Score this model", shown=idle, type="primary") and idle:
        st.info("The heads and neurons of this model are not scored on this text yet.")
        return None
    title = CRITERIA[scoring.criterion].title
    return start(
        f"Scoring {loaded.name} by {title}",
        topic,
        lambda job: workbench().scores(loaded, windows, scoring.criterion, scoring.heads, progress=job) and None,
    )


def scoring_options(container, loaded: LoadedModel, on_change: Callable[[], None] | None = None) -> Scoring:
    """The pickers for criterion and calibration, the same on every page, and what the criterion says."""
    left, right = container.columns([3, 4])

    def named(name: str) -> str:
        if unavailable(name, loaded):
            return f"{CRITERIA[name].title} (not for this model)"
        return option(CRITERIA[name]) + ("" if CRITERIA[name].heads else " (neurons alone)")

    criterion = left.selectbox(
        "Criterion",
        list(CRITERIA),
        format_func=named,
        key="criterion",
        persist_state="session",
        on_change=on_change,
        help=all_explained(CRITERIA.values()),
    )
    heads = None
    if CRITERIA[criterion].heads is None:
        heads = left.selectbox(
            "Heads by",
            [name for name, each in CRITERIA.items() if each.heads],
            format_func=named,
            key="heads_criterion",
            persist_state="session",
            on_change=on_change,
            help=f"{CRITERIA[criterion].title} scores neurons alone.",
        )
    scoring = Scoring(calibration_options(right, loaded), criterion, heads)
    for name in dict.fromkeys((criterion, scoring.heads_by)):
        container.caption(f"{explained(CRITERIA[name])} · higher matters more")
    say_what_is_refused(container, loaded)
    return scoring


def say_what_is_refused(container, loaded: LoadedModel) -> None:
    """The criteria that cannot score this model, and why."""
    reasons = {name: reason for name in CRITERIA if (reason := unavailable(name, loaded))}
    if reasons:
        container.caption(f":gray[Not for this model · {by_reason(reasons)}]")


def calibration_options(container, loaded: LoadedModel) -> Calibration:
    """The pickers for the calibration text, the same on every page."""
    left, right = container.columns(2)
    source = left.selectbox(
        "Calibration text",
        ["wiki", "c4", "code", "alpaca", "own text"],
        format_func={
            "wiki": "Wikipedia",
            "c4": "C4",
            "code": "Code",
            "alpaca": "Alpaca prompts (hub)",
            "own text": "Own text",
        }.get,
        key="calibration",
        persist_state="session",
        help="Bundled texts are split: scores never see the half that perplexity is measured on.",
    )
    windows = right.selectbox(
        f"Windows of {window_of(loaded)} tokens",
        [8, 16, 32, 64, 128, 256, 512],
        index=3,
        key="windows",
        persist_state="session",
    )
    if source != "own text":
        return Calibration(source=source, windows=windows)
    return Calibration(text=own_text(container, "calibration"), windows=windows)


def own_text(container, purpose: str) -> str | None:
    """The path of the text that the person uploaded for this purpose; None, and Wikipedia instead, before that."""
    upload = container.file_uploader(f"Text for {purpose} (UTF-8)", type=["txt", "md", "text"])
    if upload is not None:
        data = upload.getvalue()
        path = cache_root() / "texts" / f"{hashlib.sha256(data).hexdigest()[:16]}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        st.session_state[f"text for {purpose}"] = str(path)
    kept = st.session_state.get(f"text for {purpose}")
    if kept is None:
        container.info("Upload a text file; until then, Wikipedia is used.")
    return kept


def _load(state: Session) -> None:
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


def _notices(state: Session) -> None:
    for number, message in enumerate(list(state.notices)):
        text, button = st.columns([12, 1], vertical_alignment="center")
        text.error(message)
        button.button(
            "",
            icon=":material/close:",
            key=f"dismiss-{number}",
            help="Dismiss",
            on_click=state.notices.remove,
            args=(message,),
        )


def _model_picker(state: Session) -> None:
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


def _plan_files(state: Session) -> None:
    st.download_button(
        "Download plan",
        state.plan.to_json(),
        "plan.json",
        "application/json",
        width="stretch",
        icon=":material/download:",
    )
    st.file_uploader("Upload a plan", type=["json"], key="plan-upload", on_change=_uploaded)


def _uploaded() -> None:
    state, upload = session(), st.session_state["plan-upload"]
    if upload is None:
        return
    try:
        state.history.push(PruningPlan.from_json(upload.getvalue(), state.loaded.shape))
    except AmpExploreError as error:
        state.notice(f"{upload.name}: {str(error).rstrip('.')}. Your plan is as it was.")


def _vitals(state: Session) -> None:
    plan, shape = state.plan, state.loaded.shape
    costs = costs_of_plan(plan)
    heads, neurons = plan.removed_per_layer("heads").sum(), plan.removed_per_layer("neurons").sum()
    st.caption(f"**{state.loaded.name}** · {state.loaded.dtype} · {devices(state.loaded.model)}")
    st.markdown(
        f"**{compact(costs.parameters)}** parameters ({signed_percent(costs.parameters, shape.parameters)})  \n"
        f"**{heads:,}** of {sum(shape.heads):,} heads removed  \n"
        f"**{neurons:,}** of {sum(shape.neurons):,} neurons removed"
        + (f"  \nrepaired: {METHODS[plan.repair.method].title.lower()}" if plan.repair and not plan.is_empty else "")
    )
    history = state.history
    undo, redo = st.columns(2)
    undo.button(
        "",
        icon=":material/undo:",
        key="undo",
        help="Undo",
        shortcut="Ctrl+Z",
        width="stretch",
        disabled=history.position == 0,
        on_click=history.step,
        args=(-1,),
    )
    redo.button(
        "",
        icon=":material/redo:",
        key="redo",
        help="Redo",
        shortcut="Ctrl+Y",
        width="stretch",
        disabled=history.position == len(history.plans) - 1,
        on_click=history.step,
        args=(1,),
    )
    st.button(
        "Back to the dense model",
        icon=":material/restart_alt:",
        key="clear",
        help="Can be undone",
        width="stretch",
        disabled=plan.is_empty,
        on_click=history.push,
        args=(state.dense,),
    )
