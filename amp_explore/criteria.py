"""Which units matter: activation statistics and weights in, one score per head and per neuron out.

A criterion is two small pure functions, one layer at a time; the lowest scores go first. `CRITERIA` is the one list
that the dashboard, the command line and the documentation read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from amp_explore.errors import AmpExploreError
from amp_explore.models.families import LayerParts, ModelShape, decoder_layers, layer_parts, weight_of
from amp_explore.models.loading import LoadedModel
from amp_explore.statistics import ActivationStatistics


@dataclass(frozen=True, eq=False)
class Scores:
    """One float32 array per layer: `heads[l]` (heads,), `neurons[l]` (neurons,)."""

    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]

    def to_safetensors(self, **metadata: str) -> bytes:
        """Tensors `heads` and `neurons` (layers, units); where layers differ in width `heads.0`, `heads.1`, ...

        instead.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, layers in (("heads", self.heads), ("neurons", self.neurons)):
            if len({len(layer) for layer in layers}) == 1:
                tensors[name] = torch.from_numpy(np.stack(layers))
            else:
                tensors |= {f"{name}.{number}": torch.from_numpy(layer) for number, layer in enumerate(layers)}
        return save(tensors, metadata)

    @classmethod
    def load(cls, path: str | Path, shape: ModelShape) -> Scores:
        """Read scores for the model of this shape. Raises `AmpExploreError` where they do not fit."""
        try:
            with safe_open(path, "pt") as file:
                tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except Exception as error:  # a missing file, a truncated one, another format
            raise AmpExploreError(f"{path}: cannot be read as scores ({error}); make it with `score`") from None
        made_for = metadata.get("fingerprint", shape.fingerprint)
        if made_for != shape.fingerprint:
            raise AmpExploreError(f"{path}: scores of another model (fingerprint {made_for}); score this model first")
        fields = []
        for name, widths in (("heads", shape.heads), ("neurons", shape.neurons)):
            if name in tensors:
                layers = list(torch.atleast_2d(tensors[name]))
            else:
                layers = [tensors.get(f"{name}.{number}") for number in range(len(widths))]
            found = [None if layer is None else tuple(layer.shape) for layer in layers]
            if found != [(width,) for width in widths]:
                raise AmpExploreError(f"{path}: the {name} do not fit this model; score this model first")
            if not all(layer.isfinite().all() for layer in layers):
                raise AmpExploreError(f"{path}: some {name} have no finite score; score this model again")
            fields.append(tuple(layer.float().numpy() for layer in layers))
        return cls(*fields)


def scores_by_lot(shape: ModelShape, seed: int = 0) -> Scores:
    """Scores that mean nothing, for models that know nothing."""
    lot = np.random.default_rng(seed)
    drawn = (tuple(lot.random(width, np.float32) for width in widths) for widths in (shape.heads, shape.neurons))
    return Scores(*drawn)


@dataclass(frozen=True)
class Criterion:
    """How one method scores a layer's units. `formula` and `source` are shown to people."""

    title: str
    formula: str
    source: str
    heads: Callable[[ActivationStatistics, LayerParts, int], torch.Tensor]
    neurons: Callable[[ActivationStatistics, LayerParts, int], torch.Tensor]


def amp_heads(statistics: ActivationStatistics, parts: LayerParts, layer: int) -> torch.Tensor:
    """(heads,) `mean || x_h W_h ||_1`: how much head h writes to the residual stream (AMP, arXiv 2504.21174)."""
    return statistics.head_projection[layer]


def amp_neurons(statistics: ActivationStatistics, parts: LayerParts, layer: int) -> torch.Tensor:
    """(neurons,) `mean |a_j|`, a the input of the down projection (AMP, arXiv 2504.21174)."""
    return statistics.neuron_magnitude[layer]


def projected_neurons(statistics: ActivationStatistics, parts: LayerParts, layer: int) -> torch.Tensor:
    """(neurons,) `mean |a_j| * ||w_j||_1`:

    AMP's head score carried over to neurons, since `||a_j w_j||_1 = |a_j| ||w_j||_1`.
    """
    column_norms = torch.linalg.vector_norm(weight_of(parts.down), 1, dim=0, dtype=torch.float32)
    return statistics.neuron_magnitude[layer] * column_norms.cpu()


CRITERIA: dict[str, Criterion] = {
    "amp": Criterion(
        title="AMP",
        formula="head: mean ‖x_h W_h‖₁ · neuron: mean |a_j|",
        source="Mugnaini et al. 2025, arXiv 2504.21174",
        heads=amp_heads,
        neurons=amp_neurons,
    ),
    "amp-projection": Criterion(
        title="AMP, neurons projected",
        formula="head: mean ‖x_h W_h‖₁ · neuron: mean |a_j| · ‖w_j‖₁",
        source="AMP's head score applied to neurons",
        heads=amp_heads,
        neurons=projected_neurons,
    ),
}


def check(criterion: str) -> None:
    """Raise `AmpExploreError` unless `score` would take this criterion."""
    if criterion not in CRITERIA:
        raise AmpExploreError(f"criterion {criterion!r} is not known; use one of {', '.join(CRITERIA)}")


def score(loaded: LoadedModel, statistics: ActivationStatistics, criterion: str = "amp") -> Scores:
    """Scores of every unit; no forward pass. Raises `AmpExploreError` for an unknown criterion."""
    check(criterion)
    chosen = CRITERIA[criterion]
    layers = [layer_parts(layer, loaded.family) for layer in decoder_layers(loaded.model)]
    return Scores(
        heads=tuple(chosen.heads(statistics, parts, number).numpy() for number, parts in enumerate(layers)),
        neurons=tuple(chosen.neurons(statistics, parts, number).numpy() for number, parts in enumerate(layers)),
    )
