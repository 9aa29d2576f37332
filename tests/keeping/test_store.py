"""The cache answers what a fresh computation would, whoever else is at it."""

import copy
import gc
import hashlib
import json
import sqlite3
import threading
from contextlib import closing

import pytest
import torch
from kept import made_up, open_folder, read_only, refuse, same
from tiny import LAYERS, random_plan, tiny, tokens

from amp_explore.errors import AmpExploreError, CacheError, PlanError
from amp_explore.keeping import database, in_memory
from amp_explore.keeping.store import Store
from amp_explore.models.families import decoder_layers
from amp_explore.models.loading import from_model
from amp_explore.observe.statistics import collect
from amp_explore.plan import PruningPlan
from amp_explore.texts.calibration import TokenWindows
from amp_explore.workbench import Workbench

# Measurements and plans

SETUP = {"windows": "w", "dtype": "float32"}
RESULT = {"value": 19.98, "loss": 2.99, "stderr": None, "rounds": [1.5, 2.5], "n": 7}


def test_measurements_are_made_once_per_kind_model_plan_and_setup(tmp_path):
    store = Store(tmp_path)
    where = ("perplexity", "model", "plan", SETUP)
    assert store.find_measurement(*where) is None
    assert store.measurement(*where, lambda: RESULT) == RESULT
    assert Store(tmp_path).measurement(*where, refuse) == RESULT
    for position, other in enumerate(("task", "other", "other", SETUP | {"dtype": "bfloat16"})):
        assert store.find_measurement(*where[:position], other, *where[position + 1 :]) is None
    assert store.find_measurement(*where[:3], dict(reversed(SETUP.items()))) == RESULT


def test_measurements_of_a_plan_are_listed_newest_first(tmp_path):
    store = Store(tmp_path)
    for number in (1, 2, 3, 1):
        store.put_measurement("speed", "model", "plan", {"batch": number}, {"number": number})
    store.put_measurement("speed", "model", "another plan", {"batch": 9}, {})
    store.put_measurement("task", "model", "plan", {"batch": 9}, {})
    listed = store.measurements("speed", "model", "plan")
    assert [row["number"] for row in listed] == [1, 3, 2]


def test_a_measurement_that_was_altered_is_not_trusted(tmp_path, caplog):
    store = Store(tmp_path)
    store.put_measurement("perplexity", "model", "plan", {}, {"value": 23.5})
    with sqlite3.connect(tmp_path / "runs.sqlite") as database:
        database.execute("UPDATE measurements SET result = replace(result, '23', '13')")
    assert store.find_measurement("perplexity", "model", "plan", {}) is None
    assert store.measurements("perplexity", "model", "plan") == []
    assert "damaged" in caplog.text
    assert store.measurement("perplexity", "model", "plan", {}, lambda: {"value": 23.5}) == {"value": 23.5}


def test_plans_are_kept_under_their_digest(tmp_path):
    loaded = tiny("llama")
    plan = random_plan(loaded, 1).described(by="hand")
    digest = Store(tmp_path).put_plan(plan)
    back = Store(tmp_path).plan(digest, loaded.shape)
    assert back == plan and back.made_by == {"by": "hand"}
    with pytest.raises(PlanError, match="not kept on this server"):
        Store(tmp_path).plan("0" * 16, loaded.shape)
    with pytest.raises(PlanError, match="does not fit|other weights"):
        Store(tmp_path).plan(digest, tiny("qwen2").shape)


def test_what_is_no_result_is_not_taken_for_one(tmp_path, caplog):
    """Though its hash is right."""
    store = Store(tmp_path)
    for text in ("[1, 2]", "5", "null", "{", '"text"', "[" * 100_000, "\x00"):
        store.put_measurement("task", "model", "plan", {}, {"acc": 1})
        with sqlite3.connect(tmp_path / "runs.sqlite") as other:
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            other.execute("UPDATE measurements SET result = ?, sha256 = ?", (text, sha256))
        assert store.find_measurement("task", "model", "plan", {}) is None
        assert store.measurements("task", "model", "plan") == []
    for value in (None, 5, b"\xff\xfe"):
        store.put_measurement("task", "model", "plan", {}, {"acc": 1})
        with sqlite3.connect(tmp_path / "runs.sqlite") as other:
            other.execute("UPDATE measurements SET setup = CAST(? AS BLOB)", (value or b"",))
        assert store.find_measurement("task", "model", "plan", {}) is None
    assert "damaged" in caplog.text


