"""Plan in, smaller model out: rows and columns really go, and what is left runs as it is.

The sliced model shares every tensor that the plan does not touch with the dense one, which is never changed. Any subset
of query heads may stay, also under grouped-query attention: a KV head goes exactly when its last query head goes. Where
the remaining groups differ in size, the layer's attention runs through `ragged_attention`, registered with transformers
as a back end.

`mask` is the slow twin, for checks: the dense model with the same units silenced.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from amp_explore.models.families import LayerParts, decoder_layers, eager_attention, layer_parts, share
from amp_explore.models.loading import LoadedModel
from amp_explore.models.sharding import device_of, keep, tensor_of
from amp_explore.plan import PruningPlan

LayerOf = Callable[[LoadedModel, PruningPlan, int], nn.Module]


def slice_model(loaded: LoadedModel, plan: PruningPlan, layer_of: LayerOf | None = None) -> PreTrainedModel:
    """The model without the plan's units. Takes time and memory only for the layers that the plan touches.

    `layer_of` may stand in for `slice_layer`, which repairs nothing: to repair, or to use layers again.
    """
    layer_of = layer_of or slice_layer
    dense = decoder_layers(loaded.model)
    return share(loaded.model, {dense[number]: layer_of(loaded, plan, number) for number in plan.changed_layers})


def slice_layer(loaded: LoadedModel, plan: PruningPlan, number: int) -> nn.Module:
    """One decoder layer without the plan's units, on the dense layer's device; the dense layer stays as it is.

    Where that layer's weights are offloaded, or its device has no room for more, nothing is stored: what remains is cut
    out of the dense weights whenever the layer runs (see `sharding.keep`).
    """
    layer = share(decoder_layers(loaded.model)[number])
    parts = layer_parts(layer, loaded.family)
    if plan.neurons[number].any():
        kept = torch.from_numpy((~plan.neurons[number]).nonzero()[0])
        for up in parts.up:
            keep(up, 0, kept)
        keep(parts.down, 1, kept)
    if plan.heads[number].all():
        layer.self_attn = NoAttention(parts)
    elif plan.heads[number].any():
        _slice_attention(parts, plan, number)
    return layer


def _slice_attention(parts: LayerParts, plan: PruningPlan, number: int) -> None:
    shape = plan.shape.layers[number]
    kept_heads = (~plan.heads[number]).nonzero()[0].tolist()
    kept_kv = (~plan.removed_kv_heads(number)).nonzero()[0].tolist()
    head_rows = _indices_of_blocks(kept_heads, parts.head_dim)
    keep(parts.q, 0, head_rows)
    keep(parts.o, 1, head_rows)
    if len(kept_kv) < shape.kv_heads:
        kv_rows = _indices_of_blocks(kept_kv, parts.head_dim)
        keep(parts.k, 0, kv_rows)
        keep(parts.v, 0, kv_rows)

    groups = [[i for i, head in enumerate(kept_heads) if shape.kv_of_head[head] == kv] for kv in kept_kv]
    widest = max(map(len, groups))
    parts.attention.num_key_value_groups = widest
    if all(len(group) == widest for group in groups):
        return
    # Every group is filled up to the widest by repeating a query head; the copies' outputs are dropped again.
    filled = [head for group in groups for head in group + group[-1:] * (widest - len(group))]
    wanted = [g * widest + place for g, group in enumerate(groups) for place in range(len(group))]
    device = device_of(parts.q)
    parts.attention.register_buffer("filled_heads", torch.tensor(filled, device=device), persistent=False)
    parts.attention.register_buffer("wanted_heads", torch.tensor(wanted, device=device), persistent=False)
    config = parts.attention.config  # this layer's own copy: the others, and the masks, go on as they did
    config._attn_implementation = "ragged_" + config._attn_implementation


def ragged_attention(module, query, key, value, attention_mask, **options):
    """Attention for KV groups of different sizes, without copying keys or values.

    The queries, which are small, are gathered so that every KV head serves equally many: (B, heads, T, d) -> (B,
    kv_heads * widest, T, d). The library's own back end runs on that; the surplus outputs (B, T, heads', d) are
    dropped.
    """
    base = _base_attention(module)
    output, _ = base(module, query[:, module.filled_heads], key, value, attention_mask, **options)
    return output[:, :, module.wanted_heads], None


def _base_attention(module: nn.Module):
    if module.config._attn_implementation == "ragged_sdpa":
        return sdpa_attention_forward
    return eager_attention(module)


for _name, _mask in (("ragged_sdpa", sdpa_mask), ("ragged_eager", eager_mask)):
    AttentionInterface.register(_name, ragged_attention)
    AttentionMaskInterface.register(_name, _mask)


class NoAttention(nn.Module):
    """What is left of an attention block without heads: the output projection's bias, if there was one.

    transformers asks a layer of the KV cache how many tokens the cache holds, and may ask this one, so the layer still
    stores one number per token.
    """

    def __init__(self, parts: LayerParts) -> None:
        super().__init__()
        self.layer_idx = parts.attention.layer_idx
        bias = tensor_of(parts.o, "bias")
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, hidden_states: torch.Tensor, *, past_key_values=None, **_) -> tuple[torch.Tensor, None]:
        """(B, T, d) -> (B, T, d), the same for every token."""
        if past_key_values is not None:
            marker = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)  # (B, 1, T, 1)
            past_key_values.update(marker, marker[..., :0], self.layer_idx)
        output = torch.zeros_like(hidden_states)
        return (output if self.bias is None else output + self.bias), None


def mask(loaded: LoadedModel, plan: PruningPlan) -> PreTrainedModel:
    """The dense model with the plan's units silenced: their inputs to the output and down projections are zeroed."""
    model = share(loaded.model)
    for number, layer in enumerate(decoder_layers(model)):
        parts = layer_parts(layer, loaded.family)
        kept_heads = torch.from_numpy(~plan.heads[number]).repeat_interleave(parts.head_dim)
        _silence_inputs(parts.o, kept_heads)
        _silence_inputs(parts.down, torch.from_numpy(~plan.neurons[number]))
    return model


def _silence_inputs(linear: nn.Linear, kept: torch.Tensor) -> None:
    kept = kept.to(device_of(linear))
    linear.register_forward_pre_hook(lambda _, inputs: (inputs[0].masked_fill(~kept, 0),))


def _indices_of_blocks(blocks: list[int], size: int) -> torch.Tensor:
    return (torch.tensor(blocks)[:, None] * size + torch.arange(size)).flatten()
