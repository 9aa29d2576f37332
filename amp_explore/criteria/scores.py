"""One score for each unit, and the file they travel in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from amp_explore.errors import AmpExploreError
from amp_explore.models.shapes import ModelShape


@dataclass(frozen=True, eq=False)
class Scores:
    """One float32 array per layer: `heads[l]` (heads,), `neurons[l]` (neurons,)."""

    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]

    def to_safetensors(self, **metadata: str) -> bytes:
        """Tensors `heads` and `neurons` (layers, units); where layers differ in width, `heads.0`, `heads.1`, ...
        instead."""
        return save(tensors_of(heads=self.heads, neurons=self.neurons), metadata)

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


def tensors_of(**units: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """One tensor (layers, units) by name; where layers differ in width, one for each: `name.0`, `name.1`, ..."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layers in units.items():
        if len({len(layer) for layer in layers}) == 1:
            tensors[name] = torch.from_numpy(np.stack(layers))
        else:
            tensors |= {f"{name}.{number}": torch.from_numpy(layer) for number, layer in enumerate(layers)}
    return tensors


def scores_by_lot(shape: ModelShape, seed: int = 0) -> Scores:
    """Scores that mean nothing, for models that know nothing."""
    lot = np.random.default_rng(seed)
    drawn = (tuple(lot.random(width, np.float32) for width in widths) for widths in (shape.heads, shape.neurons))
    return Scores(*drawn)
