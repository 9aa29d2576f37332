"""A model folder loads as what it is or is refused in one line; the pool loads each model once."""

import json
import shutil
import socket
from dataclasses import replace

import pytest
import torch
from fake_hub import FakeHub, at, serving
from made_up import ids_of, save_tiny
from refusals import CPU, edit_json, edit_weights, refused
from safetensors.torch import load_file
from tiny import FAMILIES, tiny, tokens
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, BloomForCausalLM

from amp_explore import hub
from amp_explore.errors import AmpExploreError, ModelError
from amp_explore.keeping.jobs import JobRunner
from amp_explore.models.families import FAMILIES as KNOWN
from amp_explore.models.loading import from_model, load, prepare
from amp_explore.models.pool import ModelPool
from amp_explore.observe import gradients
from amp_explore.progress import Cancelled
from amp_explore.texts.calibration import TokenWindows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "cache"))


# What loads


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_saved_model_of_each_family_loads_with_identical_logits(family, tmp_path):
    loaded = load(str(save_tiny(tmp_path / "model", family)), **CPU)
    original, ids = tiny(family), tokens(2, 20)
    assert torch.equal(loaded.model(ids).logits, original.model(ids).logits)
    assert loaded.shape.layers == original.shape.layers
    assert loaded.shape.parameters == original.shape.parameters == sum(p.numel() for p in original.model.parameters())
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_model_that_is_loaded_in_the_midst_of_a_measurement_can_have_gradients(tmp_path, family):
    save_tiny(tmp_path / "model", family)
    with torch.inference_mode():
        loaded = load(str(tmp_path / "model"), **CPU)
    gradients.collect(loaded, TokenWindows(tuple(tokens(1, 9)), "made up", False))
    assert not any(tensor.is_inference() for tensor in (*loaded.model.parameters(), *loaded.model.buffers()))


def test_a_loaded_model_says_what_it_is(folder, monkeypatch):
    loaded = load(str(folder), **CPU)
    assert loaded.tokenizer("ab c").input_ids == ids_of("ab c")
    assert loaded.name == "model"
    monkeypatch.chdir(folder)
    assert replace(loaded, source=".").name == "model"
    said = loaded.describe()
    assert said.pop("fingerprint") == loaded.shape.fingerprint
    assert said == {
        "source": str(folder),
        "name": "model",
        "architecture": "llama",
        "dtype": "float32",
        "device": "cpu",
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_that_was_asked_for(folder, dtype):
    loaded = load(str(folder), device="cpu", dtype=dtype)
    assert loaded.dtype == dtype
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert loaded.shape.bytes_per_parameter == getattr(torch, dtype).itemsize


def test_weights_in_several_files_load_as_those_in_one(folder, tmp_path):
    tiny("llama").model.save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    one, several = load(str(folder), **CPU), load(str(tmp_path / "sharded"), **CPU)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(several.model.state_dict()[name], tensor), name


def test_progress_is_reported_and_cancel_passes(folder):
    notes = []
    load(str(folder), **CPU, progress=lambda done, total, note: notes.append(note))
    assert list(dict.fromkeys(notes)) == [
        "fingerprinting the weights",
        "trying a model that is new here",
        "loading the weights",
    ]

    def cancel(*_):
        raise Cancelled

    with pytest.raises(Cancelled):
        load(str(folder), **CPU, progress=cancel)


# The fingerprint


def test_the_fingerprint_is_the_same_for_every_dtype_and_place(folder, tmp_path):
    prints = {load(str(folder), device="cpu", dtype=dtype).shape.fingerprint for dtype in ("float32", "bfloat16")}
    moved = shutil.copytree(folder, tmp_path / "moved")
    edit_json(
        moved / "config.json",
        transformers_version="4.45.0",
        _name_or_path="elsewhere",
        dtype="bfloat16",
        use_cache=False,
    )
    assert prints == {load(str(moved), **CPU).shape.fingerprint}


def test_the_fingerprint_changes_with_any_weight_and_with_the_configuration(folder):
    before = load(str(folder), **CPU).shape.fingerprint
    weight = load_file(folder / "model.safetensors")["model.layers.3.mlp.down_proj.weight"]
    changed = weight.clone()
    changed[5, 7] += 1e-3
    edit_weights(folder, model__layers__3__mlp__down_proj__weight=changed)
    other_weight = load(str(folder), **CPU).shape.fingerprint
    edit_weights(folder, model__layers__3__mlp__down_proj__weight=weight)
    edit_json(folder / "config.json", rms_norm_eps=1e-3)
    other_config = load(str(folder), **CPU).shape.fingerprint
    assert len({before, other_weight, other_config}) == 3


# What is refused


def test_pickled_weights_are_refused(folder):
    torch.save(tiny("llama").model.state_dict(), folder / "pytorch_model.bin")
    assert load(str(folder), **CPU)  # safetensors beside them are what counts
    (folder / "model.safetensors").unlink()
    refused(folder, "only pickled weights, .* convert them to safetensors first")


def test_a_folder_without_weights_or_configuration_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "weights")
    refused(folder, "no .safetensors file with weights")
    (folder / "config.json").unlink()
    refused(folder, "no model here; a model folder has a config.json")


