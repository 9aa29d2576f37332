"""A model folder that a stranger made does no harm: it is refused in one line, in time, and runs nothing of its own."""

import json
import os
import shutil

import pytest
from refusals import CPU, DEVICES, edit_json, edit_tokenizer, refused
from tokenizers import Regex, normalizers, pre_tokenizers

from amp_explore.models import sandbox, vetting
from amp_explore.models.loading import load
from amp_explore.progress import Cancelled

RUNS = "from pathlib import Path\nPath('it-ran').touch()\nclass Own: pass\n"

# Its code is never run


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("tokenizer_config.json", ["own.Own", None]),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Own", "own.Own"]}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.LlamaTokenizer", None]}),
        ("tokenizer_config.json", {"AutoTokenizer": ["somebody/else--own.Own", None]}),
        ("config.json", {"AutoTokenizer": ["own.Own", None]}),
        ("config.json", {"AutoConfig": "own.Own"}),
        ("config.json", {"AutoModelForCausalLM": "own.Own"}),
        ("generation_config.json", {"AutoModelForCausalLM": "own.Own"}),
    ],
)
def test_code_of_a_models_own_is_refused_without_asking(folder, monkeypatch, file, auto_map):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    (folder / "own.py").write_text(RUNS)
    edit_json(folder / file, auto_map=auto_map)
    refused(folder, f"{file} names code of its own .* never run")
    assert not (folder / "it-ran").exists()


def test_code_that_transformers_has_taken_over_is_not_needed(folder, monkeypatch):
    """As published models have it that are older than their place in transformers."""
    monkeypatch.chdir(folder)
    (folder / "own.py").write_text(RUNS + "class LlamaForCausalLM(Own): pass\n")
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.LlamaForCausalLM"})
    assert type(load(str(folder), **CPU).model).__module__.startswith("transformers.")
    assert not (folder / "it-ran").exists()


def test_kernels_and_adapters_from_elsewhere_are_refused(folder):
    edit_json(folder / "config.json", attn_implementation="somebody/kernel")
    refused(folder, "config.json names code of its own .*somebody/kernel")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/else"}))
    refused(folder, "it is an adapter")


# What hangs


SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors")
OTHERS = ("model.safetensors.index.json", "chat_template.jinja", "tokenizer.model", "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", SMALL + OTHERS)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused(folder, name, kind):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    refused(folder, f"{name} is no regular file")


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_links_that_lead_back_are_refused_and_others_followed(folder, device):
    weights = folder / "model.safetensors"
    weights.rename(folder / "elsewhere")
    weights.symlink_to("elsewhere")
    assert load(str(folder), device=device, dtype="float32")
    weights.unlink()
    weights.symlink_to(weights)
    refused(folder, "leads back to itself", device=device)


def test_a_pipe_in_place_of_a_model_is_refused(tmp_path):
    for name in ("model", "model.gguf"):
        os.mkfifo(tmp_path / name)
        refused(tmp_path / name, "not a model|no regular file")


def test_a_small_file_that_is_not_small_is_refused(folder):
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(10**12)
    refused(folder, "tokenizer.json has 1000000 MB")


def backtracks(core):
    slow = pre_tokenizers.Split(Regex(r"(a|a|aa)+$"), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([slow, core.pre_tokenizer])


def expands(core):
    core.normalizer = normalizers.Sequence([normalizers.Replace("a", "a" * 100)] * 6)


def expands_a_little(core):
    core.normalizer = normalizers.Replace("a", "a" * 100)


@pytest.mark.parametrize("edit", [backtracks, expands, expands_a_little])
def test_a_tokenizer_that_does_not_come_to_an_end_is_refused(folder, edit, monkeypatch):
    monkeypatch.setattr(vetting, "_MEMORY", 2**30)
    edit_tokenizer(folder, edit)
    refused(folder, "model: .*(it cannot be loaded|reading it takes too|tokens of a text of)")


def test_what_takes_too_long_is_ended(folder, monkeypatch):
    monkeypatch.setattr(vetting, "_SECONDS", 1)
    loop = "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3
    (folder / "chat_template.jinja").write_text(loop)
    refused(folder, "reading it takes too long; do not use it")


def test_what_takes_long_can_be_cancelled(folder):
    loop = "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3
    (folder / "chat_template.jinja").write_text(loop)
    calls = []

    def cancel(*call):
        calls.append(call)
        if len([note for *_, note in calls if note == "trying a model that is new here"]) > 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        load(str(folder), **CPU, progress=cancel)
    assert sandbox._helper is None
    (folder / "chat_template.jinja").unlink()
    assert load(str(folder), **CPU)


def test_a_folder_is_tried_once_for_what_it_holds(folder, tmp_path):
    def notes(place) -> set[str]:
        seen = set()
        load(str(place), **CPU, progress=lambda _, __, note: seen.add(note))
        return seen

    new = "trying a model that is new here"
    assert new in notes(folder)
    assert new not in notes(folder) and new not in notes(shutil.copytree(folder, tmp_path / "again"))
    edit_json(folder / "tokenizer_config.json", model_max_length=77)
    assert new in notes(folder)
