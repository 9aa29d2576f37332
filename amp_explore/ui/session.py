"""What one browser session holds, and what all sessions of a server share.

Shared: the workbench (models, cache) and the job queue. Held: which model is chosen, one undo stack of plans per model,
which layers are locked. Everything else is derived from these; model and plan are mirrored in the address bar, so a
link or a reload brings them back.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field, replace

import streamlit as st

from amp_explore.criteria import registry
from amp_explore.criteria.scores import Scores
from amp_explore.errors import AmpExploreError
from amp_explore.keeping.jobs import Job, JobRunner
from amp_explore.models.families import context_of
from amp_explore.models.loading import LoadedModel
from amp_explore.plan import PruningPlan, Repair, RepairMethod
from amp_explore.texts.calibration import TokenWindows, calibration_windows, evaluation_windows
from amp_explore.ui.text import sentence
from amp_explore.workbench import Workbench

DEFAULT_MODEL = "demo"
WINDOW = 512
"""Tokens in each window of text, unless the model has no room for so many."""
_LONGEST_TOKEN = 8000  # characters of plan that still go into the address bar; longer ones are kept on the server


@st.cache_resource
def workbench() -> Workbench:
    """The models and the cache, one for the whole server."""
    return Workbench()


@st.cache_resource
def runner() -> JobRunner:
    """The job queue, one for the whole server."""
    return JobRunner()


@dataclass
class History:
    """One undo stack."""

    plans: list[PruningPlan]
    position: int = 0

    @property
    def current(self) -> PruningPlan:
        return self.plans[self.position]

    def push(self, plan: PruningPlan) -> None:
        if plan == self.current:
            self.plans[self.position] = plan  # the dense model has nothing to repair, but what comes next may have
        else:
            self.plans[self.position + 1 :] = [plan]
            self.position += 1

    def step(self, by: int) -> None:
        self.position = min(max(self.position + by, 0), len(self.plans) - 1)


@dataclass
class Session:
    """The state of one browser session."""

    source: str = DEFAULT_MODEL
    dtype: str = "auto"
    last_good: tuple[str, str] | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    link: str = ""  # the plan in the address bar when the session began, until it is applied
    notices: list[str] = field(default_factory=list)
    histories: dict[str, History] = field(default_factory=dict)
    locked: dict[str, frozenset[int]] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)  # topics of jobs that this person cancelled
    scoring: Job | None = None  # what this person last waited for
    clicks: set[str] = field(default_factory=set)  # buttons that were clicked, until the page has seen it
    page: str = ""  # whose buttons these are
    loaded: LoadedModel | None = None  # set anew on every run, by the shell

    @property
    def fingerprint(self) -> str:
        return self.loaded.shape.fingerprint

    @property
    def history(self) -> History:
        return self.histories[self.fingerprint]

    @property
    def plan(self) -> PruningPlan:
        return self.history.current

    @property
    def dense(self) -> PruningPlan:
        return PruningPlan.empty(self.loaded.shape)

    @property
    def locked_layers(self) -> frozenset[int]:
        return self.locked.get(self.fingerprint, frozenset())

    def edit(self, plan: PruningPlan) -> None:
        """Make this the plan; layers that are locked stay as they are, and the repair too."""
        self.history.push(plan.with_layer_of(self.plan, self.locked_layers).repaired(self.plan.repair))

    def repair(self, repair: Repair | None) -> None:
        """Have what is left repaired like this, now and after every edit."""
        self.history.push(self.plan.repaired(repair))

    def toggle_lock(self, layer: int) -> None:
        self.locked[self.fingerprint] = self.locked_layers ^ {layer}

    def notice(self, message: object) -> None:
        """Show a message on top of the page until it is dismissed."""
        if str(message) not in self.notices:
            self.notices.append(str(message))

    def begin(self, loaded: LoadedModel) -> None:
        """Take up a loaded model: its undo stack, or a new one that starts with the plan of the link."""
        self.loaded, self.last_good = loaded, (self.source, self.dtype)
        if self.fingerprint in self.histories:
            return
        self.histories[self.fingerprint] = History([self.dense])
        token, self.link = self.link, ""
        if not token:
            return
        try:
            self.history.push(_plan_of_link(token, loaded))
        except AmpExploreError as error:
            self.notice(f"{sentence(error)} The page goes on with the dense model.")

    def mirror(self) -> None:
        """Put model and plan into the address bar."""
        wanted = {}
        if self.source != DEFAULT_MODEL:
            wanted["model"] = self.source
        if self.plan.repair or not self.plan.is_empty:
            token, own_text = self.plan.to_token(), self.plan.repair and self.plan.repair.text
            fits = len(token) <= _LONGEST_TOKEN and not own_text
            wanted["plan"] = token if fits else "~" + workbench().store.put_plan(self.plan)
        for name in ("model", "plan"):
            if name in wanted:
                st.query_params[name] = wanted[name]
            elif name in st.query_params:
                del st.query_params[name]


def _plan_of_link(token: str, loaded: LoadedModel) -> PruningPlan:
    if token.startswith("~"):
        return workbench().store.plan(token[1:], loaded.shape)
    return PruningPlan.from_token(token, loaded.shape)


def session() -> Session:
    """This browser session's state, begun from the address bar on the first run."""
    if "session" not in st.session_state:
        source = st.query_params.get("model", DEFAULT_MODEL)[:500]
        st.session_state.session = Session(source=source, link=st.query_params.get("plan", ""))
    return st.session_state.session


