"""Perplexity: exp of the mean next-token loss inside windows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from amp_explore.boundaries import PlanBoundaries
from amp_explore.calibration import TokenWindows
from amp_explore.errors import AmpExploreError
from amp_explore.models.families import context_of, decoder_layers, share
from amp_explore.models.sharding import device_of, devices
from amp_explore.progress import Progress, no_progress

_LOGITS = 2**26  # of these, (windows, tokens, vocabulary), exist at a time: 256 MiB in float32
_NORMALISED = {"cpu": 2**20}  # logits that a softmax sees at a time
_WORST = 700.0  # nats: a ruined model may leave the range of floats, and JSON has no infinity and no NaN


def perplexity(
    model: PreTrainedModel,
    windows: TokenWindows,
    *,
    boundaries: PlanBoundaries | None = None,
    progress: Progress = no_progress,
) -> dict[str, object]:
    """Perplexity of a dense or sliced model on windows of equal length.

    Where `boundaries` knows the hidden states that enter some layer, the layers below it are not run; what comes up
    above is kept there for the next time. `progress` counts layers, of every batch, and may cancel before each.

    Returns `value`, the mean `loss` in nats per token, its standard error over windows `loss_stderr` (None for one
    window), `tokens_scored`, and what it was measured on.

    Raises:
        AmpExploreError: a window is longer than the model's context.
    """
    context = context_of(model)
    if context is not None and len(windows.ids[0]) > context:
        raise AmpExploreError(
            f"windows of {len(windows.ids[0])} tokens do not fit the model's context of {context}; take shorter ones"
        )
    ids = torch.stack(windows.ids)  # (W, T)
    batch = max(1, _LOGITS // (ids.shape[1] * model.config.vocab_size))
    losses: list[torch.Tensor] = []
    with torch.inference_mode():
        run = _Run(model, boundaries, -(-len(ids) // batch), progress)
        for part, states in zip(ids.split(batch), run.known(batch), strict=False):
            part = part.to(device_of(model))  # (B, T)
            logits = run(part, states)  # (B, T, V)
            losses += [_loss(window[:-1], tokens[1:]) for window, tokens in zip(logits, part, strict=True)]
        run.finish()
    per_window = torch.stack(losses).nan_to_num(nan=_WORST, posinf=_WORST)
    mean = per_window.mean().item()
    return {
        "value": math.exp(min(mean, _WORST)),
        "loss": mean,
        "loss_stderr": (per_window.std() / len(per_window) ** 0.5).item() if len(per_window) > 1 else None,
        **windows.describe(),
        "tokens_scored": ids[:, 1:].numel(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": devices(model),
    }


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss, in float64, of logits (T, V) for targets (T,); a few rows at a time, to stay in cache."""
    rows = max(1, _NORMALISED.get(logits.device.type, _LOGITS) // logits.shape[1])
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    for part, wanted in zip(logits.split(rows), targets.split(rows), strict=True):
        logs = F.log_softmax(part, -1, dtype=torch.float32)
        total -= logs.gather(1, wanted[:, None]).sum(dtype=torch.float64)
    return (total / len(targets)).cpu()


class _Run:
    """A copy of the model that starts above what is known and notes what passes between its layers."""

    def __init__(
        self, model: PreTrainedModel, boundaries: PlanBoundaries | None, batches: int, progress: Progress
    ) -> None:
        start = boundaries.start if boundaries else 0
        self.below = _Known()
        self.model = share(model, {layer: self.below for layer in decoder_layers(model)[:start]})
        self.boundaries = boundaries
        self.passed: dict[int, list[torch.Tensor]] = {}
        self.progress = progress
        self.done, self.total = 0, batches * (len(decoder_layers(model)) - start)
        for number, layer in enumerate(decoder_layers(self.model)[start:], start):
            layer.register_forward_pre_hook(self._note(number))

    def known(self, batch: int) -> Iterator[torch.Tensor | None]:
        """For each batch of windows, the hidden states (B, T, d) to start from."""
        states = self.boundaries.states if self.boundaries else None
        return repeat(None) if states is None else iter(states.split(batch))

    def __call__(self, ids: torch.Tensor, states: torch.Tensor | None) -> torch.Tensor:
        """(B, T) tokens -> (B, T, V) logits."""
        self.below.states = states
        return self.model(ids, use_cache=False).logits

    def finish(self) -> None:
        """Hand on what passed, now that all windows are through."""
        self.progress(self.total, self.total, "perplexity")
        for number, parts in self.passed.items():
            self.boundaries.keep(number, torch.cat(parts))

    def _note(self, number: int):
        wanted = self.boundaries is not None and self.boundaries.wants(number)

        def note(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            self.progress(self.done, self.total, "perplexity")
            self.done += 1
            if wanted:
                self.passed.setdefault(number, []).append(inputs[0])

        return note


class _Known(nn.Module):
    """Stands where the layers below were: whatever comes in, the known hidden states come out."""

    states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        return self.states
