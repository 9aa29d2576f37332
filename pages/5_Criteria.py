"""Criteria: every way to score beside the measured truth, beside the others, and by what its plans leave."""

from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from amp_explore.budgets.allocation import allocate_by_unit, rank
from amp_explore.criteria import registry
from amp_explore.criteria.registry import CRITERIA
from amp_explore.criteria.scores import Scores
from amp_explore.errors import AmpExploreError
from amp_explore.keeping.jobs import Job
from amp_explore.models.sharding import devices
from amp_explore.observe.statistics import gram_bytes
from amp_explore.progress import part
from amp_explore.studies import agreement, comparison
from amp_explore.studies.ablation import AblationMap, ablate, ablations, in_blocks, known_ablations
from amp_explore.studies.recipe import ALLOCATIONS
from amp_explore.surgery.repair import METHODS
from amp_explore.ui.charts import (
    agreement_matrix,
    disagreement_map,
    image_options,
    quality_curves,
    score_against_damage,
)
from amp_explore.ui.session import evaluation, repair_of, windows_of, workbench
from amp_explore.ui.shell import (
    calibration_options,
    clicked,
    latest_job,
    open_page,
    say_what_is_refused,
    show_failure,
    start,
    wait_for,
)
from amp_explore.ui.text import EVIDENCE, by_reason, option, repair_option, text_of

state = open_page("Criteria")
bench, loaded, shape = workbench(), state.loaded, state.loaded.shape
if loaded.random:
    st.info("Random weights have nothing to compare; load a model that was trained.")
    st.stop()
calibration = calibration_options(st.container(), loaded)
try:
    windows = windows_of(loaded, calibration)
except AmpExploreError as error:
    st.error(str(error))
    st.stop()


PASSES = {
    "activations": "Activations: a pass forwards, enough for most criteria",
    "grams": f"Gram matrices: a pass forwards, {gram_bytes(shape) / 2**30:.1f} GiB in the cache",
    "gradients": "Gradients: a pass forwards and backwards, three times as long",
}


@st.cache_resource(max_entries=4, show_spinner=False)
def scored(topic: str) -> dict[str, Scores]:
    """The scores that this server has made on one text so far; jobs add to them."""
    return {}


def scores_topic() -> str:
    return f"scores:{state.fingerprint}:{loaded.dtype}:{windows.digest}"


def lacking(name: str) -> list[str]:
    """What a criterion needs and is not collected yet."""
    known = bench.kinds_of_evidence(loaded, windows)
    return [kind for kind in PASSES if kind in CRITERIA[name].needs - known]


def collected() -> dict[str, Scores]:
    """The scores of all criteria, as far as they are there.

    What takes but seconds is scored without being asked, in a job all the same.
    """
    say_what_is_refused(st.container(), loaded)
    topic = scores_topic()
    there, job = scored(topic), latest_job(topic)
    missing = [name for name in CRITERIA if name not in there and not registry.unavailable(name, loaded)]
    if not missing:
        return in_order(there)
    known = bench.kinds_of_evidence(loaded, windows)
    lacks = {name: lacking(name) for name in missing}
    if job is None or job.state == "done":
        quick = [name for name in missing if not lacks[name] and is_quick(name)]
        if quick:
            job = start("Scores", topic, lambda job: score_all(there, quick, set(), job), urgent=True)
    running = job is not None and job.active
    with st.container(horizontal=True, vertical_alignment="center"):
        wanted = {
            kind
            for kind, says in PASSES.items()
            if kind not in known and st.checkbox(says, kind == "activations", key=f"collect_{kind}")
        }
        names = [name for name in missing if wanted.issuperset(lacks[name])]
        if clicked(st, "Collect and score", type="primary", disabled=running or not names):
            job = start("Scores", topic, lambda job: score_all(there, names, wanted, job))
            running = job is not None
    if running:
        wait_for(job)
    show_failure(topic)
    reasons = {name: f"need {' and '.join(EVIDENCE[kind] for kind in lacks[name])}" for name in missing if lacks[name]}
    reasons |= {name: "take longer" for name in missing if not lacks[name] and CRITERIA[name].slow}
    if reasons:
        st.caption(f":gray[Not shown yet · {by_reason(reasons)}]")
    return in_order(there)


