"""Tiny random models of every family, loaded, and random plans for them."""

from __future__ import annotations

from functools import lru_cache

import torch

from amp_explore.measure.identities import plan_by_lot
from amp_explore.models.loading import LoadedModel, from_model
from amp_explore.models.tiny import (  # noqa: F401
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    NEURONS,
    SPECS,
    VOCABULARY,
)
from amp_explore.models.tiny import (
    make as as_published,
)
from amp_explore.plan import PruningPlan
from amp_explore.texts.calibration import TokenWindows

FAMILIES = tuple(SPECS)
LENGTHS = (3, 17, 9, 17, 1, 30)


@lru_cache
@torch.inference_mode(False)  # kept for later tests, whatever mode this one runs in
def tiny(name: str, dtype: str = "float32") -> LoadedModel:
    """A tiny random model, loaded."""
    return from_model(as_published(name, dtype), None, source=name)


def random_plan(loaded: LoadedModel, seed: int, *, extreme: bool = True) -> PruningPlan:
    """A plan in which every layer is different."""
    return plan_by_lot(loaded.shape, seed, extreme=extreme)


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def everything_removed(loaded: LoadedModel) -> PruningPlan:
    plan = PruningPlan.empty(loaded.shape)
    last = len(loaded.shape.layers) - 1
    return plan.with_box("heads", (0, 0, last, 10**6), True).with_box("neurons", (0, 0, last, 10**6), True)


def windows_of(count, length, *, bos=False, seed=0) -> TokenWindows:
    ids = tokens(count, length, seed)
    if bos:
        ids = torch.cat((torch.ones(count, 1, dtype=torch.long), ids), 1)
    return TokenWindows(tuple(ids), "made up", bos)


def prompts(*lengths: int) -> TokenWindows:
    return TokenWindows(tuple(tokens(1, length, seed)[0] for seed, length in enumerate(lengths)), "made up", False)
