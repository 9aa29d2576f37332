"""Perplexity: exp of the mean next-token loss inside windows."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from amp_explore.calibration import TokenWindows
from amp_explore.progress import Progress, no_progress

_LOGITS = 2**26  # of these, (windows, tokens, vocabulary), exist at a time: 256 MiB in float32
_WORST = 700.0  # nats: a ruined model may leave the range of floats, and JSON has no infinity and no NaN


def perplexity(model: PreTrainedModel, windows: TokenWindows, *, progress: Progress = no_progress) -> dict[str, object]:
    """Perplexity of a dense or sliced model on windows of equal length.

    Returns `value`, the mean `loss` in nats per token, its standard error over windows `loss_stderr` (None for one
    window), `tokens_scored`, and what it was measured on. `progress` counts windows and may cancel between batches.
    """
    ids = torch.stack(windows.ids)  # (windows, T)
    losses: list[torch.Tensor] = []
    batch = max(1, _LOGITS // (ids.shape[1] * model.config.vocab_size))
    with torch.inference_mode():
        for start in range(0, len(ids), batch):
            progress(start, len(ids), "perplexity")
            part = ids[start : start + batch].to(model.device)  # (B, T)
            logits = model(part, use_cache=False).logits  # (B, T, V)
            loss = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), part[:, 1:], reduction="none")  # (B, T - 1)
            losses.append(loss.double().mean(1).cpu())
    progress(len(ids), len(ids), "perplexity")
    per_window = torch.cat(losses).nan_to_num(nan=_WORST, posinf=_WORST)
    mean = per_window.mean().item()
    return {
        "value": math.exp(min(mean, _WORST)),
        "loss": mean,
        "loss_stderr": (per_window.std() / len(per_window) ** 0.5).item() if len(per_window) > 1 else None,
        **windows.describe(),
        "tokens_scored": ids[:, 1:].numel(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
    }
