"""What a model is made of, in numbers: the units of each layer, and what each is worth."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from amp_explore.models.experts import MixtureOfExperts
from amp_explore.models.families import (
    Family,
    LayerParts,
    Projection,
    caches_heads,
    count,
    decoder_layers,
    family_of,
    inputs_of,
    kv_groups,
    layer_parts,
    outputs_of,
    refuse_variants,
    sliding_window,
)
from amp_explore.models.sharding import parameters


@dataclass(frozen=True)
class LayerShape:
    """Units of one decoder layer and what each is worth.

    `kv_of_head[h]` is the KV head that query head `h` reads. The `*_parameters` are counts that leave the model with
    one head (q rows, o columns), one KV head (k and v rows), one neuron (up rows, down column), and, once no head is
    left, with what all heads share (norms of q and k). The `*_weights` are those of them that a matrix product reads:
    no biases, no norms.

    The neurons may be those of `experts`, expert after expert and equally many each; every token is sent to `top_k` of
    them. An expert goes with its last neuron, and `expert_parameters`, its row of the router, with it.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    neurons: int
    kv_of_head: tuple[int, ...]
    head_parameters: int
    kv_parameters: int
    neuron_parameters: int
    shared_parameters: int
    head_weights: int
    kv_weights: int
    neuron_weights: int
    shared_weights: int = 0
    o_bias: bool = False  # whether the output projection has one
    down_bias: bool = False
    sliding_window: int | None = None  # tokens this layer's attention looks back on; None: all of them
    caches_heads: bool = False  # keys and values are stored for each query head, not for each KV head
    experts: int = 1
    top_k: int = 1
    expert_parameters: int = 0

    @property
    def prunable_parameters(self) -> int:
        """Parameters that go when every head and every neuron of the layer goes."""
        attention = self.heads * self.head_parameters + self.kv_heads * self.kv_parameters + self.shared_parameters
        return attention + self.neurons * self.neuron_parameters + self.experts * self.expert_parameters

    def multiplied_weights(self, neurons: int, experts: int) -> int:
        """Weights of the MLP that a token is multiplied with when so many neurons are left, in so many experts: the
        router's, and those of as many experts of average width as it is sent to."""
        chosen = neurons * self.neuron_weights * min(self.top_k, experts) // max(experts, 1)
        return chosen + experts * self.expert_parameters


@dataclass(frozen=True)
class ModelShape:
    """What a plan must fit: the model's fingerprint and the units of each layer, with the totals that ratios refer
    to."""

    fingerprint: str
    layers: tuple[LayerShape, ...]
    parameters: int  # all parameters, tied ones once
    matmul_parameters: int  # weights that a token is multiplied with, the vocabulary projection's too
    vocabulary_weights: int  # those of them in the vocabulary projection
    bytes_per_parameter: int

    @property
    def heads(self) -> tuple[int, ...]:
        return tuple(layer.heads for layer in self.layers)

    @property
    def kv_heads(self) -> tuple[int, ...]:
        return tuple(layer.kv_heads for layer in self.layers)

    @property
    def neurons(self) -> tuple[int, ...]:
        return tuple(layer.neurons for layer in self.layers)

    @property
    def prunable_parameters(self) -> int:
        return sum(layer.prunable_parameters for layer in self.layers)


def shape_of(model: nn.Module, fingerprint: str) -> ModelShape:
    """Read a dense model's shape off its tensors. Raises `ModelError` for an unknown family."""
    family = family_of(model.config.model_type)
    refuse_variants(model.config.to_dict())
    layers = tuple(_layer_shape(layer_parts(layer, family), family) for layer in decoder_layers(model))
    return ModelShape(
        fingerprint=fingerprint,
        layers=layers,
        parameters=sum(parameter.numel() for parameter in parameters(model)),
        matmul_parameters=matmul_parameters(model),
        vocabulary_weights=model.get_output_embeddings().weight.numel(),
        bytes_per_parameter=model.dtype.itemsize,
    )


def matmul_parameters(model: nn.Module) -> int:
    """Number of weights that a token is multiplied with: all linear layers of the model (a tied vocabulary projection
    counts: it is computed), but of experts only those that it is sent to."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    inside = {part for mixture in mixtures for part in mixture.modules()}
    linear = (module for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)) and module not in inside)
    return sum(module.weight.numel() for module in linear) + sum(mixture.multiplied_weights for mixture in mixtures)


def _layer_shape(parts: LayerParts, family: Family) -> LayerShape:
    head_dim, hidden = parts.head_dim, outputs_of(parts.o)
    groups = kv_groups(parts.attention, family)
    heads, kv_heads = len(groups) * groups[0], len(groups)
    in_head, in_kv, in_neuron = parts.with_head, parts.with_kv_head, parts.up
    of_head, of_kv, shared_weights = 0, 0, 0
    if parts.norms and family.normed == "own":
        of_head, of_kv = (count((norm,)) // units for norm, units in zip(parts.norms, (heads, kv_heads), strict=True))
    shared_parameters = 0 if of_head else count(parts.norms)
    if family.normed == "together":
        shared_parameters += count((parts.q.module, parts.k.module))
        shared_weights = hidden * (outputs_of(parts.q) + outputs_of(parts.k))
    mixture = isinstance(parts.mlp, MixtureOfExperts)
    experts = (
        {"experts": len(parts.mlp.widths), "top_k": parts.mlp.top_k, "expert_parameters": hidden} if mixture else {}
    )
    return LayerShape(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        neurons=inputs_of(parts.down),
        kv_of_head=tuple(head // groups[0] for head in range(heads)),
        head_parameters=head_dim * (sum(map(_per_row, in_head)) + hidden) + of_head,
        kv_parameters=head_dim * sum(map(_per_row, in_kv)) + of_kv,
        neuron_parameters=sum(map(_per_row, in_neuron)) + hidden,
        shared_parameters=shared_parameters,
        head_weights=(len(in_head) + 1) * head_dim * hidden,
        kv_weights=len(in_kv) * head_dim * hidden,
        neuron_weights=(len(in_neuron) + 1) * hidden,
        shared_weights=shared_weights,
        o_bias=parts.o.bias is not None,
        down_bias=parts.down.bias is not None,
        sliding_window=sliding_window(parts.attention),
        caches_heads=caches_heads(parts.attention),
        **experts,
    )


def _per_row(part: Projection) -> int:
    """Parameters that belong to one output of a projection: its row of weights, and its bias where there is one."""
    return inputs_of(part) + (part.module.bias is not None)