def in_order(there: dict[str, Scores]) -> dict[str, Scores]:
    """Scores in the order of the list of criteria, whichever came first."""
    return {name: there[name] for name in CRITERIA if name in there}


def is_quick(name: str) -> bool:
    """Whether a criterion, all that it needs being there, scores within seconds."""
    return not CRITERIA[name].slow or bench.has_scores(loaded, windows, name)


def score_all(there: dict[str, Scores], names: list[str], wanted: set[str], job: Job) -> None:
    """Collect what is wanted, and add the scores by these criteria to what is there."""
    bench.evidence(loaded, windows, wanted, progress=job)
    failed = []
    for number, name in enumerate(names):
        try:
            there[name] = bench.scores(loaded, windows, name, progress=part(job, number, len(names)))
        except AmpExploreError as error:  # the others can still be scored
            failed.append(str(error))
    if failed:
        raise AmpExploreError(" · ".join(failed))


def truth() -> AblationMap | None:
    """The measured rise of the loss for every head, as far as it is known; a background job measures the rest."""
    st.subheader("The measured truth")
    st.caption(
        "The rise of the mean loss when exactly one head is gone, or one block of neighbouring neurons, on calibration "
        "text. Only the layers above it run anew; what was measured is kept, so a stopped run goes on where it was."
    )
    left, middle, right = st.columns([2, 2, 2], vertical_alignment="bottom")
    count = left.select_slider(
        "Windows for the ablation", [1, 2, 4, 8, 16], 2, key="ablation_windows", persist_state="session"
    )
    block = middle.selectbox(
        "What is taken out",
        [0, 64, 128, 256, 512],
        format_func=lambda size: f"each head, each block of {size} neurons" if size else "each head",
        key="ablation_block",
        persist_state="session",
    )
    block = block or None
    text = windows_of(loaded, calibration.of(count))
    known = known_ablations(bench, loaded, text, block=block)
    total = len(ablations(shape, block))
    topic = f"ablation:{state.fingerprint}:{loaded.dtype}:{text.digest}"
    job = latest_job(topic)
    running = job is not None and job.active
    done = 0 if known is None else known.measured
    unfinished = done < total
    if clicked(right, "Measure every one", shown=unfinished, type="primary", disabled=running, width="stretch"):
        job = start("Ablation", topic, lambda job: ablate(bench, loaded, text, block=block, progress=job) and None)
        running = job is not None
    if running:
        wait_for(job)
    show_failure(topic)
    if done:
        st.caption(f"{done} of {total} measured, on {text_of(text)}.")
    return known if done else None