def test_the_result_of_another_plan_is_not_taken_for_this_ones(tmp_path):
    """Where damage to an index leads to it: whole and sound, and not what was asked for."""
    store = Store(tmp_path)
    for plan in ("first", "asked", "other"):
        store.put_measurement("task", "model", plan, {}, {"plan": plan})
    data = (tmp_path / "runs.sqlite").read_bytes()
    with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as file:
        ((key,),) = file.execute("SELECT key FROM measurements WHERE plan = 'asked'")
    for entry in (key.encode() + b"\x02", b"modelaskedtask\x02"):
        assert data.count(entry) == 1, "the index does not look like this any more"
        data = data.replace(entry, entry[:-1] + b"\x03")
    (tmp_path / "runs.sqlite").write_bytes(data)
    assert store.find_measurement("task", "model", "asked", {}) is None
    assert store.measurements("task", "model", "asked") == []
    assert store.measurement("task", "model", "asked", {}, lambda: {"plan": "asked"}) == {"plan": "asked"}
    assert Store(tmp_path).measurement("task", "model", "asked", {}, refuse) == {"plan": "asked"}


def test_a_plan_that_earlier_versions_kept_is_found(tmp_path):
    """As plain JSON; and damaged ones are not there."""
    loaded, store = tiny("llama"), Store(tmp_path)
    plan = random_plan(loaded, 1)
    digest = store.put_plan(plan)
    with sqlite3.connect(tmp_path / "runs.sqlite") as other:
        other.execute("UPDATE plans SET document = ?", (plan.to_json(),))
    assert store.plan(digest, loaded.shape) == plan
    for document in (b"damaged", "damaged", b"", 5, random_plan(loaded, 2).to_json()):
        with sqlite3.connect(tmp_path / "runs.sqlite") as other:
            other.execute("UPDATE plans SET document = ?", (document,))
        with pytest.raises(PlanError, match="not kept on this server"):
            store.plan(digest, loaded.shape)
    store.put_plan(plan)
    assert store.plan(digest, loaded.shape) == plan


def test_a_plan_that_cannot_be_looked_for_is_not_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_READ_SECONDS", 0.1)
    loaded = tiny("llama")
    digest = Store(tmp_path).put_plan(random_plan(loaded, 1))
    with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(CacheError, match="locked by another program: close that program"):
            Store(tmp_path).plan(digest, loaded.shape)


