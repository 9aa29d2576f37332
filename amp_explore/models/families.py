"""Where heads, KV heads and neurons live in each architecture.

Scoring, slicing and counting are written once, against the few names below. A decoder layer is taken to be

    attention: q, k, v projections (out = heads * head_dim), o projection (in = heads * head_dim)
    MLP:       one or two up projections (out = neurons), a down projection (in = neurons)

Several projections may be one module, whose outputs are then told apart by their rows. `weight_of` and `bias_of` give
the numbers of any of them as `torch.nn.Linear` has them, (out, in), however the architecture stores them.
Architectures that are not listed are refused by name, never sliced by guess.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from amp_explore.errors import ModelError
from amp_explore.models.experts import MixtureOfExperts
from amp_explore.models.sharding import kept_elsewhere, parameters, tensor_of, transposed


@dataclass(frozen=True)
class Family:
    """Attribute names in one architecture, and what is peculiar to it."""

    layers: str = "model.layers"  # the decoder layers, from the causal language model on
    attention: str = "self_attn"  # in a layer
    qkv: str | None = None  # one projection in place of `q_proj`, `k_proj` and `v_proj`
    # The order of its rows: all of q, all of k, all of v; or by KV group, query heads, k and v of the first one first.
    grouped: bool = False
    o: str = "o_proj"  # attention output projection
    head_dim: str = "head_dim"  # numbers per head
    mlp: str | None = "mlp"  # in a layer; None: the layer itself
    up: tuple[str, ...] = ("gate_proj", "up_proj")  # everything whose rows are neurons, also one module for several
    down: str = "down_proj"
    norms: tuple[str, str] | None = None  # of q and of k
    # What the norms are to heads: one for all ("alike", they stay while one head does), each head with its own, or all
    # heads normalised together, in which case q and k cannot lose rows without changing what remains.
    normed: Literal["alike", "own", "together"] = "alike"
    cache: str = "past_key_values"  # a layer's argument for the KV cache
    positional: tuple[str, ...] = ()  # arguments that the model gives a layer without naming them
    plain_output: bool = True  # a layer returns its hidden states; else a tuple that begins with them
    own_attention: bool = False  # the attention is written out: it takes no back end of transformers
    # What the o and the down projection put out is added to the hidden states as it is, not scaled or normalised first.
    plain_residual: bool = True
    mixture: bool = False  # layers may have a mixture of experts in place of the MLP, see `experts`
    refused: Mapping[str, str] = field(default_factory=dict)  # options of its configuration, and what they mean


_ROUTER_LOGITS = {"output_router_logits": "router logits as outputs"}
_NEOX_MLP = {"up": ("dense_h_to_4h",), "down": "dense_4h_to_h"}

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(norms=("q_norm", "k_norm")),
    "gemma2": Family(plain_residual=False),
    "gemma3_text": Family(norms=("q_norm", "k_norm"), plain_residual=False),
    "granite": Family(plain_residual=False),
    "smollm3": Family(),
    "olmo2": Family(norms=("q_norm", "k_norm"), normed="together", plain_residual=False),
    "cohere": Family(norms=("q_norm", "k_norm"), normed="own"),
    "stablelm": Family(norms=("q_layernorm", "k_layernorm"), normed="own"),
    "mixtral": Family(mixture=True, refused=_ROUTER_LOGITS),
    "qwen3_moe": Family(norms=("q_norm", "k_norm"), mixture=True, refused=_ROUTER_LOGITS),
    "phi": Family(o="dense", up=("fc1",), down="fc2", norms=("q_layernorm", "k_layernorm")),
    "phi3": Family(qkv="qkv_proj", up=("gate_up_proj",)),
    "opt": Family(  # the norms stand behind in some sizes
        layers="model.decoder.layers", o="out_proj", mlp=None, up=("fc1",), down="fc2", plain_residual=False
    ),
    "gpt2": Family(
        layers="transformer.h",
        attention="attn",
        qkv="c_attn",
        o="c_proj",
        up=("c_fc",),
        down="c_proj",
        positional=("past_key_values", "attention_mask", "encoder_hidden_states"),
        refused={"add_cross_attention": "cross-attention"},
    ),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        attention="attention",
        qkv="query_key_value",
        grouped=True,
        o="dense",
        head_dim="head_size",
        cache="layer_past",
        **_NEOX_MLP,
    ),
    "falcon": Family(
        layers="transformer.h",
        attention="self_attention",
        qkv="query_key_value",
        grouped=True,
        o="dense",
        cache="layer_past",
        plain_output=False,
        own_attention=True,
        refused={"alibi": "ALiBi positions"},
        **_NEOX_MLP,
    ),
}
"""Known architectures by the `model_type` of their configuration."""


def family_of(model_type: str) -> Family:
    """The family of a `config.model_type`. Raises `ModelError` with the list of known ones."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(FAMILIES)
        raise ModelError(f"architecture {model_type!r} is not supported; use a model of one of: {known}") from None


