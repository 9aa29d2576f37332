"""The pool loads each model once, anew when its files change, and lets go of what it has no room for."""

import shutil
import threading
import weakref

import pytest
import torch
from refusals import CPU, edit_json, edit_weights
from safetensors.torch import load_file
from tiny import tokens

from amp_explore.errors import ModelError
from amp_explore.models import pool as pool_module
from amp_explore.models.pool import ModelPool
from amp_explore.progress import Cancelled


def test_the_pool_keeps_the_latest_models_and_no_more(folder, tmp_path):
    sources = [str(shutil.copytree(folder, tmp_path / name)) for name in "abc"]
    pool = ModelPool(limit=2)
    a, b = (pool.get(source, **CPU) for source in sources[:2])
    assert pool.get(sources[0], **CPU) is a
    pool.get(sources[2], **CPU)
    assert pool.peek(sources[0], **CPU) is a
    assert pool.peek(sources[1], **CPU) is None, "the least recently used one goes"
    assert pool.get(sources[1], **CPU) is not b


def test_dtypes_are_models_of_their_own_in_the_pool(folder):
    pool = ModelPool(limit=2)
    exact, rough = (pool.get(str(folder), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert (exact.dtype, rough.dtype) == ("float32", "bfloat16")
    assert pool.peek(str(folder), device="cpu", dtype="float16") is None


def test_threads_that_want_the_same_model_load_it_once(folder):
    pool, loads, models, all_here = ModelPool(limit=2), [], [], threading.Barrier(4)

    def visit():
        all_here.wait(10)
        models.append(pool.get(str(folder), **CPU, progress=lambda _, __, note: loads.append(note)))

    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert loads.count("loading the weights") == 1
    assert len(models) == 4 and len(set(map(id, models))) == 1


def test_a_model_that_fails_to_load_is_tried_again(folder):
    pool = ModelPool(limit=2)
    weights = folder / "model.safetensors"
    weights.rename(folder / "away")
    with pytest.raises(ModelError):
        pool.get(str(folder), **CPU)
    assert pool.peek(str(folder), **CPU) is None
    (folder / "away").rename(weights)
    assert pool.get(str(folder), **CPU)


# Files that change


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """The pool looks at a model's files each time, not once a second."""
    monkeypatch.setattr(pool_module, "_SECONDS", -1)


def change_a_weight(folder) -> None:
    weight = load_file(folder / "model.safetensors")["model.norm.weight"]
    edit_weights(folder, model__norm__weight=weight + 1)


def change_the_tokenizer(folder) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token="a")


def change_the_configuration(folder) -> None:
    edit_json(folder / "config.json", rms_norm_eps=1e-3)


def add_a_template(folder) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize(
    "change",
    [change_a_weight, change_the_tokenizer, change_the_configuration, add_a_template],
    ids=lambda one: one.__name__,
)
def test_a_model_whose_files_change_is_loaded_anew_and_that_is_said(folder, change):
    pool, notes = ModelPool(limit=2), []
    before = pool.get(str(folder), **CPU)
    assert pool.peek(str(folder), **CPU) is before
    change(folder)
    assert pool.peek(str(folder), **CPU) is None
    after = pool.get(str(folder), **CPU, progress=lambda _, __, note: notes.append(note))
    assert after is not before and after is pool.peek(str(folder), **CPU)
    assert after.origin.digest != before.origin.digest
    assert "its files have changed: loading the weights" in notes


def test_a_model_whose_files_are_only_written_again_stays(folder):
    pool = ModelPool(limit=2)
    before = pool.get(str(folder), **CPU)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes())
    assert pool.peek(str(folder), **CPU) is None, "it may have changed"
    assert pool.get(str(folder), **CPU) is before
    assert pool.peek(str(folder), **CPU) is before


def test_a_model_whose_files_are_gone_stays(folder):
    pool = ModelPool(limit=2)
    before = pool.get(str(folder), **CPU)
    shutil.rmtree(folder)
    assert pool.peek(str(folder), **CPU) is before


@torch.inference_mode()
def test_a_model_in_memory_does_not_change_with_its_files(folder):
    model, ids = ModelPool(limit=1).get(str(folder), **CPU).model, tokens(1, 9)
    before = model(ids).logits
    for data in (bytes((folder / "model.safetensors").stat().st_size), b""):
        (folder / "model.safetensors").write_bytes(data)
        assert torch.equal(model(ids).logits, before)


def test_a_model_whose_files_are_damaged_meanwhile_is_refused(folder):
    pool = ModelPool(limit=2)
    pool.get(str(folder), **CPU)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="damaged or incomplete"):
        pool.get(str(folder), **CPU)


# Room


def test_a_model_that_leaves_is_gone_when_nobody_holds_it(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    pool = ModelPool(limit=1)
    weight = weakref.ref(next(pool.get(str(folder), **CPU).model.parameters()))
    pool.get(str(other), **CPU)
    assert weight() is None
    pool_module.give_back()


def test_waiting_for_another_model_can_be_cancelled(folder):
    pool = ModelPool(limit=1)
    busy, done = threading.Event(), threading.Event()

    def hold(*_):
        busy.set()
        done.wait(60)

    def cancel(_, __, note):
        assert note == "waiting for another model to load"
        raise Cancelled

    thread = threading.Thread(target=lambda: pool.get(str(folder), **CPU, progress=hold))
    thread.start()
    assert busy.wait(60)
    with pytest.raises(Cancelled):
        pool.get(str(folder), device="cpu", dtype="bfloat16", progress=cancel)
    done.set()
    thread.join(60)
