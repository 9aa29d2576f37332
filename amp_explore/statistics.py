"""One pass over the calibration windows: everything the criteria need to know about activations, as sums.

Activations are reduced where they arise and never kept, so memory does not grow with the calibration text: a hook on
each output projection sees its input x (B, T, heads * head_dim) and one on each down projection its input a (B, T,
neurons).

Averages are taken as AMP does (arXiv 2504.21174): over the tokens of each prompt first, then over the prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from amp_explore.calibration import TokenWindows
from amp_explore.models.families import decoder_layers, head_slices, layer_parts, share
from amp_explore.models.loading import LoadedModel
from amp_explore.progress import Progress, no_progress

VERSION = 1
"""Part of every cache key; goes up whenever the numbers below change."""

_BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
# Of one head's projected output (tokens, hidden), so much exists at a time: on a CPU, what stays in its cache.
_PRODUCT_BYTES = {"cpu": 2**21, "cuda": 2**26}


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Averages over prompts of averages over their tokens, float32, one tensor per layer.

    `head_projection[l]` (heads,): L1 norm of what head h writes to the residual stream, `|| x_h W_h ||_1`.
    `neuron_magnitude[l]` (neurons,): `|a_j|`, the input of the down projection.
    """

    head_projection: tuple[torch.Tensor, ...]
    neuron_magnitude: tuple[torch.Tensor, ...]


def collect(loaded: LoadedModel, windows: TokenWindows, *, progress: Progress = no_progress) -> ActivationStatistics:
    """Run the dense model once over the windows. `progress` counts layers, of every batch, and may cancel before
    each."""
    batches = list(_batches(windows, _on(_BATCH_TOKENS, loaded.device)))
    sums = _Sums(loaded, len(batches), progress)
    with torch.inference_mode():
        for ids, attended in batches:
            sums.add(ids.to(loaded.device), attended.to(loaded.device))
    progress(sums.steps, sums.steps, "scoring")
    return ActivationStatistics(
        *(tuple((s / len(windows.ids)).float().cpu() for s in total) for total in (sums.heads, sums.neurons))
    )


class _Sums:
    """Sums over prompts, in float64, and the hooks that add to them."""

    def __init__(self, loaded: LoadedModel, batches: int, progress: Progress) -> None:
        self.model = share(loaded.model)  # hooked instead of the dense model, which others may be running
        layers = decoder_layers(self.model)
        self.heads = [torch.zeros(layer.heads, dtype=torch.float64) for layer in loaded.shape.layers]
        self.neurons = [torch.zeros(layer.neurons, dtype=torch.float64) for layer in loaded.shape.layers]
        self.attended, self.padded = torch.empty(0), False  # (B, T) bool, False on padding; whether there is any
        self.progress, self.done, self.steps = progress, 0, batches * len(layers)
        for number, layer in enumerate(layers):
            parts = layer_parts(layer, loaded.family)
            layer.register_forward_pre_hook(self._report)
            parts.o.register_forward_pre_hook(self._heads_hook(number, parts.head_dim))
            parts.down.register_forward_pre_hook(self._neurons_hook(number))

    def add(self, ids: torch.Tensor, attended: torch.Tensor) -> None:
        """Run a batch of prompts (B, T) through the decoder alone: the vocabulary projection is not needed."""
        self.attended, self.padded = attended, not attended.all()
        # without padding no mask is given, which lets attention take its fast path
        self.model.base_model(ids, attention_mask=attended.long() if self.padded else None, use_cache=False)

    def _report(self, *_) -> None:
        self.progress(self.done, self.steps, "scoring")
        self.done += 1

    def _heads_hook(self, number: int, head_dim: int):
        def add(linear: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
            slices = head_slices(linear, head_dim)  # (heads, head_dim, hidden)
            x = inputs[0].flatten(0, 1)  # (B * T, heads * head_dim)
            chunk = max(1, _on(_PRODUCT_BYTES, x.device) // (slices.shape[-1] * x.itemsize))
            norms = [
                torch.cat([_l1(part @ weight, -1) for part in columns.split(chunk)])  # (B * T,)
                for columns, weight in zip(x.split(head_dim, 1), slices, strict=True)
            ]
            self._count(self.heads, number, torch.stack(norms, -1).unflatten(0, inputs[0].shape[:2]))

        return add

    def _neurons_hook(self, number: int):
        def add(linear: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
            self._count(self.neurons, number, inputs[0].view(*self.attended.shape, -1))  # some come as (B * T, neurons)

        return add

    def _count(self, total: list[torch.Tensor], number: int, values: torch.Tensor) -> None:
        """Add each prompt's mean of |values| (B, T, units) over its tokens."""
        attended = self.attended.to(values.device)[..., None]  # (B, T, 1)
        norms = _l1(values.where(attended, 0) if self.padded else values, 1)  # (B, units)
        total[number] = total[number].to(values.device) + (norms / attended.sum(1)).double().sum(0)


def _l1(values: torch.Tensor, dim: int) -> torch.Tensor:
    """L1 norm in float32. The norm's kernel reads its input once, which counts on a GPU; on a CPU it is the slower."""
    if values.is_cuda:
        return torch.linalg.vector_norm(values, 1, dim, dtype=torch.float32)
    return values.abs().sum(dim, dtype=torch.float32)


def _on(sizes: dict[str, int], device: torch.device) -> int:
    return sizes.get(device.type, sizes["cpu"])


def _batches(windows: TokenWindows, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Sequences of similar length together, padded on the right: (B, T) ids, (B, T) bool."""
    ordered = sorted(windows.ids, key=len, reverse=True)
    while ordered:
        size = max(1, tokens // len(ordered[0]))
        batch, ordered = ordered[:size], ordered[size:]
        ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(window) for window in batch])
        yield ids, torch.arange(ids.shape[1]) < lengths[:, None]
