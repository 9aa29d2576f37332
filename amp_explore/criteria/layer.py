"""What a criterion sees of one layer, what it is, and what criteria have in common.

Notation: x_h (head_dim,) is head h's input to the output projection and W_h its columns there; a_j is neuron j's input
to the down projection and w_j (hidden,) its column there. The coupled weights of a unit are everything that goes with
it: the rows of q, k and v and the columns of o; the rows of up (and gate) and the column of down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from amp_explore.models.families import LayerParts, decoder_layers, layer_parts, weight_of
from amp_explore.models.loading import LoadedModel
from amp_explore.observe.gradients import LayerGradients
from amp_explore.observe.statistics import ActivationStatistics, LayerGrams, LayerStatistics


@dataclass(frozen=True)
class Evidence:
    """What was collected for a model, one entry per layer; criteria say which of it they need."""

    activations: ActivationStatistics = ()
    gradients: Sequence[LayerGradients] = ()
    grams: Sequence[LayerGrams] = ()


@dataclass(frozen=True)
class Method:
    """How one budget or one repair works; the words are shown to people. `needs` names fields of `Evidence`."""

    title: str
    says: str
    formula: str
    source: str
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layer:
    """All that a criterion may look at in one layer. What the criterion does not need may be None."""

    number: int
    parts: LayerParts
    activations: LayerStatistics | None
    gradients: LayerGradients | None
    grams: LayerGrams | None


Function = Callable[[Layer], torch.Tensor]


@dataclass(frozen=True)
class Criterion:
    """How one method scores a layer's units. `formula`, `source` and `says` are shown to people.

    `heads` is None where the method scores neurons alone. `needs` names fields of `Evidence`. `slow` criteria take
    seconds even when that is there.
    """

    title: str
    says: str
    formula: str
    source: str
    neurons: Function
    heads: Function | None
    needs: frozenset[str] = frozenset({"activations"})
    slow: bool = False

    @property
    def covers(self) -> str:
        return "heads and neurons" if self.heads else "neurons"


def layers_of(loaded: LoadedModel, evidence: Evidence) -> Iterator[Layer]:
    """What is known of each layer."""
    for number, layer in enumerate(decoder_layers(loaded.model)):
        known = [field[number] if field else None for field in vars(evidence).values()]
        yield Layer(number, layer_parts(layer, loaded.family), *known)


def numbers(projection) -> torch.Tensor:
    """(out, in) weights, float32, on the CPU."""
    return weight_of(projection).float().cpu()


def out(layer: Layer) -> torch.Tensor:
    """The weights (hidden, heads * head_dim) of the output projection."""
    return numbers(layer.parts.o)


def down(layer: Layer) -> torch.Tensor:
    """The weights (hidden, neurons) of the down projection."""
    return numbers(layer.parts.down)


def per_head(layer: Layer, columns: torch.Tensor) -> torch.Tensor:
    """(heads * head_dim,) -> (heads, head_dim)."""
    return columns.unflatten(0, (-1, layer.parts.head_dim))


def rms(layer: Layer, which: str) -> torch.Tensor:
    """(units,) `||X_j||_2` over the root of the number of tokens, which is the same for all."""
    mean, variance = (getattr(layer.activations, f"{which}_{moment}") for moment in ("mean", "variance"))
    return (variance + mean.square()).sqrt()


def norm(weights: torch.Tensor, order: int, dim: int | tuple[int, ...]) -> torch.Tensor:
    """The L1 or L2 norm over the dimensions."""
    return torch.linalg.vector_norm(weights, order, dim)


def whole(norms: Sequence[torch.Tensor], order: int) -> torch.Tensor:
    """The norms of units from those of their parts."""
    return norm(torch.stack(list(norms)), order, 0)
