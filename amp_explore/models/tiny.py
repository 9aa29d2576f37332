"""A tiny random model of every family, in all its variants: what has to hold for any model can be tried on them in
milliseconds, without a download."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, NEURONS, VOCABULARY = 4, 6, 2, 8, 48, 40, 97

_COMMON = dict(
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    hidden_size=HIDDEN,
    intermediate_size=NEURONS,
    vocab_size=VOCABULARY,
    max_position_embeddings=1024,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
_MULTI_HEAD = dict(num_key_value_heads=HEADS)
_GEMMA = dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=8)
SPECS: dict[str, dict] = {
    "llama": dict(tie_word_embeddings=True),
    "llama-biases": dict(attention_bias=True, mlp_bias=False),
    "llama-multi-head": _MULTI_HEAD,
    "llama-multi-query": dict(num_key_value_heads=1),
    "mistral": dict(head_dim=HEAD_DIM, sliding_window=8),
    "qwen2": dict(),
    "qwen3": dict(head_dim=12),
    "gemma2": _GEMMA | dict(attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    "gemma3_text": _GEMMA | dict(layer_types=["sliding_attention", "full_attention"] * 2),
    "granite": dict(
        embedding_multiplier=3.0, logits_scaling=2.0, residual_multiplier=0.7, attention_multiplier=0.2, mlp_bias=True
    ),
    "smollm3": dict(use_sliding_window=True, sliding_window=8, no_rope_layer_interval=2),
    "olmo2": dict(),
    "olmo2-biases": _MULTI_HEAD | dict(attention_bias=True),
    "cohere": dict(logit_scale=0.3),
    "cohere-normed": dict(use_qk_norm=True, attention_bias=True),
    "stablelm": dict(use_qkv_bias=True, partial_rotary_factor=0.5),
    "stablelm-normed": dict(qk_layernorm=True, use_parallel_residual=True),
    "mixtral": dict(num_local_experts=4, intermediate_size=NEURONS // 4),
    "qwen3_moe": dict(num_experts=5, moe_intermediate_size=NEURONS // 5, num_experts_per_tok=3, mlp_only_layers=[1]),
    "phi": dict(),
    "phi-normed": dict(qk_layernorm=True),
    "phi3": dict(partial_rotary_factor=0.5, sliding_window=8),
    "opt": _MULTI_HEAD | dict(ffn_dim=NEURONS),
    "opt-projected": _MULTI_HEAD | dict(ffn_dim=NEURONS, word_embed_proj_dim=20, do_layer_norm_before=False),
    "gpt2": _MULTI_HEAD | dict(n_inner=NEURONS),
    "gpt2-scaled": _MULTI_HEAD | dict(n_inner=NEURONS, scale_attn_by_inverse_layer_idx=True, tie_word_embeddings=False),
    "gpt_neox": _MULTI_HEAD,
    "gpt_neox-sequential": _MULTI_HEAD | dict(use_parallel_residual=False, attention_bias=False, rotary_pct=1.0),
    "falcon": dict(ffn_hidden_size=NEURONS),
    "falcon-grouped": dict(ffn_hidden_size=NEURONS, new_decoder_architecture=True, num_kv_heads=KV_HEADS, bias=True),
    "falcon-multi-head": dict(ffn_hidden_size=NEURONS, multi_query=False, parallel_attn=False, bias=True),
}
"""Configurations by the family's name, a variant's behind a hyphen."""


@torch.inference_mode(False)
def make(name: str, dtype: str = "float32", attention: str | None = None) -> PreTrainedModel:
    """The model of this name, the same on every call, as transformers makes it, with weights large enough that every
    unit matters and with biases and norms that are not trivial."""
    config = AutoConfig.for_model(name.split("-")[0], **_COMMON | SPECS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += torch.randn_like(parameter) * 0.3
            else:
                parameter.data = torch.randn_like(parameter) * 0.2
    return model.to(getattr(torch, dtype)).eval()