def test_unknown_architectures_are_refused_with_the_list_of_known_ones(tmp_path):
    model = BloomForCausalLM(BloomConfig(n_layer=1, n_head=2, hidden_size=8, vocab_size=9))
    model.save_pretrained(tmp_path / "bloom")
    message = refused(tmp_path / "bloom", "architecture 'bloom' is not supported")
    assert all(name in message for name in KNOWN)


@pytest.mark.parametrize("model_type", [..., None, "", 3, ["llama"], "bloom", "Llama"])
def test_a_configuration_of_no_known_architecture_is_refused(folder, model_type):
    edit_json(folder / "config.json", model_type=model_type)
    refused(folder, "is not supported; use a model of one of: llama")


@pytest.mark.parametrize(
    ("model_type", "option", "meaning"),
    [("falcon", "alibi", "ALiBi positions"), ("gpt2", "add_cross_attention", "cross-attention")],
)
def test_variants_that_do_not_fit_are_refused_by_name(folder, model_type, option, meaning):
    config = AutoConfig.for_model(
        model_type, **{option: True}, num_hidden_layers=1, hidden_size=8, num_attention_heads=2, vocab_size=9
    )
    with pytest.raises(ModelError, match=f"{model_type} with {meaning} is not supported"):
        from_model(AutoModelForCausalLM.from_config(config), None)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    refused(folder, f"{model_type} with {meaning} is not supported")


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\0"])
def test_a_damaged_configuration_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    refused(folder, "config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "not a multiple"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_hidden_layers": 5}, r"do not fit config.json, first of all model.layers.4"),
        ({"num_key_value_heads": 3}, "k_proj"),
        ({"intermediate_size": 44}, "mlp"),
        ({"vocab_size": 99}, "embed"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised weights cannot be sliced"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights cannot be sliced"),
    ],
)
def test_a_configuration_that_the_weights_do_not_fit_is_refused(folder, changes, message):
    edit_json(folder / "config.json", **changes)
    refused(folder, message)


def test_missing_weights_are_refused_not_made_up(folder):
    edit_weights(folder, model__layers__1__self_attn__q_proj__weight=None)
    refused(folder, "first of all model.layers.1.self_attn.q_proj.weight")


def test_an_already_pruned_model_is_refused_not_padded(folder):
    weight = load_file(folder / "model.safetensors")["model.layers.2.mlp.up_proj.weight"]
    edit_weights(folder, model__layers__2__mlp__up_proj__weight=weight[:30].clone())
    refused(folder, "first of all model.layers.2.mlp.up_proj.weight")


