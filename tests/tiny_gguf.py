"""A tiny model as a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf as gguf_format
import torch
from tiny import tiny
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

TEXT = "It's 2024: naïve cafés sell 12,345 tins"


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    without: str = "",
    scaled: str = "",
    extra: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> PreTrainedModel:
    """The tiny llama as llama.cpp would write it, in float32, with a small tokenizer; returns the model."""
    model = tiny("llama").model
    config = model.config
    writer = gguf_format.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if scaled == "field":
        writer.add_rope_scaling_type(gguf_format.RopeScalingType.YARN)
    letters = sorted({letter for word, _ in ByteLevel(False).pre_tokenize_str(TEXT) for letter in word})
    tokens = ["<unk>", "<s>", "</s>", *letters, "It"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens + [f"unused{i}" for i in range(config.vocab_size - len(tokens))])
    writer.add_token_types(
        [gguf_format.TokenType.CONTROL] * 3 + [gguf_format.TokenType.NORMAL] * (config.vocab_size - 3)
    )
    writer.add_token_merges(["I t"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    names = gguf_format.get_tensor_name_map(gguf_format.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        name = names.get_name(name, try_suffixes=(".weight",))
        if name in (without, "output.weight"):  # the output is tied to the embedding
            continue
        if "attn_q" in name or "attn_k" in name:  # llama.cpp interleaves the two halves that rotate together
            tensor = tensor.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(name, tensor.contiguous().numpy())
    for name, tensor in extra.items():
        writer.add_tensor(name, tensor.numpy())
    if scaled == "tensor":
        writer.add_tensor("rope_freqs.weight", torch.ones(config.head_dim // 2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
