"""One score for each unit, and the file they travel in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from amp_explore.errors import AmpExploreError
from amp_explore.files import regular_size
from amp_explore.models.shapes import ModelShape


@dataclass(frozen=True, eq=False)
class Scores:
    """One float32 array per layer: `heads[l]` (heads,), `neurons[l]` (neurons,)."""

    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]

    def to_safetensors(self, **metadata: str) -> bytes:
        """Tensors `heads` and `neurons` (layers, units); where layers differ in width, `heads.0`, `heads.1`, ...
        instead."""
        return saved(tensors_of(heads=self.heads, neurons=self.neurons), metadata)

    @classmethod
    def load(cls, path: str | Path, shape: ModelShape) -> Scores:
        """Read scores for the model of this shape. Raises `AmpExploreError` where they do not fit."""
        try:
            regular_size(path)
            with safe_open(path, "pt") as file:
                made_for = (file.metadata() or {}).get("fingerprint", shape.fingerprint)
                found = {unit: _layers_in(file, unit, getattr(shape, unit)) for unit in ("heads", "neurons")}
        except Exception as error:  # a missing file, a pipe, a truncated one, another format
            reason = getattr(error, "strerror", None) or error
            raise AmpExploreError(f"{path}: cannot be read as scores ({reason}); make it with `score`") from None
        if made_for != shape.fingerprint:
            raise AmpExploreError(
                f"{path}: scores of another model (fingerprint {made_for[:40]!r}); score this model first"
            )
        for unit, layers in found.items():
            if layers is None:
                raise AmpExploreError(f"{path}: the {unit} do not fit this model; score this model first")
            if not all(np.isfinite(layer).all() for layer in layers):
                raise AmpExploreError(f"{path}: some {unit} have no finite score; score this model again")
        return cls(**found)


def _layers_in(file: safe_open, unit: str, widths: Sequence[int]) -> tuple[np.ndarray, ...] | None:
    """One array (units,) for each layer; None where the file has none that fit. Others are not read: they may be
    large."""
    there = set(file.keys())
    stacked = unit in there
    names = [unit] if stacked else [f"{unit}.{number}" for number in range(len(widths))]
    expected = [[len(widths), widths[0]]] if stacked else [[width] for width in widths]
    if not {*names} <= there or [file.get_slice(name).get_shape() for name in names] != expected:
        return None
    layers = file.get_tensor(unit) if stacked else map(file.get_tensor, names)
    found = tuple(layer.float().numpy() for layer in layers)
    return found if [len(layer) for layer in found] == [*widths] else None


def tensors_of(**units: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """One tensor (layers, units) by name; where layers differ in width, one for each: `name.0`, `name.1`, ..."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layers in units.items():
        if len({len(layer) for layer in layers}) == 1:
            tensors[name] = torch.from_numpy(np.stack(layers))
        else:
            tensors |= {f"{name}.{number}": torch.from_numpy(layer) for number, layer in enumerate(layers)}
    return tensors


def saved(tensors: dict[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. Of names that are no UTF-8, as those of files may be, the odd bytes are written out."""
    return save(tensors, {key: text.encode(errors="backslashreplace").decode() for key, text in metadata.items()})


def scores_by_lot(shape: ModelShape, seed: int = 0) -> Scores:
    """Scores that mean nothing, for models that know nothing."""
    lot = np.random.default_rng(seed)
    drawn = (tuple(lot.random(width, np.float32) for width in widths) for widths in (shape.heads, shape.neurons))
    return Scores(*drawn)
