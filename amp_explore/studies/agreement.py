"""How well scores agree: with each other, and with the measured truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

_DRAWS = 1000


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation with a 95 % interval, percentiles of a bootstrap; NaN where it is not defined."""

    value: float
    low: float
    high: float


def overall(one: Sequence[np.ndarray], other: Sequence[np.ndarray], seed: int = 0) -> Agreement:
    """Over all units of the model at once, units drawn anew for the interval. NaN scores are left out."""
    a, b = (np.concatenate([np.asarray(layer, float) for layer in layers]) for layers in (one, other))
    there = np.isfinite(a) & np.isfinite(b)
    a, b = a[there], b[there]
    if len(a) < 3:
        return Agreement(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(len(a), size=(_DRAWS, len(a)))
    return Agreement(float(_spearman(a, b)), *_interval(_spearman(a[drawn], b[drawn])))


def within_layers(one: Sequence[np.ndarray], other: Sequence[np.ndarray], seed: int = 0) -> Agreement:
    """The mean over layers of the correlation within each, layers drawn anew for the interval."""
    each = per_layer(one, other)
    each = each[np.isfinite(each)]
    if not len(each):
        return Agreement(np.nan, np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(len(each), size=(_DRAWS, len(each)))
    return Agreement(float(each.mean()), *_interval(each[drawn].mean(1)))


def per_layer(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> np.ndarray:
    """(layers,) the correlation within each layer; NaN where fewer than three units are known or all are alike."""
    found = []
    for a, b in zip(one, other, strict=True):
        there = np.isfinite(a) & np.isfinite(b)
        found.append(float(_spearman(a[there], b[there])) if there.sum() > 2 else np.nan)
    return np.array(found)


def between(scores: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """(n, n) for n sets of scores without NaN: the mean over layers of the correlation within each, of every pair."""
    found = []
    for layers in zip(*scores, strict=True):
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append(np.corrcoef(rankdata(np.stack(layers), axis=1)))  # scores that are all alike give NaN
    return np.atleast_2d(np.nanmean(found, axis=0))


def ranks(layers: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rank of each unit in the whole model as a share: 0 for the lowest score, 1 for the highest."""
    values = np.concatenate(layers)
    shares = (rankdata(values, nan_policy="omit") - 1) / max(np.isfinite(values).sum() - 1, 1)
    return np.split(shares, np.cumsum([len(layer) for layer in layers])[:-1])


def overlap(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Of the units that one plan removes (bool, one array per layer), the share that the other removes too."""
    a, b = np.concatenate(one), np.concatenate(other)
    return float((a & b).sum() / a.sum()) if a.any() else np.nan


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of ranks along the last axis; NaN where one side has but one value."""
    a, b = (rankdata(values, axis=-1) for values in (a, b))
    a, b = (values - values.mean(-1, keepdims=True) for values in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.025, 0.975]) if np.isfinite(values).any() else (np.nan, np.nan)
    return float(low), float(high)
