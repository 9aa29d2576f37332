"""Prune: decide by ratio, by curve or by hand what goes, and see at once what that does."""

import math
from functools import partial

import streamlit as st

from amp_explore.budgets.allocation import allocate_by_unit, random_like, rank, ratio_of_layers, ratio_that_leaves
from amp_explore.criteria.registry import CRITERIA
from amp_explore.errors import AmpExploreError
from amp_explore.studies.recipe import ALLOCATIONS, SHARING, TAKE_THEIR_TIME, Recipe, make_plan
from amp_explore.surgery.costs import costs_of_plan, removed_parameters
from amp_explore.surgery.repair import METHODS, caveat
from amp_explore.ui import editors
from amp_explore.ui.frame import open_page
from amp_explore.ui.jobs import latest_job, show_failure, submit, wait_for
from amp_explore.ui.live import live_panel
from amp_explore.ui.scoring import scores_or_wait, scoring_options
from amp_explore.ui.session import repair_of, windows_of, workbench
from amp_explore.ui.text import all_explained, explained, option, repair_option

state = open_page("Prune")
shape = state.loaded.shape
MOST = int(1000 * shape.prunable_parameters / shape.parameters) / 10  # percent of all parameters that can go
ALL = (0, 0, len(shape.layers) - 1, max((*shape.heads, *shape.neurons)))
WHOLE, BARE = (
    costs_of_plan(state.dense),
    costs_of_plan(state.dense.with_box("heads", ALL, True).with_box("neurons", ALL, True)),
)
MOST_FLOPS = int(1000 * (1 - BARE.flops_per_token / WHOLE.flops_per_token)) / 10
LEAST, DENSE = BARE.weight_bytes // 2**20, math.ceil(WHOLE.weight_bytes / 2**20)  # MiB


def keep_size() -> None:
    """Another criterion or budget: the plan is made anew, of the size that it has."""
    if not state.plan.is_empty:
        st.session_state.resize = removed_parameters(state.plan) / shape.parameters


def repair_moved() -> None:
    """Another repair, or another text to fit it on."""
    method = st.session_state.repair
    state.repair(None if method == "none" else repair_of(state.loaded, method, scoring.calibration))


def budget_options() -> None:
    """The pickers for how a budget is shared between layers, and for the repair."""
    left, middle, right = st.columns(3)
    allocation = left.selectbox(
        "Budget across layers",
        list(ALLOCATIONS),
        format_func=lambda name: option(ALLOCATIONS[name]),
        key="allocation",
        persist_state="session",
        on_change=keep_size,
        help=all_explained(ALLOCATIONS.values()),
    )
    if allocation in ("protect", "search"):
        low, high = middle.columns(2)
        most, kept = len(shape.layers) - 1, {"persist_state": "session", "on_change": keep_size}
        low.number_input("Whole at the bottom", 0, most, 1, key="first", **kept)
        high.number_input("Whole at the top", 0, most, 1, key="last", **kept)
        if allocation == "search":
            middle.number_input("Generations", 1, 1000, 30, key="generations", persist_state="session")
    elif allocation == "iterative":
        middle.number_input("Steps", 1, 20, 5, key="steps", persist_state="session", on_change=keep_size)
    if allocation in SHARING:
        middle.segmented_control(
            "Neurons stay in multiples of",
            [1, 8, 16, 64, 128],
            default=1,
            required=True,
            wrap=True,
            key="multiple",
            help="A GPU multiplies odd widths up to four times slower. Counts for plans by parameters or layers.",
            persist_state="session",
            on_change=keep_size,
            disabled=st.session_state.get("whole_groups", False),
        )
        middle.toggle(
            "Whole groups only",
            key="whole_groups",
            help="Heads go with all that read the same KV head, the neurons of a mixture with their expert.",
            persist_state="session",
            on_change=keep_size,
            disabled=st.session_state.get("multiple", 1) > 1,
        )
    st.session_state.repair = state.plan.repair.method if state.plan.repair else "none"
    right.selectbox(
        "Repair",
        ["none", *METHODS],
        format_func=repair_option,
        key="repair",
        on_change=repair_moved,
        help=all_explained(METHODS.values()),
    )
    st.caption(explained(ALLOCATIONS[allocation]))
    if method := METHODS.get(st.session_state.repair):
        st.caption(explained(method))


with st.expander("Criterion, calibration, budget and repair", icon=":material/tune:"):
    scoring = scoring_options(st.container(), state.loaded, keep_size)
    budget_options()