@dataclass(frozen=True)
class Calibration:
    """What to score on; hashable, so that windows and scores can be kept under it."""

    source: str = "wiki"
    text: str | None = None  # path of an own text
    windows: int = 64
    window: int = WINDOW

    def of(self, windows: int) -> Calibration:
        """As many windows of the same text."""
        return replace(self, windows=windows)


@dataclass(frozen=True)
class Scoring:
    """How units are scored: by which criterion, heads by another one where it is named, on which text."""

    calibration: Calibration = Calibration()
    criterion: str = "amp"
    heads: str | None = None

    @property
    def needs(self) -> frozenset[str]:
        return registry.needs(self.criterion, self.heads)

    @property
    def heads_by(self) -> str:
        return registry.heads_by(self.criterion, self.heads)

    def made_by(self) -> dict[str, str]:
        """What a plan says of it."""
        return {"criterion": self.criterion} | ({"heads_criterion": self.heads} if self.heads else {})


def repair_of(loaded: LoadedModel, method: RepairMethod, calibration: Calibration) -> Repair:
    """A repair fitted on the calibration windows."""
    windows = windows_of(loaded, calibration)
    workbench().know(loaded, windows)
    return Repair(method, windows.digest, **asdict(_within(loaded, calibration)))


def windows_of(loaded: LoadedModel, calibration: Calibration) -> TokenWindows:
    """The calibration windows; tokenising takes a second, so they are kept."""
    return _windows(loaded, loaded.tokenizer_digest, _within(loaded, calibration))


def window_of(loaded: LoadedModel) -> int:
    """Tokens in each window that the dashboard runs: 512, or what the model's positions have room for."""
    return min(WINDOW, (context_of(loaded.model) or WINDOW + 1) - 1)  # a BOS may come in front


def _within(loaded: LoadedModel, calibration: Calibration) -> Calibration:
    return replace(calibration, window=min(calibration.window, window_of(loaded)))


@st.cache_resource(max_entries=16, show_spinner="Reading the text …")
def _windows(_loaded: LoadedModel, tokenizer: str, calibration: Calibration) -> TokenWindows:
    return calibration_windows(
        _loaded.tokenizer,
        calibration.source,
        text=calibration.text,
        window=calibration.window,
        windows=calibration.windows,
    )


def evaluation(loaded: LoadedModel, count: int, source: str = "wiki", text: str | None = None) -> TokenWindows:
    """The first `count` windows of an evaluation text, or of the file `text`."""
    return _evaluation(loaded, loaded.tokenizer_digest, window_of(loaded), count, source, text)


@st.cache_resource(max_entries=16, show_spinner="Reading the text …")
def _evaluation(
    _loaded: LoadedModel, tokenizer: str, window: int, count: int, source: str, text: str | None
) -> TokenWindows:
    return evaluation_windows(_loaded.tokenizer, source, text=text, window=window, windows=count)


@st.cache_resource(max_entries=16, show_spinner=False)
def _scores(
    _loaded: LoadedModel, fingerprint: str, dtype: str, windows: str, _windows: TokenWindows, scoring: Scoring
) -> Scores:
    return workbench().scores(_loaded, _windows, scoring.criterion, scoring.heads)


def scores_of(loaded: LoadedModel, scoring: Scoring) -> Scores:
    """Scores whose evidence is there already, kept by everything they depend on."""
    windows = windows_of(loaded, scoring.calibration)
    return _scores(loaded, loaded.shape.fingerprint, loaded.dtype, windows.digest, windows, scoring)
