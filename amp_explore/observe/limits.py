"""What a model takes and what it gives: windows no longer than its positions, and numbers that are numbers.

NaN and infinity come of damaged weights, of float16, or of a plan that leaves too little. They must not end as a
perplexity, a score or an accuracy, so whoever runs a model looks at what comes out, and here it is said.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from amp_explore.errors import AmpExploreError
from amp_explore.models.families import context_of, decoder_layers, family_of, share
from amp_explore.models.sharding import device_of
from amp_explore.texts.calibration import TokenWindows


class NotFinite(AmpExploreError):
    """What a model computes is NaN or infinite."""


def require_room(model: nn.Module, windows: TokenWindows) -> None:
    """Raise `AmpExploreError` where windows are longer than the model's context: learned positions end there, and
    rotary ones mean nothing beyond it."""
    context, longest = context_of(model), max(map(len, windows.ids))
    if context is not None and longest > context:
        raise AmpExploreError(
            f"windows of {longest} tokens do not fit the model's context of {context}; take shorter ones"
        )


def not_finite(model: nn.Module, where: str) -> NotFinite:
    """The error for numbers that stop being finite `where`, in a dense or a sliced model."""
    dtype = str(model.dtype).removeprefix("torch.")
    remedy = (
        "take float32 or bfloat16, whose range is larger"
        if model.dtype == torch.float16
        else "the weights or the configuration are damaged, or the plan leaves too little; get the model anew, or take "
        "another plan"
    )
    return NotFinite(f"{where} gives NaN or infinity in {dtype}: {remedy}")


def require_finite(model: nn.Module, ids: torch.Tensor) -> None:
    """Run ids (B, T), and raise `NotFinite` where the logits of their last tokens are not finite."""
    with torch.inference_mode():
        logits = model(ids.to(device_of(model)), use_cache=False, logits_to_keep=1).logits
    if not logits.isfinite().all():
        raise not_finite(model, first_not_finite(model, ids) or "the model")


def first_not_finite(model: nn.Module, ids: torch.Tensor) -> str | None:
    """Where in the model numbers stop being finite on ids (B, T), which are run once more for it; None if nowhere."""
    watched, family = share(model), family_of(model.config.model_type)
    found: list[str] = []

    def look(name: str, states: torch.Tensor) -> None:
        if not states.isfinite().all():
            found.append(name)

    for number, layer in enumerate(decoder_layers(watched)):
        layer.register_forward_pre_hook(lambda _, inputs, n=number: look(_below(n), inputs[0]))
        layer.register_forward_hook(lambda _, __, output, n=number: look(f"layer {n}", family.states_of(output)))
    with torch.inference_mode():
        look("the vocabulary projection", watched(ids.to(device_of(model)), use_cache=False).logits)
    return found[0] if found else None


def _below(layer: int) -> str:
    return f"layer {layer - 1}" if layer else "the embedding"


def require_finite_layers(model: nn.Module, layers: Iterable[object], what: str = "layer") -> None:
    """Raise `NotFinite` for the first layer in which a tensor of what was observed of it is not finite."""
    for number, layer in enumerate(layers):
        if not all(tensor.isfinite().all() for tensor in vars(layer).values()):
            raise not_finite(model, f"{what} {number}")