scores = scores_or_wait(state, scoring)
if scores is None:
    st.stop()
if (chosen := state.plan.repair) and (
    said := caveat(chosen.method, shape, windows_of(state.loaded, scoring.calibration))
):
    st.warning(said, icon=":material/warning:")


def plan_by_ratio(ratio: float, order: str, seed: int = 0, counted: str = "parameters") -> None:
    """Put the plan of this size, by the criterion and the budget that are chosen, in place of the plan."""
    names = ["allocation", "first", "last", "steps", "generations"]
    if st.session_state.allocation in SHARING:
        names += ["multiple", "whole_groups"]
    chosen = {name: st.session_state[name] for name in names if name in st.session_state}
    recipe = Recipe(ratio, scoring.criterion, scoring.heads, order=order, seed=seed, counted=counted, **chosen)
    bench, loaded, windows = workbench(), state.loaded, windows_of(state.loaded, scoring.calibration)
    kept = {"repair": state.plan.repair, "locked": state.locked_layers, "current": state.plan.repaired(None)}
    make = partial(make_plan, bench, loaded, windows, recipe, **kept)
    try:
        recipe.check()
        forget_planning()
        if recipe.allocation in TAKE_THEIR_TIME or not bench.has_evidence(
            loaded, windows, ALLOCATIONS[recipe.allocation].needs
        ):
            submit("Planning", f"plan:{state.id}", lambda job: make(progress=job))
        else:
            state.edit(make(scores=None if order == "random" else scores))
    except AmpExploreError as error:
        state.notice(error)


def forget_planning() -> None:
    """Another plan is asked for: what a job is still at, or has just ended with, comes too late."""
    if (job := latest_job(f"plan:{state.id}")) is not None:
        job.cancel()
        st.session_state.planned = job.id


def planned() -> None:
    """Take over a plan that took its time, or show how far it is."""
    topic = f"plan:{state.id}"
    show_failure(topic)
    job = latest_job(topic)
    if job is None or job.id == st.session_state.get("planned"):
        return
    if job.active:
        wait_for(job)
        return
    st.session_state.planned = job.id
    st.session_state.pop("said", None)  # from now on the master says what came of it
    if job.state == "done":
        state.edit(job.result)
        st.rerun()


def plan_by_units(heads: float, neurons: float, order: str) -> None:
    """The same share of heads, and of neurons, from every layer that is not locked."""
    forget_planning()
    plan = allocate_by_unit(rank(shape, scores, order), heads, neurons)
    state.edit(plan.described(**scoring.made_by(), order=order, heads_ratio=heads, neurons_ratio=neurons))


def master_moved() -> None:
    """What the master asks for, or the order, changed."""
    now, order = st.session_state, st.session_state.order
    asked = now.asked
    if now.size == "parameters":
        plan_by_ratio(asked["ratio"] / 100, order)
    elif now.size == "FLOPs":
        plan_by_ratio(asked["flops"] / 100, order, counted="flops")
    elif now.size == "megabytes":
        # The slider's ends are rounded to whole units, and ask for a little less or more than there is.
        stay = min(max(asked["mebibytes"] * 2**20, BARE.weight_bytes), WHOLE.weight_bytes)
        plan_by_ratio(ratio_that_leaves(shape, stay / shape.bytes_per_parameter), order)
    elif now.size == "whole layers":
        plan_by_ratio(ratio_of_layers(shape, asked["layers_worth"]), order)
    else:
        plan_by_units(asked["heads_share"] / 100, asked["neurons_share"] / 100, order)
    now.said = (state.plan.digest, now.size)


def order_moved() -> None:
    """The order changed: it counts for a plan that was made in an order, and never undoes work by hand."""
    if "order" in state.plan.made_by:
        master_moved()


def follow_plan() -> None:
    """Have the master say how much goes now, unless it was what said so: then what was asked for stands."""
    now, plan = st.session_state, state.plan
    if now.get("said") == (plan.digest, now.size):
        return
    now.said = (plan.digest, now.size)
    costs, removed = costs_of_plan(plan), removed_parameters(plan)
    ask(
        ratio=min(round(200 * removed / shape.parameters) / 2, MOST),
        flops=min(round(200 * (1 - costs.flops_per_token / WHOLE.flops_per_token)) / 2, MOST_FLOPS),
        mebibytes=math.ceil(costs.weight_bytes / 2**20),
        layers_worth=round(len(shape.layers) * removed / shape.prunable_parameters),
        heads_share=round(100 * plan.removed_per_layer("heads").sum() / sum(shape.heads)),
        neurons_share=round(100 * plan.removed_per_layer("neurons").sum() / sum(shape.neurons)),
    )


