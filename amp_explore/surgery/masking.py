"""The slow twin of slicing, for checks and for statistics of what is left: the dense model with units silenced."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from amp_explore.models.experts import MixtureOfExperts
from amp_explore.models.families import decoder_layers, layer_parts, share
from amp_explore.models.loading import LoadedModel
from amp_explore.models.sharding import device_of
from amp_explore.plan import PruningPlan


def mask(loaded: LoadedModel, plan: PruningPlan) -> PreTrainedModel:
    """The dense model with the plan's units silenced: their inputs to the output and down projections are zeroed, and
    no token is sent to an expert without any other."""
    model = share(loaded.model)
    for number, layer in enumerate(decoder_layers(model)):
        parts = layer_parts(layer, loaded.family)
        kept_heads = torch.from_numpy(~plan.heads[number]).repeat_interleave(parts.head_dim)
        _silence_inputs(parts.o, kept_heads)
        _silence_inputs(parts.down, torch.from_numpy(~plan.neurons[number]))
        if isinstance(parts.mlp, MixtureOfExperts):
            parts.mlp.close(torch.tensor(plan.neurons[number]))
    return model


def _silence_inputs(module: nn.Module, kept: torch.Tensor) -> None:
    kept = kept.to(device_of(module))
    module.register_forward_pre_hook(lambda _, inputs: (inputs[0].masked_fill(~kept, 0),))
