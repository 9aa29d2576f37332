"""Criteria that look at the weights alone, and the control by lot."""

from __future__ import annotations

import torch

from amp_explore.criteria.layer import Function, Layer, down, norm, numbers, out, whole
from amp_explore.models.families import inputs_of


def magnitude_heads(order: int) -> Function:
    """(heads,) L1 or L2 norm of the coupled weights (Han et al. 2015; Zhu and Gupta 2017); a KV head's count for every
    head of its group."""

    def norms(layer: Layer) -> torch.Tensor:
        parts, size = layer.parts, layer.parts.head_dim
        columns = norm(out(layer).unflatten(1, (-1, size)), order, (0, 2))  # (heads,)
        coupled = (*parts.with_head, *parts.with_kv_head)
        rows = [norm(numbers(each).unflatten(0, (-1, size)), order, (1, 2)) for each in coupled]
        return whole([columns, *(units.repeat_interleave(len(columns) // len(units)) for units in rows)], order)

    return norms


def magnitude_neurons(order: int) -> Function:
    """(neurons,) L1 or L2 norm of the coupled weights (Han et al. 2015; Zhu and Gupta 2017)."""
    return lambda layer: whole(
        [norm(down(layer), order, 0), *(norm(numbers(up), order, 1) for up in layer.parts.up)], order
    )


def spectrum_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `sum_i (s_i - s_i')`: how far the singular values s of the up (and gate) and the down projection fall
    when the neuron's row or column goes, after PruneNet (Sengupta et al. 2025, arXiv 2501.15296).

    Without w, the eigenvalues of `W W^T - w w^T` are `s_i^2 - (u_i . w)^2` to first order, u_i the singular vectors.
    """
    total = torch.zeros(())
    for units in (*(numbers(up) for up in layer.parts.up), down(layer).T):  # (neurons, n)
        values, vectors = torch.linalg.eigh((units.T @ units).double())  # (n,), columns of (n, n)
        rank = min(units.shape)
        values, vectors = values[-rank:].clamp(min=0), vectors[:, -rank:]
        lost = (units.double() @ vectors).square()  # (neurons, rank)
        total = total + (values.sqrt() - (values - lost).clamp(min=0).sqrt()).sum(1)
    return total


def heads_by_lot(layer: Layer) -> torch.Tensor:
    """(heads,) drawn by lot, the same on every call."""
    return _by_lot(layer.number, "heads", inputs_of(layer.parts.o) // layer.parts.head_dim)


def neurons_by_lot(layer: Layer) -> torch.Tensor:
    """(neurons,) drawn by lot, the same on every call."""
    return _by_lot(layer.number, "neurons", inputs_of(layer.parts.down))


def _by_lot(layer: int, unit: str, count: int) -> torch.Tensor:
    lot = torch.Generator().manual_seed(2 * layer + (unit == "neurons"))
    return torch.rand(count, generator=lot)
