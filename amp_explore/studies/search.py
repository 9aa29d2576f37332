"""Budgets found by trying: an evolutionary search over how many heads and neurons each layer loses.

One plan is varied at a time (as EvoPress, Sieberling et al. 2024, arXiv 2410.14649): a variant gives some units back to
one layer and takes as many parameters, or FLOPs, from another. Each generation tries a few variants on a little text,
and the best of them beside the plan itself on more text; the better one goes on. What is measured is the loss of the
model that is really there, repaired where the plan is to be repaired; least squares in one shot stand for a sequential
repair, which would take minutes each time.

Every variant is an ordinary plan whose loss is kept like any other, and the draw depends on the seed alone: a search
that was stopped finds its way back in seconds. The text is the calibration text, never the one that plans are judged
on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from amp_explore.budgets.allocation import Ranking
from amp_explore.models.loading import LoadedModel
from amp_explore.plan import PruningPlan, Repair
from amp_explore.progress import Progress, no_progress
from amp_explore.surgery.costs import removed_parameters
from amp_explore.texts.calibration import TokenWindows
from amp_explore.workbench import Workbench

VARIANTS = 4
"""Tried in each generation."""

FEW, MORE = 1, 16
"""Windows that variants are tried on, and that the best one has to win on."""

_TRIES = 1000  # draws for one variant: most are not possible where little is left
_PORTIONS = (0.02, 0.05, 0.1)  # of a layer's neurons that change at a time


@dataclass(frozen=True)
class _Budget:
    """How many heads and neurons each layer loses."""

    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def change(self, unit: str, layer: int, by: int) -> _Budget:
        counts = list(getattr(self, unit))
        counts[layer] += by
        return replace(self, **{unit: tuple(counts)})


@dataclass(frozen=True)
class _Aim:
    """The size that all plans have."""

    size: Callable[[PruningPlan], int]
    target: int
    neuron_sizes: tuple[int, ...]  # of one neuron in each layer

    @classmethod
    def at(cls, plan: PruningPlan, size: Callable[[PruningPlan], int]) -> _Aim:
        nothing = PruningPlan.empty(plan.shape)
        layers = range(len(plan.shape.layers))
        return cls(size, size(plan), tuple(size(nothing.with_units("neurons", each, [0], True)) for each in layers))

    def lacking(self, plan: PruningPlan, layer: int) -> int:
        """How many neurons more would have to go from a layer."""
        return round((self.target - self.size(plan)) / self.neuron_sizes[layer])


def search(
    bench: Workbench,
    loaded: LoadedModel,
    windows: TokenWindows,
    ranking: Ranking,
    start: PruningPlan,
    *,
    size: Callable[[PruningPlan], int] = removed_parameters,
    repair: Repair | None = None,
    generations: int = 30,
    seed: int = 0,
    locked: Collection[int] = (),
    progress: Progress = no_progress,
) -> PruningPlan:
    """The best plan of the size of `start` that was found; it is no worse than `start` on the windows searched on.

    `size` is what a plan removes, in parameters or FLOPs: no plan that is tried differs from `start` in it by more than
    half a neuron.
    `ranking` decides which units go from a layer. `progress` counts measurements, says the best loss so far, and may
    cancel before each layer of each.
    """
    few, more = (replace(windows, ids=windows.ids[:count]) for count in (FEW, MORE))
    repair = quick(repair)
    lot = np.random.default_rng(seed)
    steps = generations * (VARIANTS + 1) + 1
    done, said = 0, "search"

    def loss(plan: PruningPlan, text: TokenWindows) -> float:
        nonlocal done
        within = lambda *_: progress(min(done, steps - 1), steps, said)  # noqa: E731
        measured = bench.perplexity(loaded, plan.repaired(repair), text, progress=within)["loss"]
        done += 1
        return measured

    budget = _Budget(*(tuple(map(int, start.removed_per_layer(unit))) for unit in ("heads", "neurons")))
    best, aim = start, _Aim.at(start, size)
    least = loss(best, more)
    for _ in range(generations):
        said = f"search, best loss {least:.4f}"
        variants = [_variant(budget, ranking, aim, locked, start, lot) for _ in range(VARIANTS)]
        losses = [loss(plan, few) for _, plan in variants]
        tried, plan = variants[int(np.argmin(losses))]
        if (found := loss(plan, more)) < least:
            budget, best, least = tried, plan, found
    progress(steps, steps, f"search, best loss {least:.4f}")
    return best


def quick(repair: Repair | None) -> Repair | None:
    """What stands for a repair where many plans are measured: least squares in one shot for a sequential one."""
    return replace(repair, method="least-squares") if repair and repair.method == "sequential" else repair


def _variant(
    budget: _Budget,
    ranking: Ranking,
    aim: _Aim,
    locked: Collection[int],
    start: PruningPlan,
    lot: np.random.Generator,
) -> tuple[_Budget, PruningPlan]:
    """A budget in which one layer has more and another one less, both within one neuron of the same size."""
    layers = ranking.shape.layers
    free = [number for number in range(len(layers)) if number not in locked]
    for _ in range(_TRIES if len(free) > 1 else 0):
        spared, taxed = (int(number) for number in lot.choice(free, 2, replace=False))
        by_head = lot.random() < 0.4
        portion = 1 if by_head else max(1, round(lot.choice(_PORTIONS) * layers[spared].neurons))
        unit = "heads" if by_head else "neurons"
        tried = budget.change(unit, spared, -portion)
        if by_head and lot.random() < 0.5:
            tried = tried.change("heads", taxed, 1)
        for _ in range(2):  # a KV head may go, or come back, with the last head of its group
            plan = ranking.plan(tried.heads, tried.neurons) if _possible(tried, layers) else None
            if plan is None:
                break
            plan = plan.with_layer_of(start, locked)
            lacking = aim.lacking(plan, taxed)
            if not lacking:
                return tried, plan
            tried = tried.change("neurons", taxed, lacking)
    return budget, ranking.plan(budget.heads, budget.neurons).with_layer_of(start, locked)  # there is no other


def _possible(budget: _Budget, layers) -> bool:
    heads_and_neurons = zip(budget.heads, budget.neurons, layers, strict=True)
    return all(
        0 <= heads <= layer.heads and 0 <= neurons <= layer.neurons for heads, neurons, layer in heads_and_neurons
    )
