"""Weights, configuration and tokenizer that do not belong together are refused by name, never made to fit."""

import json

import pytest
import torch
from made_up import save_tiny
from refusals import CPU, DEVICES, edit_json, edit_tokenizer, edit_weights, refused
from safetensors.torch import load_file
from tiny import HIDDEN, tiny, tokens

from amp_explore.models.loading import load

# Damaged files


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("damage", ["pointer", "cut", "empty", "header", "depth", "other sizes"])
def test_damaged_weights_are_refused_on_every_device(folder, damage, device):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    other_sizes = data[8 : 8 + length].replace(b'"shape":[48]', b'"shape":[99]')
    path.write_bytes(
        {
            "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "cut": data[:-100],
            "empty": b"",
            "header": (2**60).to_bytes(8, "little") + data[8:],
            "depth": (200_000).to_bytes(8, "little") + b"[" * 200_000,
            "other sizes": data[:8] + other_sizes + data[8 + length :],
        }[damage]
    )
    message = "Git LFS pointer.* run `git lfs pull`" if damage == "pointer" else "damaged or incomplete"
    refused(folder, f"model.safetensors is .*{message}", device=device)


def test_a_pointer_in_place_of_a_small_file_is_refused(folder):
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, "tokenizer.json is a Git LFS pointer")
    (folder / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(folder, "config.json is a Git LFS pointer")


@pytest.mark.parametrize("names", [["../model.safetensors"], ["/dev/zero"], ["weights.bin"], [7], []])
def test_an_index_names_files_of_its_folder_only(folder, names):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    weight_map = dict(zip("abc", names, strict=False))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, "index.json names")


def test_a_path_that_is_not_utf8_is_refused(folder):
    other = folder.with_name("mod\udce9l")
    folder.rename(other)
    refused(other, "the path is not in UTF-8").encode()
    refused(f"{folder}\0", "no model given")


# Numbers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and there are 38 tensors"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0 in its configuration"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_attention_heads": -1}, "num_attention_heads is -1"),
        ({"max_position_embeddings": 1e9}, "max_position_embeddings is 1000000000.0"),
        ({"vocab_size": 4 * 10**7}, "promises .* parameters where the files hold"),
        ({"hidden_size": 6 * 10**8, "head_dim": 8}, "promises .* parameters where the files hold"),
        ({"head_dim": 10**9}, "promises .* parameters where the files hold"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan .* no finite number"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0 .* not between 0 and 1"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05 .* not between 0 and 1"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "rope_theta is 0 .* not above 0"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": float("inf")}}, "rope_theta is inf"),
        ({"initializer_range": float("-inf")}, "initializer_range is -inf"),
    ],
)
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_number_that_cannot_be_meant_is_refused(folder, changes, said, device):
    edit_json(folder / "config.json", **changes)
    refused(folder, said, device=device)


def test_a_nested_configuration_is_refused(folder):
    (folder / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    refused(folder, "config.json cannot be read")


# Weights that would be left out


def test_weights_that_the_configuration_has_no_place_for_are_refused_by_name(tmp_path):
    place = save_tiny(tmp_path / "model", "llama-biases")
    assert load(str(place), **CPU)
    edit_json(place / "config.json", attention_bias=False)
    refused(place, "no place for model.layers.0.self_attn.k_proj.bias and 15 more")


def test_layers_that_the_configuration_does_not_count_are_refused(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    refused(folder, "no place for model.layers.3.input_layernorm.weight and 8 more")


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8), "h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e4)}),
        ("gpt_neox", {"gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(4)}),
    ],
)
@torch.inference_mode()
def test_buffers_that_older_releases_saved_are_left_out(tmp_path, family, buffers):
    place, ids = save_tiny(tmp_path / "model", family), tokens(1, 9)
    edit_weights(place, **buffers)
    assert torch.equal(load(str(place), **CPU).model(ids).logits, tiny(family).model(ids).logits)


@torch.inference_mode()
def test_a_head_that_stands_in_the_file_is_taken_also_where_the_configuration_ties_it(folder):
    embeddings, ids = load_file(folder / "model.safetensors")["model.embed_tokens.weight"], tokens(1, 9)
    edit_weights(folder, lm_head__weight=embeddings.clone())
    tied = load(str(folder), **CPU)
    assert torch.equal(tied.model(ids).logits, tiny("llama").model(ids).logits)
    assert tied.shape.parameters == tiny("llama").shape.parameters
    edit_weights(folder, lm_head__weight=embeddings * 2)
    own = load(str(folder), **CPU)
    torch.testing.assert_close(own.model(ids).logits, 2 * tied.model(ids).logits)
    assert own.shape.parameters == tied.shape.parameters + embeddings.numel()


# Weights that are no numbers


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(
    ("value", "dtype"), [(float("nan"), "float32"), (float("inf"), "bfloat16"), (float("-inf"), "float16")]
)
def test_a_weight_that_is_no_number_is_named(folder, value, dtype, device):
    name = "model.layers.2.mlp.up_proj.weight"
    weight = load_file(folder / "model.safetensors")[name].clone()
    weight[3, 4] = value
    edit_weights(folder, **{name: weight})
    refused(folder, f"{name} holds NaN or infinity in {dtype}", device=device, dtype=dtype)


def test_a_weight_that_float16_cannot_hold_is_named(folder):
    edit_weights(folder, model__norm__weight=torch.full((HIDDEN,), 1e5))
    refused(folder, "model.norm.weight holds NaN or infinity in float16; take bfloat16", dtype="float16")
    assert load(str(folder), device="cpu", dtype="bfloat16")


# Tokenizers


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(folder):
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["vocab"] |= {f"word{number}": 90 + number for number in range(9)}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    refused(folder, "tokens up to number 98, and the model embeddings for 97")


def test_special_tokens_beyond_the_embeddings_are_no_matter_until_they_are_used(folder):
    """Gemma 3 has a token for images that its smallest model has no embedding for."""
    edit_tokenizer(folder, lambda core: core.add_special_tokens([f"<extra{number}>" for number in range(60)]))
    loaded = load(str(folder), **CPU)
    assert len(loaded.tokenizer) > loaded.model.config.vocab_size


def test_a_lost_tokenizer_is_not_taken_for_an_empty_one(folder):
    (folder / "tokenizer.json").unlink()
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    refused(folder, "tokenizer")
    edit_json(folder / "config.json", tokenizer_class="LlamaTokenizer")
    (folder / "tokenizer_config.json").unlink()
    refused(folder, "tokenizer")


def test_a_vocabulary_that_takes_sentencepiece_says_so(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    refused(folder, "pip install sentencepiece")
