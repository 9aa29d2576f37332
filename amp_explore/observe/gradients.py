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

from amp_explore.errors import AmpExploreError
from amp_explore.models.families import LayerParts, as_linear, decoder_layers, inputs_of, layer_parts, share
from amp_explore.models.loading import LoadedModel
from amp_explore.models.sharding import refuse_spread
from amp_explore.observe.limits import first_not_finite, not_finite, require_finite_layers, require_room
from amp_explore.observe.statistics import add_to
from amp_explore.progress import Progress, no_progress
from amp_explore.texts.calibration import TokenWindows

VERSION = 1
"""Part of the keys of kept gradients and scores; goes up whenever the numbers below change."""


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
        AmpExploreError: weights are spread over devices or offloaded, no window has two tokens, or one is longer than
            the model's context.
        NotFinite: what the model computes is NaN or infinite.
    """
    require_room(loaded.model, windows)
    refuse_spread(loaded.model, "gradients need", "take a criterion that needs none")
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
            loss = F.cross_entropy(logits[:-1].float(), ids[1:])
            if not loss.isfinite():
                raise not_finite(loaded.model, first_not_finite(loaded.model, ids[None]) or "the loss")
            loss.backward()
    progress(len(usable), len(usable), "gradients")
    found = tuple(LayerGradients(**layer.means(len(usable))) for layer in sums)
    require_finite_layers(loaded.model, found, "the gradient in layer")
    return found


def _trainable_copy(loaded: LoadedModel) -> nn.Module:
    """A model on the same numbers, in which the weights of heads and neurons, and nothing else, have gradients."""
    model = share(loaded.model)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    for layer in decoder_layers(model):
        for module in _modules(layer_parts(layer, loaded.family)):
            module.weight.requires_grad_(True)
    return model


def _modules(parts: LayerParts) -> list[nn.Module]:
    """The modules whose weights go with heads or neurons, each once."""
    coupled = (*parts.with_head, *parts.with_kv_head, *parts.up)
    return list(dict.fromkeys([*(part.module for part in coupled), parts.o, parts.down]))


class _LayerSums:
    """One layer's sums over windows, float64, and the hooks that add to them."""

    def __init__(self, parts: LayerParts) -> None:
        self.sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        self.parts = parts
        self.heads = inputs_of(parts.o) // parts.head_dim
        for module in _modules(parts):
            module.weight.register_post_accumulate_grad_hook(self._weights_hook(module))
        parts.o.register_forward_pre_hook(self._inputs_hook("head", parts.head_dim))
        parts.down.register_forward_pre_hook(self._inputs_hook("neuron", 1))

    def means(self, windows: int) -> dict[str, torch.Tensor]:
        return {name: (total / windows).float().cpu() for name, total in self.sums.items()}

    def _weights_hook(self, module: nn.Module):
        def add(weight: nn.Parameter) -> None:
            products = weight.detach().float() * weight.grad.float()
            weight.grad = None
            for part in (*self.parts.with_head, *self.parts.with_kv_head):
                if part.module is module:
                    self._add_products("head", self._by_head(as_linear(part, products)))
            for part in self.parts.up:
                if part.module is module:
                    self._add_products("neuron", as_linear(part, products))
            if module is self.parts.o:
                self._add_products("head", self._by_head(as_linear(module, products).T), columns=True)
            if module is self.parts.down:
                self._add_products("neuron", as_linear(module, products).T, columns=True)

        return add

    def _by_head(self, products: torch.Tensor) -> torch.Tensor:
        """Rows of q, k or v, or columns of o, (units * head_dim, n) -> (heads, head_dim * n)."""
        units = products.unflatten(0, (-1, self.parts.head_dim)).flatten(1)
        return units.repeat_interleave(self.heads // len(units), 0)

    def _add_products(self, unit: str, products: torch.Tensor, columns: bool = False) -> None:
        """`products` (units, n): each weight of a unit times its gradient."""
        self._add(f"{unit}_product", products.sum(1))
        self._add(f"{unit}_square", products.square().sum(1))
        if columns:
            self._add(f"{unit}_column_magnitude", products.abs().sum(1))

    def _inputs_hook(self, unit: str, size: int):
        def watch(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0]  # (1, T, units * size), or (T, units * size)

            def add(gradient: torch.Tensor) -> None:
                products = (x.detach().float() * gradient.float()).flatten(0, -2).unflatten(-1, (-1, size))
                self._add(f"{unit}_relevance", products.sum(-1).abs().mean(0))

            x.register_hook(add)

        return watch

    def _add(self, name: str, values: torch.Tensor) -> None:
        add_to(self.sums, **{name: values})
