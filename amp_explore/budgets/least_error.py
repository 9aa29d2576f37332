"""Budgets by what fitting anew cannot mend.

When units of a block (the attention or the MLP of a layer) are gone and its output projection is fitted anew, an error
stays behind in what the block adds to the residual stream. It follows from the Gram matrix of the projection's input;
no model is run. How much the error matters is taken to be its size beside the stream that it is added to, so the budget
of the least sum of these takes from each block as long as what the next unit costs per parameter is lowest there. ZipLM
(Kurtic et al. 2023, arXiv 2302.04089) weighs the same errors by measured losses instead.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import nn

from amp_explore.budgets.allocation import Ranking
from amp_explore.criteria.by_grams import ridged
from amp_explore.criteria.layer import Evidence, layers_of
from amp_explore.criteria.scores import Scores
from amp_explore.errors import AmpExploreError
from amp_explore.models.families import weight_of
from amp_explore.models.loading import LoadedModel
from amp_explore.progress import Progress, no_progress
from amp_explore.surgery.costs import removed_layer_parameters

VERSION = 1
"""Part of the key of kept values; goes up whenever they change."""

EXPONENT = 0.85
"""Of the stream's inverse power. With 1, an error counts as it is beside the stream where it arises, with 0 beside the
stream that leaves the model. Of 0.6 to 1, this did best on the demo model's calibration text, with 0.8 and 0.9 near."""


def errors_per_parameter(
    loaded: LoadedModel, evidence: Evidence, ranking: Ranking, *, progress: Progress = no_progress
) -> Scores:
    """What each unit adds, as it goes in the ranking's order, to its block's error beside the residual stream, per
    parameter: (units,) float64 for each layer.

    Where a later unit costs less than an earlier one they go together, at what they cost together, so that along the
    ranking the values never fall. `evidence` needs activations and Gram matrices. `progress` is called before each
    layer, and may cancel.
    """
    of_heads = _head_sizes(ranking)
    heads, neurons = [], []
    with torch.inference_mode():
        for layer in layers_of(loaded, evidence):
            number, parts = layer.number, layer.parts
            progress(number, len(loaded.shape.layers), f"least error, layer {number}")
            weight = float(layer.activations.inverse_power) ** EXPONENT
            each = ranking.shape.layers[number].neuron_parameters
            for found, projection, gram, order, size, parameters in (
                (heads, parts.o, layer.grams.attention, ranking.heads[number], parts.head_dim, of_heads[number]),
                (neurons, parts.down, layer.grams.mlp, ranking.neurons[number], 1, each),
            ):
                errors = weight * refit_errors(projection, gram, order, size)
                parameters = np.broadcast_to(parameters, errors.shape)
                values = np.empty(len(order))
                values[order] = isotonic_regression(errors / parameters, weights=parameters).x if len(order) else 0
                found.append(values)
    return Scores(tuple(heads), tuple(neurons))


def refit_errors(projection: nn.Module, gram: torch.Tensor, order: np.ndarray, size: int) -> np.ndarray:
    """What each unit of `size` inputs adds to `min_W' E||W x - W' x_kept||^2` when the units of a projection W (out,
    units * size) go in this order: (units,) float64, in that order. `gram` (units * size, units * size) is E[x x^T].

    With the inputs sorted from what goes last to what goes first and G = C C^T (Cholesky), the error without the last
    inputs S is `tr(W_S (G_SS - G_SK G_KK^-1 G_KS) W_S^T) = ||W_S C_SS||^2`, the squares of the last columns of W C.

    Raises `AmpExploreError` where G is no Gram matrix, or not one of finite numbers.
    """
    weights = weight_of(projection).double()
    units = torch.from_numpy(order[::-1].copy()).to(weights.device)
    inputs = torch.arange(len(gram), device=weights.device).view(-1, size)[units].flatten()
    factor, failed = torch.linalg.cholesky_ex(ridged(gram.to(weights))[inputs][:, inputs])
    if failed or not factor.isfinite().all():
        raise AmpExploreError("the Gram matrices of the calibration text have no solution; take float32, or other text")
    return (weights[:, inputs] @ factor).square().sum(0).view(-1, size).sum(1).flip(0).cpu().numpy()


def _head_sizes(ranking: Ranking) -> list[np.ndarray]:
    """(heads,) of each layer: the parameters that go with each head in the ranking's order, a KV head's with its
    last."""
    layers = ranking.shape.layers
    plans = [
        ranking.plan([min(gone, layer.heads) for layer in layers], [0] * len(layers))
        for gone in range(max(layer.heads for layer in layers) + 1)
    ]
    return [
        np.diff([removed_layer_parameters(plan, number) for plan in plans[: layer.heads + 1]])
        for number, layer in enumerate(layers)
    ]