def refuse_variants(config: Mapping[str, Any]) -> None:
    """Raise `ModelError` where a configuration asks for what this project does not support of its family."""
    for option, meaning in family_of(config["model_type"]).refused.items():
        if config.get(option):
            raise ModelError(f"{config['model_type']} with {meaning} is not supported; use a model without")


@dataclass(frozen=True, eq=False)
class Projection:
    """Some outputs of a linear module.

    `rows` numbers them, in the order of the heads (head_dim rows each) or neurons; None: all of them.
    """

    module: nn.Module
    rows: torch.Tensor | None = None


def weight_of(part: Projection | nn.Module) -> torch.Tensor:
    """A projection's weights (out, in), in the order of heads or neurons; offloaded ones are loaded."""
    return as_linear(part, tensor_of(_split(part)[0], "weight"))


def as_linear(part: Projection | nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """What belongs to a projection of a tensor shaped like its module's weights: (out, in), as `weight_of`."""
    module, rows = _split(part)
    tensor = tensor.T if transposed(module) else tensor
    return tensor if rows is None else tensor[rows.to(tensor.device)]


def set_weight(module: nn.Module, weight: torch.Tensor) -> None:
    """Give a linear module other weights (out, in), as a parameter of its own."""
    like = module.weight
    stored = (weight.T if transposed(module) else weight).to(like.device, like.dtype).contiguous()
    module.weight = nn.Parameter(stored, requires_grad=False)


def bias_of(part: Projection | nn.Module) -> torch.Tensor | None:
    """A projection's bias (out,), in the order of heads or neurons; None where it has none."""
    module, rows = _split(part)
    bias = tensor_of(module, "bias")
    return bias if rows is None or bias is None else bias[rows.to(bias.device)]


def inputs_of(part: Projection | nn.Module) -> int:
    """How many inputs a projection has."""
    module, _ = _split(part)
    return module.weight.shape[0 if transposed(module) else 1]


def outputs_of(part: Projection | nn.Module) -> int:
    """How many outputs a projection has."""
    module, rows = _split(part)
    return module.weight.shape[1 if transposed(module) else 0] if rows is None else len(rows)


def _split(part: Projection | nn.Module) -> tuple[nn.Module, torch.Tensor | None]:
    return (part.module, part.rows) if isinstance(part, Projection) else (part, None)


@dataclass(frozen=True)
class LayerParts:
    """The modules of one decoder layer that pruning touches."""

    attention: nn.Module
    head_dim: int
    q: Projection
    k: Projection
    v: Projection
    o: nn.Module
    norms: tuple[nn.Module, ...]  # of q and of k, or none
    mlp: nn.Module
    up: tuple[Projection, ...]
    down: nn.Module
    with_head: tuple[Projection, ...]  # whose rows go with a query head, besides the columns of o
    with_kv_head: tuple[Projection, ...]


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal language model, lowest first."""
    return model.get_submodule(family_of(model.config.model_type).layers)


def share(model: nn.Module, instead: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A second module on the same tensors: its parts can be changed without touching the first.

    `instead` names parts of `model` that others stand in for; those are taken as they are.
    """
    taken = {id(kept): kept for kept in (*model.parameters(), *model.buffers(), *kept_elsewhere(model))}
    return copy.deepcopy(model, taken | {id(old): new for old, new in (instead or {}).items()})


def layer_parts(layer: nn.Module, family: Family) -> LayerParts:
    """The parts of a decoder layer, dense or sliced, that has attention."""
    attention = getattr(layer, family.attention)
    mlp = layer if family.mlp is None else getattr(layer, family.mlp)
    o, down = getattr(attention, family.o), getattr(mlp, family.down)
    head_dim = getattr(attention, family.head_dim)
    if family.qkv is None:
        q, k, v = (Projection(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj"))
    else:
        fused = getattr(attention, family.qkv)
        blocks = fused_heads(kv_groups(attention, family), family.grouped)
        q, k, v = (Projection(fused, rows_of(numbers, head_dim)) for numbers in blocks)
    norms = tuple(getattr(attention, name) for name in family.norms or () if hasattr(attention, name))
    up = [part for name in family.up for part in _stacked(getattr(mlp, name), inputs_of(down))]
    together = family.normed == "together"
    coupled = ((), (v,)) if together else ((q,), (k, v))
    return LayerParts(attention, head_dim, q, k, v, o, norms, mlp, tuple(up), down, *coupled)


def kv_groups(attention: nn.Module, family: Family) -> tuple[int, ...]:
    """For each KV head of an attention module, dense or sliced, the number of query heads that read it."""
    if hasattr(attention, "kv_groups"):  # sliced
        return attention.kv_groups
    head_dim = getattr(attention, family.head_dim)
    heads = inputs_of(getattr(attention, family.o)) // head_dim
    if family.qkv is None:
        kv_heads = outputs_of(attention.v_proj) // head_dim
    else:
        kv_heads = (outputs_of(getattr(attention, family.qkv)) // head_dim - heads) // 2
    if heads % kv_heads:
        raise ModelError(f"{heads} heads do not share {kv_heads} KV heads evenly; load a dense, unpruned model")
    return (heads // kv_heads,) * kv_heads


def cached_heads(attention: nn.Module, family: Family) -> int:
    """How many heads an attention module, dense or sliced, stores keys and values of."""
    groups = kv_groups(attention, family)
    return sum(groups) if _caches_heads(attention) else len(groups)


def _caches_heads(attention: nn.Module) -> bool:
    """Falcon's newer architecture stores a KV head once for each query head that reads it."""
    return getattr(attention, "new_decoder_architecture", False)


def fused_heads(groups: tuple[int, ...], grouped: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where q (heads,), k (KV heads,) and v (KV heads,) stand in a fused projection, counted in heads.

    `groups` are the query heads of each KV head, `grouped` is the family's order.
    """
    heads, kv_heads = sum(groups), len(groups)
    if grouped:
        v = (torch.tensor(groups) + 2).cumsum(0) - 1
        k = v - 1
        is_q = torch.ones(heads + 2 * kv_heads, dtype=torch.bool)
        is_q[k], is_q[v] = False, False
        return is_q.nonzero()[:, 0], k, v
    return torch.arange(heads + 2 * kv_heads).split((heads, kv_heads, kv_heads))


def rows_of(heads: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(n,) numbers of heads -> (n * head_dim,) numbers of their rows."""
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()


def _stacked(module: nn.Module, neurons: int) -> list[Projection]:
    """The up projections in a module, one after another, each with a row for every neuron."""
    if outputs_of(module) == neurons:
        return [Projection(module)]
    return [Projection(module, rows) for rows in torch.arange(outputs_of(module)).split(neurons)]


def eager_attention(attention: nn.Module) -> Callable:
    """transformers' eager attention function for this module; each architecture has its own."""
    return sys.modules[type(attention).__module__].eager_attention_forward


def count(modules: tuple[nn.Module, ...]) -> int:
    """Number of parameters in the modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


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
    """What a plan must fit:

    the model's fingerprint and the units of each layer, with the totals that ratios refer to.
    """

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
        caches_heads=_caches_heads(parts.attention),
        **experts,
    )


def sliding_window(attention: nn.Module) -> int | None:
    """Tokens that this layer looks back on; None where it sees all of them."""
    return getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))


def context_of(model: nn.Module) -> int | None:
    """Tokens that the model's positions are made for; None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _per_row(part: Projection) -> int:
    """Parameters that belong to one output of a projection: its row of weights, and its bias where there is one."""
    return inputs_of(part) + (part.module.bias is not None)


def head_slices(o: nn.Module, head_dim: int) -> torch.Tensor:
    """The output projection (out, heads * head_dim) cut by head: (heads, head_dim, out), a view unless offloaded."""
    return weight_of(o).T.unflatten(0, (-1, head_dim))
