"""Where heads, KV heads and neurons live in each architecture.

Scoring, slicing and counting are written once, against the few names below. A decoder layer is taken to be

    attention: q, k, v projections (out = heads * head_dim), o projection (in = heads * head_dim)
    MLP:       one or two up projections (out = neurons), a down projection (in = neurons)

all of them `torch.nn.Linear`, weights (out, in). Architectures that are not listed are refused by name, never sliced by
guess.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from amp_explore.errors import ModelError
from amp_explore.models.sharding import kept_elsewhere, parameters, tensor_of


@dataclass(frozen=True)
class Family:
    """Attribute names inside one architecture's decoder layer."""

    o: str = "o_proj"  # attention output projection
    up: tuple[str, ...] = ("gate_proj", "up_proj")  # everything whose rows are neurons
    down: str = "down_proj"
    per_head_norms: tuple[str, ...] = ()  # norms over head_dim, shared by all heads: they stay while one head does


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(per_head_norms=("q_norm", "k_norm")),
    "gemma2": Family(),
    "gemma3_text": Family(per_head_norms=("q_norm", "k_norm")),
    "phi": Family(o="dense", up=("fc1",), down="fc2", per_head_norms=("q_layernorm", "k_layernorm")),
}
"""Known architectures by the `model_type` of their configuration."""


def family_of(model_type: str) -> Family:
    """The family of a `config.model_type`. Raises `ModelError` with the list of known ones."""
    try:
        return FAMILIES[model_type]
    except KeyError:
        known = ", ".join(FAMILIES)
        raise ModelError(f"architecture {model_type!r} is not supported; use a model of one of: {known}") from None


@dataclass(frozen=True)
class LayerParts:
    """The modules of one decoder layer that pruning touches."""

    attention: nn.Module
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    o: nn.Linear
    norms: tuple[nn.Module, ...]
    mlp: nn.Module
    up: tuple[nn.Linear, ...]
    down: nn.Linear

    @property
    def head_dim(self) -> int:
        return self.attention.head_dim


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal language model, lowest first."""
    return model.model.layers


def share(model: nn.Module, instead: Mapping[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A second module on the same tensors: its parts can be changed without touching the first.

    `instead` names parts of `model` that others stand in for; those are taken as they are.
    """
    taken = {id(kept): kept for kept in (*model.parameters(), *model.buffers(), *kept_elsewhere(model))}
    return copy.deepcopy(model, taken | {id(old): new for old, new in (instead or {}).items()})


def layer_parts(layer: nn.Module, family: Family) -> LayerParts:
    """The parts of a dense decoder layer."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = tuple(getattr(attention, name) for name in family.per_head_norms if hasattr(attention, name))
    return LayerParts(
        attention=attention,
        q=attention.q_proj,
        k=attention.k_proj,
        v=attention.v_proj,
        o=getattr(attention, family.o),
        norms=norms,
        mlp=mlp,
        up=tuple(getattr(mlp, name) for name in family.up),
        down=getattr(mlp, family.down),
    )


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
    left, with the per-head norms.
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
    norm_parameters: int
    head_weights: int  # as `head_parameters`, biases left out: what a matrix product reads
    kv_weights: int
    neuron_weights: int
    o_bias: bool = False  # whether the output projection has one
    down_bias: bool = False
    sliding_window: int | None = None  # tokens this layer's attention looks back on; None: all of them

    @property
    def prunable_parameters(self) -> int:
        """Parameters that go when every head and every neuron of the layer goes."""
        attention = self.heads * self.head_parameters + self.kv_heads * self.kv_parameters + self.norm_parameters
        return attention + self.neurons * self.neuron_parameters


@dataclass(frozen=True)
class ModelShape:
    """What a plan must fit:

    the model's fingerprint and the units of each layer, with the totals that ratios refer to.
    """

    fingerprint: str
    layers: tuple[LayerShape, ...]
    parameters: int  # all parameters, tied ones once
    matmul_parameters: (
        int  # weights that every token is multiplied with: all Linear layers, the vocabulary projection too
    )
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
    layers = tuple(_layer_shape(layer_parts(layer, family)) for layer in decoder_layers(model))
    return ModelShape(
        fingerprint=fingerprint,
        layers=layers,
        parameters=sum(parameter.numel() for parameter in parameters(model)),
        matmul_parameters=matmul_parameters(model),
        vocabulary_weights=model.get_output_embeddings().weight.numel(),
        bytes_per_parameter=model.dtype.itemsize,
    )


def matmul_parameters(model: nn.Module) -> int:
    """Number of weights in all Linear layers of the model (a tied vocabulary projection counts: it is computed)."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def _layer_shape(parts: LayerParts) -> LayerShape:
    head_dim, hidden = parts.head_dim, parts.o.out_features
    heads, kv_heads = parts.q.out_features // head_dim, parts.k.out_features // head_dim
    if heads % kv_heads:
        raise ModelError(f"{heads} heads do not share {kv_heads} KV heads evenly; load a dense, unpruned model")
    return LayerShape(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        neurons=parts.down.in_features,
        kv_of_head=tuple(head // (heads // kv_heads) for head in range(heads)),
        head_parameters=head_dim * (_per_row(parts.q) + hidden),
        kv_parameters=head_dim * (_per_row(parts.k) + _per_row(parts.v)),
        neuron_parameters=sum(_per_row(up) for up in parts.up) + hidden,
        norm_parameters=count(parts.norms),
        head_weights=2 * head_dim * hidden,
        kv_weights=2 * head_dim * hidden,
        neuron_weights=(len(parts.up) + 1) * hidden,
        o_bias=parts.o.bias is not None,
        down_bias=parts.down.bias is not None,
        sliding_window=sliding_window(parts.attention),
    )


def sliding_window(attention: nn.Module) -> int | None:
    """Tokens that this layer looks back on; None where it sees all of them."""
    return getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))


def context_of(model: nn.Module) -> int | None:
    """Tokens that the model's positions are made for; None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _per_row(linear: nn.Linear) -> int:
    """Parameters that belong to one output of a projection: its row of weights, and its bias where there is one."""
    return linear.in_features + (linear.bias is not None)


def weight_of(linear: nn.Linear) -> torch.Tensor:
    """A projection's weights (out, in), on the device where it computes."""
    return tensor_of(linear, "weight")


def head_slices(linear: nn.Linear, head_dim: int) -> torch.Tensor:
    """The output projection (out, heads * head_dim) cut by head: (heads, head_dim, out), a view unless offloaded."""
    return tensor_of(linear, "weight").T.unflatten(0, (-1, head_dim))