def against_truth(scores: dict[str, Scores], measured: AblationMap) -> None:
    """Rank correlation of every criterion with the truth, and one criterion against it unit by unit."""
    unit, block = "heads", st.session_state.ablation_block
    if block:
        unit = st.segmented_control(
            "Damage by", ["heads", "neurons"], default="heads", required=True, key="truth_unit", persist_state="session"
        )
    damage = getattr(measured, unit)
    by = {
        name: each.heads if unit == "heads" else in_blocks(each.neurons, block)
        for name, each in scores.items()
        if unit == "neurons" or CRITERIA[name].heads
    }
    one = "head" if unit == "heads" else "block"
    rows = []
    for name, values in by.items():
        whole, inside = (of(values, damage) for of in (agreement.overall, agreement.within_layers))
        rows.append(
            {
                "criterion": CRITERIA[name].title,
                "whole model": whole.value,
                "95 % interval": interval(whole),
                "within layers, mean": inside.value,
                "95 % interval ": interval(inside),
            }
        )
    table = pd.DataFrame(rows).sort_values("within layers, mean", ascending=False)
    st.markdown(f"**Spearman's rank correlation of scores with the measured damage of {one}s** (1: the same order)")
    st.caption("A uniform budget compares units within layers; one threshold compares all units of the model.")
    st.dataframe(
        table,
        hide_index=True,
        height="content",
        column_config={name: st.column_config.NumberColumn(format="%+.2f") for name in table.columns[1::2]},
    )
    st.download_button("CSV", table.to_csv(index=False), "agreement.csv", "text/csv", icon=":material/download:")
    name = st.selectbox(
        "One criterion against the truth",
        [name for name in CRITERIA if not registry.unavailable(name, loaded)],
        format_func=lambda name: CRITERIA[name].title,
        key="against",
        persist_state="session",
    )
    if name not in by:
        why_not(name, unit)
        return
    left, right = st.columns(2)
    with left:
        st.markdown(f"**Score and damage of every {one}**")
        st.plotly_chart(
            score_against_damage(by[name], damage, CRITERIA[name].title, one),
            key="scatter",
            on_select=lambda: opened("scatter"),
            selection_mode="points",
            config=image_options("score-against-damage", "PNG"),
        )
    with right:
        st.markdown(f"**Where {CRITERIA[name].title} ranks {one}s higher or lower than the truth**")
        there = [np.where(np.isfinite(rises), values, np.nan) for values, rises in zip(by[name], damage, strict=True)]
        st.plotly_chart(
            disagreement_map(agreement.ranks(there), agreement.ranks(damage), CRITERIA[name].title, "truth", one),
            key="disagreement",
            on_select=lambda: opened("disagreement"),
            selection_mode="points",
            config=image_options("disagreement", "PNG"),
        )
    st.caption("Click a point to open its layer on the Importance page.")


def why_not(name: str, unit: str) -> None:
    """Say why a criterion cannot be held against the truth yet, and offer to score by it."""
    title, topic = CRITERIA[name].title, scores_topic()
    if unit == "heads" and not CRITERIA[name].heads:
        st.info(f"{title} scores neurons alone; take out blocks of neurons, and look at their damage.")
        return
    lacks = lacking(name)
    needed = f"it needs {' and '.join(EVIDENCE[kind] for kind in lacks)} of this text" if lacks else "it takes longer"
    st.info(f"{title} has not scored this model yet: {needed}.")
    work = partial(score_all, scored(topic), [name], set(lacks))
    running = (job := latest_job(topic)) is not None and job.active
    st.button("Score by it", on_click=start, args=("Scores", topic, work), disabled=running)  # shown on top of the page


def interval(of: agreement.Agreement) -> str:
    """In words; a dash where too little is known."""
    return f"{of.low:+.2f} to {of.high:+.2f}" if np.isfinite(of.low) else "–"


def opened(chart: str) -> None:
    """A point was clicked: its layer is the one to open."""
    points = st.session_state[chart].selection.points
    if points and isinstance(layer := points[0].get("customdata"), int | float):
        st.session_state.open_layer = int(layer)


def against_each_other(scores: dict[str, Scores]) -> None:
    """How alike the criteria rank, and what they would remove."""
    st.subheader("Criteria against each other")
    left, right = st.columns([2, 5], vertical_alignment="bottom")
    unit = left.segmented_control(
        "Of", ["heads", "neurons"], default="heads", required=True, key="alike_unit", persist_state="session"
    )
    percent = right.slider(
        "Share that goes from every layer", 5, 95, 20, 5, format="%d %%", key="alike_share", persist_state="session"
    )
    names = [name for name in scores if unit == "neurons" or CRITERIA[name].heads]
    gone = {
        name: getattr(allocate_by_unit(rank(shape, scores[name]), percent / 100, percent / 100), unit) for name in names
    }
    titles = [CRITERIA[name].title for name in names]
    alike = agreement.between([getattr(scores[name], unit) for name in names])
    removed = np.array([[agreement.overlap(gone[a], gone[b]) for b in names] for a in names])
    ranks, both = st.tabs(["Rank correlation within layers", f"Share of the {unit} that both remove"])
    ranks.plotly_chart(agreement_matrix(alike, titles), key="alike", config=image_options("criteria", "PNG"))
    both.plotly_chart(agreement_matrix(removed, titles), key="overlap", config=image_options("overlap", "PNG"))