@pytest.mark.parametrize("asked", ["", "lots", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_said_at_once(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("AMP_EXPLORE_CACHE_GB", asked)
    with pytest.raises(AmpExploreError, match="AMP_EXPLORE_CACHE_GB is .*; set it to"):
        Store(tmp_path)


def test_threads_may_share_a_store(tmp_path):
    store, failed = Store(tmp_path), []

    def visitor(number):
        try:
            for step in range(5):
                assert same(store.statistics({"step": step}, lambda step=step: made_up(step)), made_up(step))
                store.put_measurement("task", "model", str(number), {"step": step}, {"step": step})
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=visitor, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert all(len(store.measurements("task", "model", str(number))) == 5 for number in range(6))


# Through the workbench


class Unwanted(AssertionError):
    pass


def no_work(*_):
    raise Unwanted("worked, though the answer was in the cache")


def test_an_answer_from_the_cache_equals_the_recomputed_one(tmp_path):
    loaded = tiny("gemma2")
    plan = random_plan(loaded, 1, extreme=False)
    windows = TokenWindows(tuple(tokens(5, 16)), "made up", False)
    first = Workbench(Store(tmp_path / "one"))
    assert not first.has_evidence(loaded, windows) and first.known_perplexity(loaded, plan, windows) is None
    first.scores(loaded, windows), first.perplexity(loaded, plan, windows)

    kept, fresh = Workbench(Store(tmp_path / "one")), Workbench(Store(tmp_path / "two"))
    assert kept.has_evidence(loaded, windows)
    assert same(kept.evidence(loaded, windows, progress=no_work).activations, collect(loaded, windows))
    measured = kept.perplexity(loaded, plan, windows, progress=no_work)
    assert measured == kept.known_perplexity(loaded, plan, windows) == fresh.perplexity(loaded, plan, windows)
    renamed = TokenWindows(windows.ids, "another file with the same text", False)
    said = kept.known_perplexity(loaded, plan, renamed)
    assert said == kept.perplexity(loaded, plan, renamed, progress=no_work) and said["data"] == renamed.data
    for criterion in ("amp", "amp-projection"):
        one, two = (bench.scores(loaded, windows, criterion) for bench in (kept, fresh))
        for unit in ("heads", "neurons"):
            pairs = zip(getattr(one, unit), getattr(two, unit), strict=True)
            assert all((a == b).all() for a, b in pairs)


@pytest.mark.parametrize("change", ["windows", "plan", "dtype", "model"])
def test_what_a_result_depends_on_is_in_its_key(tmp_path, change):
    bench, loaded = Workbench(Store(tmp_path)), tiny("llama")
    plan, windows = random_plan(loaded, 1), TokenWindows(tuple(tokens(5, 16)), "made up", False)
    bench.perplexity(loaded, plan, windows)
    if change == "windows":
        windows = TokenWindows(tuple(tokens(5, 16, seed=1)), "made up", False)
    if change == "plan":
        plan = PruningPlan.empty(loaded.shape)
    if change in ("dtype", "model"):
        loaded = tiny("llama", "bfloat16") if change == "dtype" else tiny("qwen2")
        plan = PruningPlan.empty(loaded.shape)
    with pytest.raises(Unwanted):
        bench.perplexity(loaded, plan, windows, progress=no_work)


def test_layers_sliced_alike_are_used_again_and_the_longest_unused_go(tmp_path, monkeypatch):
    monkeypatch.setattr(in_memory, "_SLICED_KEPT", 1)
    bench, loaded = Workbench(Store(tmp_path)), tiny("llama")
    plan = random_plan(loaded, 1, extreme=False)
    neuron = int(plan.neurons[2].argmin())  # one that stays
    one, edited = bench.sliced(loaded, plan), bench.sliced(loaded, plan.with_units("neurons", 2, [neuron], True))
    untouched = [a is b for a, b in zip(decoder_layers(one), decoder_layers(edited), strict=True)]
    assert untouched == [number != 2 for number in range(LAYERS)]
    for seed in range(2, 8):
        bench.sliced(loaded, random_plan(loaded, seed))
    assert decoder_layers(bench.sliced(loaded, plan))[2] is not decoder_layers(one)[2]
    assert len(bench._kept_of(loaded)._layers) <= LAYERS


def test_what_is_kept_of_a_model_goes_with_it(tmp_path):
    """Models come and go, and Python gives the next one the address of the last."""
    bench = Workbench(Store(tmp_path))

    def sliced(dtype):
        loaded = from_model(copy.deepcopy(tiny("llama", dtype).model), None, fingerprint="0" * 16)
        return bench.sliced(loaded, random_plan(loaded, 1)).dtype

    assert [sliced("float32"), sliced("bfloat16")] == [torch.float32, torch.bfloat16]
    gc.collect()
    assert len(bench._kept) == 0


def test_what_is_kept_of_a_model_goes_when_another_takes_its_place(tmp_path, tiny_model, monkeypatch):
    """Whoever still holds the model, such as a page in an idle tab."""
    monkeypatch.setenv("AMP_EXPLORE_MODELS", "1")
    bench = Workbench(Store(tmp_path))
    held = bench.pool.get(str(tiny_model), dtype="float32")
    bench.sliced(held, random_plan(held, 1))
    assert list(bench._kept) == [held]
    bench.pool.get(str(tiny_model), dtype="bfloat16")
    assert not bench._kept


def test_the_keys_of_statistics_are_plain_text_that_a_person_can_read(tmp_path):
    loaded, windows = tiny("llama"), TokenWindows(tuple(tokens(2, 16)), "made up", False)
    Workbench(Store(tmp_path)).evidence(loaded, windows)
    (pointer,) = (tmp_path / "statistics").glob("*.json")
    key = json.loads(pointer.read_text())["key"]
    assert key["model"] == loaded.shape.fingerprint and key["windows"] == windows.digest and key["dtype"] == "float32"


# A cache that takes nothing


def test_a_cache_that_may_only_be_read_is_worked_with(caplog):
    """What is there is used, what is not is computed, and found again as long as the program runs."""
    loaded, windows = tiny("llama"), TokenWindows(tuple(tokens(5, 16)), "made up", False)
    dense, plan = PruningPlan.empty(loaded.shape), random_plan(loaded, 1, extreme=False)
    with open_folder() as root:
        Workbench(Store(root)).perplexity(loaded, dense, windows)
        with read_only(root):
            bench = Workbench(Store(root))
            assert bench.known_perplexity(loaded, dense, windows) and not caplog.records
            measured = bench.perplexity(loaded, plan, windows)
            assert bench.perplexity(loaded, plan, windows, progress=no_work) == measured
            assert len(bench.known_losses(loaded, windows)) == 2
            scores = [bench.scores(loaded, windows, "obs").heads for _ in range(2)]
            assert all((one == two).all() for one, two in zip(*scores, strict=True))
            assert bench.evidence(loaded, windows, ("grams",), progress=no_work).grams[0].mlp.shape
            bench.store.put_plan(plan)
            assert bench.store.plan(plan.digest, loaded.shape) == plan
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2 and all("cannot be written" in each for each in said)


def test_a_measurement_that_cannot_be_kept_is_given_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(database, "_WRITE_SECONDS", 0.1)
    loaded, windows = tiny("llama"), TokenWindows(tuple(tokens(5, 16)), "made up", False)
    bench, plan = Workbench(Store(tmp_path)), random_plan(loaded, 1, extreme=False)
    bench.perplexity(loaded, PruningPlan.empty(loaded.shape), windows)
    with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        measured = bench.perplexity(loaded, plan, windows)
        assert bench.perplexity(loaded, plan, windows, progress=no_work) == measured
        assert Workbench(Store(tmp_path)).known_perplexity(loaded, plan, windows) is None
    assert bench.known_perplexity(loaded, plan, windows) == measured  # and the store is tried again
    assert Workbench(Store(tmp_path)).known_perplexity(loaded, plan, windows) == measured
    assert len(caplog.records) == 1
