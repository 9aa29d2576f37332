"""Models of a known shape with random weights, for speed where no weights are at hand.

How fast a model runs depends on its shapes, not on what it has learnt. So `random:llama-2-7b` can be sliced and timed
without a download. Its perplexity, its answers and its scores mean nothing, and everything that shows them says so.
"""

from __future__ import annotations

import hashlib
import json

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from amp_explore.errors import ModelError
from amp_explore.models.sharding import memory

PREFIX = "random:"


def _shape(model_type: str, hidden: int, layers: int, heads: int, kv_heads: int, neurons: int, vocabulary: int, **rest):
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": neurons,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        **rest,
    }


SHAPES: dict[str, dict[str, object]] = {
    "smollm2-135m": _shape("llama", 576, 30, 9, 3, 1536, 49152, max_position_embeddings=8192, tie_word_embeddings=True),
    "smollm2-1.7b": _shape(
        "llama", 2048, 24, 32, 32, 8192, 49152, max_position_embeddings=8192, tie_word_embeddings=True
    ),
    "llama-2-7b": _shape("llama", 4096, 32, 32, 32, 11008, 32000, max_position_embeddings=4096),
    "llama-2-13b": _shape("llama", 5120, 40, 40, 40, 13824, 32000, max_position_embeddings=4096),
    "llama-3.1-8b": _shape("llama", 4096, 32, 32, 8, 14336, 128256, max_position_embeddings=131072),
    "mistral-7b": _shape("mistral", 4096, 32, 32, 8, 14336, 32768, max_position_embeddings=32768, sliding_window=None),
    "qwen2.5-7b": _shape("qwen2", 3584, 28, 28, 4, 18944, 152064, max_position_embeddings=32768),
    "qwen3-0.6b": _shape(
        "qwen3", 1024, 28, 16, 8, 3072, 151936, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=True
    ),
    "phi-2": _shape("phi", 2560, 32, 32, 32, 10240, 51200, max_position_embeddings=2048, partial_rotary_factor=0.4),
}
"""Known shapes, from the configurations that the models were published with."""


def make(name: str, device: torch.device, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """The model of this shape, a tokenizer of bytes, and a fingerprint. The same name gives the same weights on the
    same device.

    Raises:
        ModelError: the shape is not known, or the device has no room for it.
    """
    if name not in SHAPES:
        raise ModelError(f"no shape {name!r}; {PREFIX} takes one of {', '.join(SHAPES)}")
    described = dict(SHAPES[name])
    config = AutoConfig.for_model(described.pop("model_type"), **described)
    with torch.device("meta"):
        needed = AutoModelForCausalLM.from_config(config).num_parameters() * dtype.itemsize
    free, _ = memory(device)
    if needed > free:
        raise ModelError(
            f"{PREFIX}{name} needs {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}, and {device} has "
            f"{free / 2**30:.1f} GiB left; take a smaller shape or precision"
        )
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    fingerprint = hashlib.sha256(json.dumps([PREFIX, name, SHAPES[name]]).encode()).hexdigest()[:16]
    return model, _byte_tokenizer(), fingerprint


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: it fits any vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={character: number for number, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