def test_damaged_weights_and_a_missing_tokenizer_are_refused(folder):
    weights = (folder / "model.safetensors").read_bytes()
    for damaged in (b"", weights[:1000], weights[:-100]):
        (folder / "model.safetensors").write_bytes(damaged)
        refused(folder, "model.safetensors is damaged or incomplete; download it again")
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "tokenizer.json").write_text("{}")
    refused(folder, "cannot be loaded")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no model given"),
        ("\0", "no model given"),
        ("./none", "there is no such folder"),
        ("/none/at/all", "there is no such folder"),
        ("~/none", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("none.gguf", "there is no such file"),
        ("none.GGUF", "there is no such file"),
        ("not a hub id", "neither a folder nor a hub id"),
        ("owner/" + "x" * 200, "neither a folder nor a hub id"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_a_source_that_is_none_is_refused(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(source, message)


@pytest.mark.parametrize(
    "content", [b"", b"nonsense" * 100, b"GGUF", b"GGUF" + bytes(100), b"GGUF\x03\0\0\0" + b"\xff" * 64]
)
def test_a_file_that_is_no_gguf_is_refused_and_nothing_is_left(content, tmp_path):
    (tmp_path / "model.gguf").write_bytes(content)
    refused(tmp_path / "model.gguf", "model.gguf")
    cache = tmp_path / "cache" / "models"
    assert not [path for path in cache.glob("*") if path.is_dir()]


def test_a_file_of_another_kind_is_refused(folder):
    refused(folder / "config.json", "not a model; give its folder, or a .gguf file")


def test_a_demo_model_that_was_not_fetched_is_refused():
    with pytest.raises(AmpExploreError, match="run `python -m amp_explore fetch`"):
        load("demo")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_none_is_refused(folder, device):
    refused(folder, "device .* is not usable here", device=device)


def test_a_dtype_that_is_none_is_refused(folder):
    refused(folder, "dtype 'int8' is not known", dtype="int8")


# The hub, played by this machine


@pytest.fixture
def listening(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        at(monkeypatch, tmp_path, server.getsockname()[1])
        yield server


@pytest.mark.parametrize("source", ["owner/model", "gpt2"])
def test_without_a_network_a_hub_id_is_refused_at_once(listening, source):
    listening.close()
    refused(source, "is no local folder, and the hub cannot be reached; check the path or the network")


def test_a_hub_that_never_answers_is_given_up(listening):
    refused("owner/model", "the hub cannot be reached")


def test_a_model_that_the_hub_does_not_have_is_refused(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path, FakeHub("owner/model", {})):
        refused("owner/other", "the hub has no 'owner/other', or does not let you have it")


def test_what_is_neither_a_folder_nor_an_id_is_refused(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path, FakeHub("owner/model", {})):
        refused("not an id", "'not an id' is neither a folder nor a hub id")


def test_a_slow_download_holds_nobody_elses_work(saved, monkeypatch, tmp_path):
    """It goes on beside the queue, shows its bytes and can be cancelled; then the loading follows in the queue."""
    runner, pool = JobRunner(), ModelPool(limit=1)
    files = {path.name: path.read_bytes() for path in saved.iterdir()}

    def submit():
        return runner.submit(
            "load",
            lambda job: pool.get("owner/model", **CPU, progress=job),
            urgent=True,
            before=lambda job: prepare("owner/model", job),
        )

    with serving(monkeypatch, tmp_path, FakeHub("owner/model", files, pause_after=10_000)) as slow:
        job = submit()
        assert slow.paused.wait(60)
        assert runner.submit("work", lambda _: "done").finished.wait(60), "others wait for the download"
        while not job.done:
            assert not job.finished.wait(0.05), job.error
        job.cancel()
        assert job.finished.wait(60) and job.state == "cancelled"
        assert slow.hung_up.wait(60), "the download goes on"
        slow.go_on.set()
        job = submit()
        assert job.finished.wait(60) and job.state == "done", job.error
    assert job.result.shape.fingerprint == load(str(saved), **CPU).shape.fingerprint