def sweep() -> None:
    """All criteria, ratios and repairs in one background job, with a table and a curve of quality against size."""
    st.subheader("What their plans leave")
    upper, middle, lower = st.columns([3, 2]), st.columns(2), st.columns([3, 1], vertical_alignment="bottom")
    names = upper[0].multiselect(
        "Criteria",
        [name for name in CRITERIA if not registry.unavailable(name, loaded)],
        ["amp", "wanda-sp", "flap"],
        format_func=lambda name: option(CRITERIA[name]),
        key="sweep_criteria",
        persist_state="session",
    )
    ratios = upper[1].multiselect(
        "Percent of all parameters",
        [5, 10, 15, 20, 25, 30, 40, 50],
        [10, 20],
        key="sweep_ratios",
        persist_state="session",
    )
    budgets = middle[0].multiselect(
        "Budgets",
        list(ALLOCATIONS),
        ["uniform"],
        key="sweep_allocations",
        format_func=lambda name: option(ALLOCATIONS[name]),
        persist_state="session",
    )
    methods = middle[1].multiselect(
        "Repairs",
        ["none", *METHODS],
        ["none"],
        key="sweep_repairs",
        format_func=repair_option,
        persist_state="session",
    )
    count = lower[0].select_slider(
        "Windows for perplexity", [1, 4, 16, 64], 4, key="sweep_windows", persist_state="session"
    )
    text, topic = evaluation(loaded, count), f"sweep:{state.fingerprint}:{loaded.dtype}"
    repairs = [None if method == "none" else repair_of(loaded, method, calibration) for method in methods]
    # Stays with the rows: the pickers may move on.
    said = f"Perplexity on {text_of(text)}; scores on {text_of(windows)}; {loaded.dtype} on {devices(loaded.model)}."

    def work(job: Job) -> tuple[list[comparison.Row], str]:
        wanted = comparison.recipes([percent / 100 for percent in sorted(ratios)], names, budgets)
        rows = comparison.compare(
            bench,
            loaded,
            windows,
            text,
            wanted,
            repairs,
            progress=job,
            report=lambda rows: setattr(job, "partial", (rows, said)),
        )
        return rows, said

    job = latest_job(topic)
    running = job is not None and job.active
    if clicked(
        lower[1],
        "Compare",
        type="primary",
        disabled=running or not all((names, ratios, budgets, methods)),
        width="stretch",
    ):
        job = start("Comparison", topic, work)
        running = job is not None
    if running:
        wait_for(job)
    show_failure(topic)
    rows, caption = (job is not None and (job.result or job.partial)) or ([], "")
    if not rows:
        return
    table = pd.DataFrame([row.as_dict() for row in rows])
    titles = {name: method.title for name, method in (CRITERIA | ALLOCATIONS | METHODS).items()}
    st.plotly_chart(quality_curves(table, titles), key="quality", config=image_options("quality", "PNG"))
    hidden = ["heads_criterion", "loss", "plan"]
    if table["loss_stderr"].isna().all():  # a single window
        hidden.append("loss_stderr")
    st.dataframe(
        table.drop(columns=hidden).replace(titles),
        hide_index=True,
        column_config={
            "allocation": "budget",
            "ratio": st.column_config.NumberColumn("asked for", format="percent"),
            "removed": st.column_config.NumberColumn(format="percent"),
            "parameters": st.column_config.NumberColumn(format="localized"),
            "perplexity": st.column_config.NumberColumn(format="%.2f"),
            "loss_stderr": st.column_config.NumberColumn("loss ±", format="%.4f"),
        },
    )
    st.download_button(
        "CSV", table.to_csv(index=False), "comparison.csv", "text/csv", icon=":material/download:", key="sweep_csv"
    )
    st.caption(caption)


if "open_layer" in st.session_state:
    st.session_state.layer = st.session_state.pop("open_layer")
    st.switch_page("pages/1_Importance.py")
there = collected()
measured = truth()
if measured is not None and there:
    against_truth(there, measured)
if there:
    against_each_other(there)
sweep()
