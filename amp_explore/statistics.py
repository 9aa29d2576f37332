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

_PRODUCT_ELEMENTS = 2**22  # of one head's projected output (tokens, hidden) that exist at a time
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Averages over prompts of averages over their tokens, float32, one tensor per layer.

    `head_projection[l]` (heads,): L1 norm of what head h writes to the residual stream, `|| x_h W_h ||_1`.
    `neuron_magnitude[l]` (neurons,): `|a_j|`, the input of the down projection.
    """

    head_projection: tuple[torch.Tensor, ...]
    neuron_magnitude: tuple[torch.Tensor, ...]


def collect(loaded: LoadedModel, windows: TokenWindows, *, progress: Progress = no_progress) -> ActivationStatistics:
    """Run the dense model once over the windows. `progress` counts windows and may cancel between batches."""
    sums = _Sums(loaded)
    done = 0
    with torch.inference_mode():
        for ids, attended in _batches(windows, _BATCH_TOKENS.get(loaded.device.type, 2048)):
            progress(done, len(windows.ids), "scoring")
            sums.attended = attended.to(loaded.device)
            # the vocabulary projection is not needed: run the decoder alone
            sums.model.model(ids.to(loaded.device), attention_mask=sums.mask_for_model(), use_cache=False)
            done += len(ids)
    progress(done, done, "scoring")
    return ActivationStatistics(
        *(tuple((s / done).float().cpu() for s in total) for total in (sums.heads, sums.neurons))
    )


class _Sums:
    """Sums over prompts, in float64, and the hooks that add to them."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.model = share(loaded.model)  # hooked instead of the dense model, which others may be running
        self.parts = [layer_parts(layer, loaded.family) for layer in decoder_layers(self.model)]
        like = {"dtype": torch.float64, "device": loaded.device}
        self.heads = [torch.zeros(layer.heads, **like) for layer in loaded.shape.layers]
        self.neurons = [torch.zeros(layer.neurons, **like) for layer in loaded.shape.layers]
        self.attended = torch.empty(0)  # (B, T) bool: False on padding
        for number, parts in enumerate(self.parts):
            parts.o.register_forward_pre_hook(self._heads_hook(number))
            parts.down.register_forward_pre_hook(self._neurons_hook(number))

    def mask_for_model(self) -> torch.Tensor | None:
        """Without padding no mask is given, which lets attention take its fast path."""
        return None if self.attended.all() else self.attended.long()

    def _heads_hook(self, number: int):
        parts = self.parts[number]

        def add(linear: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
            slices = head_slices(linear, parts.head_dim)  # (heads, head_dim, hidden)
            x = inputs[0].flatten(0, 1)  # (B * T, heads * head_dim)
            chunk = max(1, _PRODUCT_ELEMENTS // slices.shape[-1])
            norms = torch.empty(len(slices), len(x), device=x.device)  # (heads, B * T)
            for head, weight in enumerate(slices):
                columns = x[:, head * parts.head_dim : (head + 1) * parts.head_dim]
                for start in range(0, len(x), chunk):
                    written = columns[start : start + chunk] @ weight  # (chunk, hidden)
                    norms[head, start : start + chunk] = torch.linalg.vector_norm(
                        written, 1, dim=-1, dtype=torch.float32
                    )
            self.heads[number] += self._sum_of_prompt_means(norms.T.unflatten(0, self.attended.shape))

        return add

    def _neurons_hook(self, number: int):
        def add(linear: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
            self.neurons[number] += self._sum_of_prompt_means(inputs[0].abs())

        return add

    def _sum_of_prompt_means(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T, units) -> (units,)."""
        lengths = self.attended.sum(1, keepdim=True)
        weights = (self.attended / lengths).flatten()  # (B * T,)
        return (weights.to(torch.float32) @ values.flatten(0, 1).float()).double()


def _batches(windows: TokenWindows, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Sequences of similar length together, padded on the right: (B, T) ids, (B, T) bool."""
    ordered = sorted(windows.ids, key=len, reverse=True)
    while ordered:
        size = max(1, tokens // len(ordered[0]))
        batch, ordered = ordered[:size], ordered[size:]
        ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(window) for window in batch])
        yield ids, torch.arange(ids.shape[1]) < lengths[:, None]
