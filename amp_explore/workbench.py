"""The whole line from a model to its measurements, with the cache in front of everything that takes time.

The dashboard and the command line both work through a `Workbench`, so a plan measures the same in either. Every method
is plain and synchronous; what runs in the background is the caller's choice.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel

from amp_explore import assets, commonsense, criteria, speed, statistics
from amp_explore.calibration import TokenWindows, calibration_windows, evaluation_windows
from amp_explore.errors import AmpExploreError
from amp_explore.models.loading import LoadedModel, ModelPool
from amp_explore.perplexity import perplexity
from amp_explore.plan import PruningPlan
from amp_explore.progress import Progress, no_progress
from amp_explore.slicing import slice_model
from amp_explore.store import Key, Store

Data = Literal["offline", "hub"]

LIVE_WINDOWS = 4
"""Windows of 512 tokens that the dashboard measures perplexity on after each edit, unless asked otherwise."""

VERSION = 1
"""Part of every cache key; goes up whenever slicing or a measurement changes its numbers."""

_SLICED_KEPT = 3


class Workbench:
    """Models, cache and sliced copies of one process; safe to use from several threads."""

    def __init__(self, store: Store | None = None, pool: ModelPool | None = None) -> None:
        self.store = store or Store(assets.cache_root())
        self.pool = pool or ModelPool(_models_in_memory())
        self._sliced: OrderedDict[tuple[str, str, str], PreTrainedModel] = OrderedDict()
        self._lock = threading.Lock()

    def statistics(
        self, loaded: LoadedModel, windows: TokenWindows, *, progress: Progress = no_progress
    ) -> statistics.ActivationStatistics:
        """Activation statistics of the dense model, collected at most once."""
        compute = lambda: statistics.collect(loaded, windows, progress=progress)  # noqa: E731
        return self.store.statistics(_statistics_key(loaded, windows), compute)

    def has_statistics(self, loaded: LoadedModel, windows: TokenWindows) -> bool:
        """Whether `statistics` will answer at once."""
        return self.store.find_statistics(_statistics_key(loaded, windows)) is not None

    def scores(
        self,
        loaded: LoadedModel,
        windows: TokenWindows,
        criterion: str = "amp",
        *,
        progress: Progress = no_progress,
    ) -> criteria.Scores:
        """Scores of every unit by a criterion."""
        criteria.check(criterion)  # before the work
        return criteria.score(loaded, self.statistics(loaded, windows, progress=progress), criterion)

    def sliced(self, loaded: LoadedModel, plan: PruningPlan) -> PreTrainedModel:
        """The model sliced by the plan (the dense one itself for the empty plan); the latest few are kept."""
        if plan.is_empty:
            return loaded.model
        key = (plan.digest, loaded.dtype, str(loaded.device))
        with self._lock:
            if key not in self._sliced:
                while len(self._sliced) >= _SLICED_KEPT:
                    self._sliced.popitem(last=False)
                self._sliced[key] = slice_model(loaded, plan)
            self._sliced.move_to_end(key)
            return self._sliced[key]

    def perplexity(
        self,
        loaded: LoadedModel,
        plan: PruningPlan,
        windows: TokenWindows,
        *,
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """Perplexity under a plan, measured at most once."""
        result = self.store.measurement(
            "perplexity",
            loaded.shape.fingerprint,
            plan.digest,
            perplexity_setup(loaded, windows),
            lambda: perplexity(self.sliced(loaded, plan), windows, progress=progress),
        )
        return result | windows.describe()  # the same tokens may go by another name now

    def known_perplexity(self, loaded: LoadedModel, plan: PruningPlan, windows: TokenWindows) -> dict[str, Any] | None:
        """What `perplexity` would answer at once, or None."""
        setup = perplexity_setup(loaded, windows)
        return self.store.find_measurement("perplexity", loaded.shape.fingerprint, plan.digest, setup)

    def tasks(
        self,
        loaded: LoadedModel,
        plan: PruningPlan,
        tasks: Sequence[str],
        *,
        limit: int | None = None,
        data: Data = "offline",
        progress: Progress = no_progress,
    ) -> dict[str, dict[str, Any]]:
        """Commonsense accuracy under a plan, each task measured at most once."""
        commonsense.check(tasks, limit)
        results = {}
        for task in tasks:
            results[task] = self.store.measurement(
                "task",
                loaded.shape.fingerprint,
                plan.digest,
                task_setup(loaded, task, limit, data),
                lambda task=task: commonsense.evaluate(
                    self.sliced(loaded, plan),
                    loaded.tokenizer,
                    [task],
                    limit=limit,
                    data=data,
                    progress=progress,
                )[task],
            )
        return results

    def speed(
        self, loaded: LoadedModel, plan: PruningPlan, *, progress: Progress = no_progress, **options: int
    ) -> dict[str, Any]:
        """Tokens per second of dense and sliced in turn; always measured anew, and kept."""
        models = {"dense": loaded.model}
        if not plan.is_empty:
            models["pruned"] = self.sliced(loaded, plan)
        result = speed.measure(models, progress=progress, **options)
        setup = result["dense"]["setup"]
        self.store.put_measurement("speed", loaded.shape.fingerprint, plan.digest, setup, result)
        return result


def prepare_demo(progress: Progress = no_progress) -> None:
    """Fetch the demo model and compute what the dashboard's first screens show.

    Everything but the first time, this is quick.
    """
    assets.fetch(progress=progress)
    bench = Workbench()
    loaded = bench.pool.get("demo", progress=progress)
    bench.statistics(loaded, calibration_windows(loaded.tokenizer), progress=progress)
    live = evaluation_windows(loaded.tokenizer, windows=LIVE_WINDOWS)
    bench.perplexity(loaded, PruningPlan.empty(loaded.shape), live, progress=progress)


def _models_in_memory() -> int:
    asked = os.environ.get("AMP_EXPLORE_MODELS", "2")
    if not asked.isdigit() or int(asked) < 1:
        raise AmpExploreError(
            f"AMP_EXPLORE_MODELS is {asked!r}; set it to how many models may stay in memory, 1 or more"
        )
    return int(asked)


def perplexity_setup(loaded: LoadedModel, windows: TokenWindows) -> Key:
    """Everything but model and plan that a perplexity depends on."""
    return {"windows": windows.digest, **_numerics(loaded)}


def task_setup(loaded: LoadedModel, task: str, limit: int | None, data: Data) -> Key:
    """Everything but model and plan that a task's accuracy depends on."""
    harness = {"lm_eval": version("lm_eval"), "tokenizer": loaded.tokenizer_digest}
    return {"task": task, "limit": limit, "data": data, **harness, **_numerics(loaded)}


def _statistics_key(loaded: LoadedModel, windows: TokenWindows) -> Key:
    return {
        "kind": "statistics",
        "version": statistics.VERSION,
        "model": loaded.shape.fingerprint,
        "windows": windows.digest,
        **_numerics(loaded),
    }


def _numerics(loaded: LoadedModel) -> Key:
    return {
        "code": VERSION,
        "dtype": loaded.dtype,
        "device": loaded.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