def ask(**asked: float) -> None:
    """Have the sliders stand elsewhere, as new ones: a browser that has not heard of it yet still sends where the old
    ones stand, which must not count as a move."""
    now = st.session_state
    now.asked = now.get("asked", {}) | asked
    now.stand = dict(now.asked)
    now.turn = now.get("turn", 0) + 1


def slid(name: str, turn: int) -> None:
    """A person moved this slider."""
    if turn == st.session_state.turn:
        st.session_state.asked[name] = st.session_state[f"{name}-{turn}"]
        master_moved()


def set_master(size: str, order: str = "standard", **asked: float) -> None:
    """Set the controls of the master row, as if by hand."""
    st.session_state.update(size=size, order=order)
    ask(**asked | ({"ratio": min(asked["ratio"], MOST)} if "ratio" in asked else {}))
    master_moved()


def master() -> None:
    """The row of controls that plan the whole model at once."""
    st.session_state.setdefault("order", "standard")
    size, order = st.columns(2)
    slider = st.container()
    size.selectbox(
        "Remove by",
        ["parameters", "FLOPs", "megabytes", "whole layers", "heads and neurons"],
        key="size",
        persist_state="session",
    )
    follow_plan()
    now = st.session_state

    def slide(where, name: str, label: str, least: float, most: float, step: float, format: str) -> None:
        # Where it stands is its default: a value set apart gets lost where a run is cut short, and 0 comes back.
        moved = {"on_change": slid, "args": (name, now.turn), "persist_state": "session"}
        where.slider(label, least, most, now.stand[name], step, format, f"{name}-{now.turn}", **moved)

    if now.size == "parameters":
        slide(slider, "ratio", "Share of all parameters", 0.0, MOST, 0.5, "%.1f %%")
    elif now.size == "FLOPs":
        slide(slider, "flops", "Share of the FLOPs of a token", 0.0, MOST_FLOPS, 0.5, "%.1f %%")
    elif now.size == "megabytes":
        slide(slider, "mebibytes", "Weights that stay", LEAST, DENSE, 1, "%d MiB")
    elif now.size == "whole layers":
        slide(slider, "layers_worth", "As many parameters as so many layers", 0, len(shape.layers), 1, "%d")
    else:
        left, right = slider.columns(2)
        slide(left, "heads_share", "Heads", 0, 100, 1, "%d %%")
        slide(right, "neurons_share", "Neurons", 0, 100, 1, "%d %%")
    order.segmented_control(
        "Which go first",
        ["standard", "reversed", "random"],
        required=True,
        wrap=True,
        key="order",
        help="standard: lowest scores; reversed: highest; random: by lot",
        persist_state="session",
        on_change=order_moved,
    )


def presets() -> None:
    """Plans that one click makes."""
    row = st.container(horizontal=True)

    def preset(label: str, help: str, **controls) -> None:
        row.button(label, on_click=set_master, kwargs=controls, help=help)

    for percent in (10, 20, 30):
        name = f"{CRITERIA[scoring.criterion].title} {percent} %"
        preset(name, "of all parameters, lowest scores first", size="parameters", ratio=float(percent))
    preset("Reversed 20 %", "highest scores first", size="parameters", ratio=20.0, order="reversed")
    preset("Heads 30 %", "of all heads, and no neurons", size="heads and neurons", heads_share=30, neurons_share=0)
    preset("Neurons 30 %", "of all neurons, and no heads", size="heads and neurons", heads_share=0, neurons_share=30)
    row.button(
        "Random control",
        icon=":material/casino:",
        disabled=state.plan.is_empty,
        on_click=lambda: state.edit(random_like(state.plan, seed=int(state.plan.made_by.get("seed", -1)) + 1)),
        help="As many heads and neurons from every layer, chosen by lot. Each click draws anew.",
    )


if "resize" in st.session_state:
    plan_by_ratio(min(st.session_state.pop("resize"), MOST / 100), st.session_state.get("order", "standard"))
    st.rerun()  # the sidebar and the address bar are drawn before
work, numbers = st.columns([3, 2], gap="large")
with work:
    planned()
    master()
    presets()
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
