"""A second pass over the calibration windows, forwards and backwards, for the criteria that need gradients.

Weights' gradients exist for one projection and one window at a time and are reduced to a few numbers per unit at once,
so nothing the size of the model is kept. L is the mean next-token loss of a window, g its gradient for a weight w.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from amp_explore.calibration import TokenWindows
from amp_explore.errors import AmpExploreError
from amp_explore.models.families import LayerParts, decoder_layers, layer_parts, share
from amp_explore.models.loading import LoadedModel
from amp_explore.progress import Progress, no_progress

VERSION = 1
"""Part of every cache key; goes up whenever the numbers below change."""


@dataclass(frozen=True, eq=False)
class LayerGradients:
    """Means over windows, float32; biases are left out. A KV head's weights count for every head of its group."""

    head_product: torch.Tensor
    """(heads,) `sum w g` over the coupled weights."""
    head_square: torch.Tensor
    """(heads,) `sum (w g)^2` over the coupled weights."""
    head_column_magnitude: torch.Tensor
    """(heads,) `sum |w g|` over the columns of the output projection."""
    head_relevance: torch.Tensor
    """(heads,) `|x_h . dL/dx_h|`, the mean over tokens, x_h the head's input to the output projection."""
    neuron_product: torch.Tensor
    """(neurons,) as for heads, and so are the other three."""
    neuron_square: torch.Tensor
    neuron_column_magnitude: torch.Tensor
    neuron_relevance: torch.Tensor


GradientStatistics = tuple[LayerGradients, ...]


def collect(loaded: LoadedModel, windows: TokenWindows, *, progress: Progress = no_progress) -> GradientStatistics:
    """Run the dense model forwards and backwards over the windows, one at a time. `progress` may cancel before each.

    Raises:
        AmpExploreError: weights are spread over devices or offloaded, or no window has two tokens.
    """
    if hasattr(loaded.model, "hf_device_map"):
        raise AmpExploreError("gradients need the whole model on one device; take a criterion that needs none")
    usable = [ids for ids in windows.ids if len(ids) > 1]
    if not usable:
        raise AmpExploreError("no calibration window has two tokens, so there is no loss; take a longer text")
    model = _trainable_copy(loaded)
    sums = [_LayerSums(layer_parts(layer, loaded.family)) for layer in decoder_layers(model)]
    with torch.inference_mode(False), torch.enable_grad():
        for number, ids in enumerate(usable):
            progress(number, len(usable), "gradients")
            ids = ids.to(loaded.device)
            logits = model(ids[None], use_cache=False).logits[0]  # (T, V)
            F.cross_entropy(logits[:-1].float(), ids[1:]).backward()
    progress(len(usable), len(usable), "gradients")
    return tuple(LayerGradients(**layer.means(len(usable))) for layer in sums)


def _trainable_copy(loaded: LoadedModel) -> nn.Module:
    """A model on the same numbers, in which the weights of heads and neurons, and nothing else, have gradients."""
    model = share(loaded.model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    for layer in decoder_layers(model):
        parts = layer_parts(layer, loaded.family)
        for linear in (parts.q, parts.k, parts.v, parts.o, *parts.up, parts.down):
            linear.weight.requires_grad_(True)
    return model


class _LayerSums:
    """One layer's sums over windows, float64, and the hooks that add to them."""

    def __init__(self, parts: LayerParts) -> None:
        self.sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        size = parts.head_dim
        heads = parts.o.in_features // size

        def by_head(weights: torch.Tensor) -> torch.Tensor:
            """(rows, n) of q, k or v, or the columns of o -> (heads, ...)."""
            units = weights.unflatten(0, (-1, size)).flatten(1)
            return units.repeat_interleave(heads // len(units), 0)

        for linear in (parts.q, parts.k, parts.v):
            linear.weight.register_post_accumulate_grad_hook(self._weights("head", by_head))
        parts.o.weight.register_post_accumulate_grad_hook(self._weights("head", lambda w: by_head(w.T), True))
        for linear in parts.up:
            linear.weight.register_post_accumulate_grad_hook(self._weights("neuron", lambda w: w))
        parts.down.weight.register_post_accumulate_grad_hook(self._weights("neuron", lambda w: w.T, True))
        parts.o.register_forward_pre_hook(self._inputs("head", size))
        parts.down.register_forward_pre_hook(self._inputs("neuron", 1))

    def means(self, windows: int) -> dict[str, torch.Tensor]:
        return {name: (total / windows).float().cpu() for name, total in self.sums.items()}

    def _weights(self, unit: str, by_unit, columns: bool = False):
        def add(weight: nn.Parameter) -> None:
            products = by_unit(weight.detach().float() * weight.grad.float())  # (units, n)
            weight.grad = None
            self._add(f"{unit}_product", products.sum(1))
            self._add(f"{unit}_square", products.square().sum(1))
            if columns:
                self._add(f"{unit}_column_magnitude", products.abs().sum(1))

        return add

    def _inputs(self, unit: str, size: int):
        def watch(linear: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0]  # (1, T, units * size)

            def add(gradient: torch.Tensor) -> None:
                products = (x.detach().float() * gradient.float())[0].unflatten(-1, (-1, size)).sum(-1)  # (T, units)
                self._add(f"{unit}_relevance", products.abs().mean(0))

            x.register_hook(add)

        return watch

    def _add(self, name: str, values: torch.Tensor) -> None:
        self.sums[name] = self.sums[name].to(values.device) + values.double()
