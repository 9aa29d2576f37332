"""A GGUF file from a stranger: what it claims is held against its length, and what would be left out is refused."""

import struct
from pathlib import Path

import gguf as gguf_format
import pytest
import torch
from refusals import CPU, refused
from tiny import tiny
from tiny_gguf import write_gguf

from amp_explore import seals
from amp_explore.models.gguf_header import read_header
from amp_explore.models.loading import load
from amp_explore.progress import Cancelled
from amp_explore.texts.assets import cache_root

KEY = "llama.attention.layer_norm_rms_epsilon"
STRING, ARRAY, FLOAT = 8, 9, 6


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path) -> Path:
    write_gguf(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def value_at(data: bytes, key: str) -> int:
    """Where the value of a key begins."""
    name = struct.pack("<Q", len(key)) + key.encode()
    return data.index(name) + len(name) + 4


def edit(path: Path, key: str, form: str, value) -> None:
    """Replace a number of the file's metadata."""
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{form}", data, value_at(data, key), value)
    path.write_bytes(data)


def nothing_is_left() -> bool:
    return not [place for place in (cache_root() / "models").glob("*") if place.is_dir()]


def claim(*fields: tuple[str, object]) -> bytes:
    """A file of 1.2 KB whose only value claims something."""
    form, numbers = "".join(form for form, _ in fields), [number for _, number in fields]
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 4) + b"long"
    return (head + struct.pack(f"<{form}", *numbers)).ljust(1200, b"\0")


@pytest.mark.parametrize(
    "data",
    [
        claim(("I", ARRAY), ("I", STRING), ("Q", 2**60)),
        claim(("I", ARRAY), ("I", FLOAT), ("Q", 2**60)),
        claim(("I", ARRAY), ("I", ARRAY), ("Q", 2**60)),
        claim(("I", STRING), ("Q", 2**60)),
        claim(("I", 99)),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0) + bytes(1200),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + bytes(1200),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + bytes(1200),
    ],
    ids=["strings", "numbers", "arrays", "string", "type", "tensors", "keys", "version"],
)
def test_what_a_file_claims_is_held_against_its_length(tmp_path, data):
    (tmp_path / "claims.gguf").write_bytes(data)
    refused(tmp_path / "claims.gguf", "claims.gguf is damaged or incomplete")


@pytest.mark.parametrize(("offset", "value"), [(0, 5), (4, 2**40), (12 + 16, 99), (16 + 16, 2**40)])
def test_what_a_tensor_claims_is_held_against_the_files_length(path, offset, value):
    """Its dimensions, one of them, its type, where it lies."""
    data = bytearray(path.read_bytes())
    name = b"blk.0.ffn_down.weight"
    struct.pack_into("<I" if offset in (0, 28) else "<Q", data, data.index(name) + len(name) + offset, value)
    path.write_bytes(data)
    refused(path, "tiny.gguf is damaged or incomplete")


@pytest.mark.parametrize(
    ("key", "form", "value", "said"),
    [
        (KEY, "f", float("nan"), "rms_norm_eps is nan"),
        (KEY, "f", 0.0, "rms_norm_eps is 0.0"),
        (KEY, "f", -1.0, "rms_norm_eps is -1.0"),
        ("llama.rope.freq_base", "f", 0.0, "rope_theta is 0.0"),
        ("llama.rope.freq_base", "f", float("inf"), "rope_theta is inf"),
        ("llama.block_count", "I", 0, "num_hidden_layers is 0"),
        ("llama.block_count", "I", 10**9, "num_hidden_layers is 1000000000"),
        ("llama.attention.head_count", "I", 0, "num_attention_heads is 0"),
        ("llama.embedding_length", "I", 2**31, "hidden_size is 2147483648"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused(path, key, form, value, said):
    edit(path, key, form, value)
    refused(path, said)
    assert nothing_is_left()


def test_the_header_says_what_the_package_reads(path):
    header, reader = read_header(path), gguf_format.GGUFReader(path)
    assert header.tensors == {tensor.name: tensor.n_elements for tensor in reader.tensors}
    assert header.values[KEY] == pytest.approx(1e-6)
    assert header.parameters == tiny("llama").shape.parameters


def test_tensors_that_would_be_left_out_are_refused_by_name(tmp_path):
    path = tmp_path / "biased.gguf"
    write_gguf(path, extra={f"blk.{layer}.attn_q.bias": torch.ones(48) for layer in range(2)})
    refused(path, "biased.gguf holds blk.0.attn_q.bias and 1 more, which transformers leaves out")
    assert nothing_is_left()


def test_a_weight_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "infinite.gguf"
    write_gguf(path, extra={"output_norm.weight": torch.full((48,), torch.inf)}, without="output_norm.weight")
    refused(path, "model.norm.weight holds NaN or infinity")


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "qwen2"])
def test_files_of_other_kinds_hold_the_weights_that_were_written(tmp_path, family):
    write_family(tmp_path / "tiny.gguf", family, unknown=True)
    found = load(str(tmp_path / "tiny.gguf"), **CPU).model.state_dict()
    written = tiny(family).model.state_dict()
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        torch.testing.assert_close(found[name], tensor)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_vocabulary_without_an_unknown_token_is_refused_where_one_is_needed(tmp_path, family):
    write_family(tmp_path / "tiny.gguf", family, unknown=False)
    refused(tmp_path / "tiny.gguf", "Unk token .*: use the model's safetensors")
    assert nothing_is_left()


def test_a_large_file_is_read_with_progress_and_can_be_cancelled(path, monkeypatch):
    monkeypatch.setattr(seals, "_CHUNK", 2**10)
    calls = []

    def cancel(done, total, note):
        calls.append((done, total, note))
        if len(calls) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        load(str(path), **CPU, progress=cancel)
    size = path.stat().st_size
    assert [(total, note) for _, total, note in calls] == [(size, "reading tiny.gguf")] * 3
    assert sorted(done for done, *_ in calls) == [done for done, *_ in calls]


def write_family(path: Path, family: str, *, unknown: bool) -> None:
    """A tiny model of a kind as llama.cpp would write it, with a vocabulary of SentencePiece's kind."""
    model, architecture = tiny(family).model, family.removesuffix("_text")
    config, head_dim = model.config, tiny(family).shape.layers[0].head_dim
    writer = gguf_format.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    words = ["<unk>", "<bos>", "<eos>", "▁", *"abcdefghijklmnopqrstuvwxyzT."]
    words += [f"unused{number}" for number in range(config.vocab_size - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(number) for number in range(len(words))])
    writer.add_token_types([gguf_format.TokenType.CONTROL] * 3 + [gguf_format.TokenType.NORMAL] * (len(words) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if unknown:
        writer.add_unk_token_id(0)
    kinds = {name: kind for kind, name in gguf_format.MODEL_ARCH_NAMES.items()}
    names = gguf_format.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            offset = 1 if "norm" in name and "gemma" in family else 0  # llama.cpp adds what Gemma's code adds later
            writer.add_tensor(stored, (tensor + offset).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
