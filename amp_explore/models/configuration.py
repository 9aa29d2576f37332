"""`config.json` of a model that comes from outside: read, and its numbers held against sense and against the weights.

transformers takes most numbers as they are. A thousand million layers are built until the memory ends, and an epsilon
that is no number gives a model whose every output is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from amp_explore.errors import ModelError
from amp_explore.models.files import read_json

# What different architectures call their counts.
_LAYERS = ("num_hidden_layers", "n_layer")
_COUNTS = {"num_attention_heads", "n_head", "num_key_value_heads", "num_kv_heads", "n_head_kv", "head_dim", *_LAYERS}
_COUNTS |= {"hidden_size", "n_embd", "intermediate_size", "ffn_dim", "n_inner", "vocab_size"}
_COUNTS |= {"max_position_embeddings", "n_positions"}
_ABOVE_ZERO = {"rope_theta", "rotary_emb_base", "rope_local_base_freq", "logits_scaling", "query_pre_attn_scalar"}
_EPSILON = re.compile(r"(^|_)eps(ilon)?$")
_HIGHEST = 2**31  # of a count


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model folder. Raises `ModelError` where it, or the weights beside it, cannot be used."""
    try:
        config = read_json(folder / "config.json")
    except FileNotFoundError:
        raise ModelError(f"{folder}: no model here; a model folder has a config.json and .safetensors files") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder}: config.json is not a model configuration; download the model again")
    if config.get("quantization_config"):
        raise ModelError(f"{folder}: quantised weights cannot be sliced; use the unquantised model, or a .gguf file")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise ModelError(
            f"{folder}: only pickled weights, which can run code when read; convert them to safetensors first"
            if pickled
            else f"{folder}: no .safetensors file with weights; download the model again"
        )
    return config


def refuse_senseless(config: Mapping[str, Any], tensors: int, source: object) -> None:
    """Raise `ModelError` where a number of a configuration cannot be meant, `tensors` being how many the weights'
    files hold: there is no layer without any."""
    for name, value in _entries(config):
        if (wrong := _wrong(name, value)) is not None:
            raise ModelError(f"{source}: {name} is {value!r} in its configuration, {wrong}; download the model again")
    for name in _LAYERS:
        if (layers := config.get(name) or 0) > tensors:
            raise ModelError(
                f"{source}: the weights do not fit config.json, {name} is {layers}, and there are {tensors} tensors; "
                "download it again"
            )


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Everything named in a configuration, however deep."""
    parts = [("", config)]
    while parts:
        name, value = parts.pop()
        if isinstance(value, Mapping):
            parts += value.items()
        elif isinstance(value, list):
            parts += ((name, each) for each in value)
        else:
            yield str(name), value


def _wrong(name: str, value: Any) -> str | None:
    """What is wrong with a value of this name, if anything."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, float) and not math.isfinite(value):
        return "no finite number"
    if name in _COUNTS and value is not None and not (type(value) is int and 0 < value < _HIGHEST):
        return f"not a whole number from 1 to {_HIGHEST - 1}"
    if _EPSILON.search(name) and number and not 0 < value < 1:
        return "not between 0 and 1"
    if name in _ABOVE_ZERO and number and value <= 0:
        return "not above 0"
    return None
