"""The cache answers what a fresh computation would, and survives killed writers, damage and company."""

import copy
import gc
import json
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from tiny import LAYERS, random_plan, tiny, tokens

from amp_explore import workbench
from amp_explore.errors import PlanError
from amp_explore.keeping.store import UNUSED_DAYS, Store, key_digest, write_atomically
from amp_explore.models.families import decoder_layers
from amp_explore.models.loading import from_model
from amp_explore.observe.statistics import LayerStatistics, collect
from amp_explore.plan import PruningPlan
from amp_explore.texts.calibration import TokenWindows
from amp_explore.workbench import Workbench

ROOT = Path(__file__).resolve().parents[2]
KEY = {"kind": "statistics", "model": "abc", "windows": [1, 2], "dtype": "float32"}


def made_up(seed: int, size: int = 3) -> tuple[LayerStatistics, ...]:
    lot = torch.Generator().manual_seed(seed)
    names = [field.name for field in fields(LayerStatistics)]
    return tuple(
        LayerStatistics(**{name: torch.rand(size + layer, generator=lot) for name in names}) for layer in range(3)
    )


def same(one: tuple[LayerStatistics, ...], two: tuple[LayerStatistics, ...]) -> bool:
    return all(
        torch.equal(value, getattr(b, name)) for a, b in zip(one, two, strict=True) for name, value in vars(a).items()
    )


def refuse():
    raise AssertionError("computed again, though it was kept")


# Statistics


def test_statistics_are_computed_once_and_come_back_the_same(tmp_path, caplog):
    fresh = Store(tmp_path).statistics(KEY, lambda: made_up(1))
    for store in (Store(tmp_path), Store(tmp_path)):
        assert same(store.statistics(KEY, refuse), fresh)
        assert same(store.find_statistics(KEY), made_up(1))
    assert not caplog.records


def test_statistics_unused_for_long_and_what_killed_writers_left_are_deleted(tmp_path):
    store, folder = Store(tmp_path), tmp_path / "statistics"
    for number in range(3):
        store.put_statistics(KEY | {"number": number}, made_up(number))
    ages = {0: UNUSED_DAYS + 1, 1: UNUSED_DAYS + 1, 2: UNUSED_DAYS - 1}

    def age(path: Path, days: float) -> None:
        os.utime(path, (time.time() - days * 86400,) * 2)

    for path in folder.iterdir():
        age(path, 2)
    for number, days in ages.items():
        age(folder / f"{key_digest(KEY | {'number': number})}.json", days)
    for name, days in {".old-writer": 2, ".writer-now": 0}.items():
        (folder / name).write_bytes(b"half")
        age(folder / name, days)
    assert store.find_statistics(KEY | {"number": 1}) is not None, "use keeps it"
    store.put_statistics(KEY | {"number": 3}, made_up(3))
    assert [store.find_statistics(KEY | {"number": number}) is not None for number in range(4)] == [
        False,
        True,
        True,
        True,
    ]
    assert len(list(folder.glob("*.safetensors"))) == 3
    assert not (folder / ".old-writer").exists() and (folder / ".writer-now").exists()


def test_what_is_unused_is_looked_for_once_a_day(tmp_path):
    """It takes reading every pointer; putting the Gram matrices of a model down is a put for each layer."""
    store, old = Store(tmp_path), tmp_path / "statistics" / ".old-writer"
    for number, (days_ago, looked) in enumerate(((None, True), (0.9, False), (1.1, True))):
        old.write_bytes(b"half")
        os.utime(old, (time.time() - 3 * 86400,) * 2)
        if days_ago is not None:
            os.utime(tmp_path / "statistics" / "last-forgotten", (time.time() - days_ago * 86400,) * 2)
        store.put_statistics(KEY | {"number": number}, made_up(number))
        assert old.exists() != looked


@pytest.mark.parametrize("change", [{"model": "abd"}, {"windows": [2, 1]}, {"dtype": "bfloat16"}, {"version": 2}])
def test_another_key_is_another_answer(tmp_path, change):
    store = Store(tmp_path)
    store.statistics(KEY, lambda: made_up(1))
    assert store.find_statistics(KEY | change) is None
    assert same(store.statistics(KEY | change, lambda: made_up(2)), made_up(2))
    assert same(store.find_statistics(KEY), made_up(1))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3 if path.suffix == ".safetensors" else len(data) // 4] ^= 1  # in a number; in the key
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("damage", [truncate, empty, flip_a_byte])
def test_damaged_statistics_are_computed_again_with_a_warning(tmp_path, caplog, damage, suffix):
    store = Store(tmp_path)
    store.statistics(KEY, lambda: made_up(1))
    (file,) = (tmp_path / "statistics").glob(f"*.{suffix}")
    damage(file)
    assert same(store.statistics(KEY, lambda: made_up(1)), made_up(1))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "damaged" in caplog.text
    assert same(store.statistics(KEY, refuse), made_up(1)), "the damage was not mended"


@pytest.mark.parametrize("content", ["[]", "{}", '{"key": 1, "sha256": "../../secret"}', '{"key": 1, "sha256": 5}'])
def test_a_pointer_with_strange_content_is_not_followed(tmp_path, content):
    store = Store(tmp_path)
    for number in range(2):  # damaged before the first look for what is unused, and after it
        (tmp_path / "statistics" / f"{key_digest(KEY)}.json").write_text(content)
        assert store.find_statistics(KEY) is None
        assert same(store.statistics(KEY | {"number": number}, lambda: made_up(2)), made_up(2))
    assert same(store.statistics(KEY, lambda: made_up(1)), made_up(1))


def test_intact_statistics_of_another_key_are_not_trusted(tmp_path, caplog):
    store = Store(tmp_path)
    store.statistics(KEY, lambda: made_up(1))
    other = KEY | {"model": "other"}
    pointer = (tmp_path / "statistics" / f"{key_digest(KEY)}.json").read_text()
    (tmp_path / "statistics" / f"{key_digest(other)}.json").write_text(pointer)
    assert store.find_statistics(other) is None
    assert "damaged" in caplog.text


def test_a_missing_file_is_computed_again(tmp_path):
    store = Store(tmp_path)
    store.statistics(KEY, lambda: made_up(1))
    for file in (tmp_path / "statistics").glob("*.safetensors"):
        file.unlink()
    assert same(store.statistics(KEY, lambda: made_up(1)), made_up(1))


def test_a_computation_that_fails_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError):
        store.statistics(KEY, lambda: 1 / 0)
    assert not list((tmp_path / "statistics").iterdir())


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
        time.sleep(0.002)
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


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(20_000))


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbage_in_the_middle(file: Path) -> None:
    """The first page, where SQLite recognises its own, stays whole."""
    data = bytearray(file.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [garbage, cut_in_half, garbage_in_the_middle])
def test_a_damaged_database_is_moved_aside_with_a_warning(tmp_path, caplog, damage):
    store = Store(tmp_path)
    for number in range(50):
        store.put_measurement("task", "model", "plan", {"number": number}, {"text": "x" * 500})
    file = tmp_path / "runs.sqlite"
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    damage(file)
    damaged = file.read_bytes()

    assert store.measurement("task", "model", "plan", {"number": 7}, lambda: "again") == "again"
    assert "damaged" in caplog.text
    (aside,) = tmp_path.glob("runs.damaged-*")
    assert aside.read_bytes() == damaged
    caplog.clear()
    assert Store(tmp_path).measurement("task", "model", "plan", {"number": 7}, refuse) == "again"
    assert not caplog.records


def test_a_locked_database_is_not_taken_for_a_damaged_one(tmp_path):
    store = Store(tmp_path)
    store.put_measurement("task", "model", "plan", {}, 1)
    other = sqlite3.connect(tmp_path / "runs.sqlite", check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.rollback)
    release.start()
    store.put_measurement("task", "model", "plan", {}, 2)  # waits
    release.join()
    other.close()
    assert store.find_measurement("task", "model", "plan", {}) == 2
    assert not list(tmp_path.glob("*damaged*"))


def test_threads_may_share_a_store(tmp_path):
    store, failed = Store(tmp_path), []

    def visitor(number):
        try:
            for step in range(5):
                assert same(store.statistics({"step": step}, lambda step=step: made_up(step)), made_up(step))
                store.put_measurement("task", "model", str(number), {"step": step}, step)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=visitor, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert all(len(store.measurements("task", "model", str(number))) == 5 for number in range(6))


# Several processes

WRITER = "import test_store; test_store.write_on_demand()"


def write_and_check(root: Path, name: str, *, steps: int, size: int) -> None:
    store = Store(root)
    for step in range(steps):
        fresh = made_up(step, size)
        assert same(store.statistics({"step": step}, lambda fresh=fresh: fresh), fresh)
        store.put_measurement("task", "model", "plan", {"step": step, "by": name}, {"step": step})
        assert store.find_measurement("task", "model", "plan", {"step": step, "by": name}) == {"step": step}


def write_on_demand() -> None:
    """The other process: do what each line of standard input asks for."""
    print("ready", flush=True)
    for line in sys.stdin:
        write_and_check(**json.loads(line, object_hook=lambda asked: asked | {"root": Path(asked["root"])}))
        print("done", flush=True)


class Writer:
    def __init__(self) -> None:
        path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([sys.executable, "-c", WRITER], env=os.environ | {"PYTHONPATH": path}, **pipes)
        self.expect("ready")

    def ask(self, root: Path, *, steps: int, size: int) -> None:
        self.process.stdin.write(json.dumps({"root": str(root), "name": "writer", "steps": steps, "size": size}) + "\n")
        self.process.stdin.flush()

    def expect(self, answer: str) -> None:
        assert self.process.stdout.readline().strip() == answer, self.process.stderr.read()


@pytest.fixture(scope="module")
def writer():
    """One for both tests, as it takes seconds to start."""
    writer = Writer()
    yield writer
    writer.process.kill()
    writer.process.communicate()


def test_two_processes_may_share_the_cache(writer, tmp_path, caplog):
    writer.ask(tmp_path, steps=15, size=1000)
    write_and_check(tmp_path, "this one", steps=15, size=1000)
    writer.expect("done")
    store = Store(tmp_path)
    for step in range(15):
        assert same(store.find_statistics({"step": step}), made_up(step, 1000))
    assert len(store.measurements("task", "model", "plan")) == 30
    assert not list((tmp_path / "statistics").glob(".*")) and not caplog.records


def test_a_writer_that_is_killed_leaves_nothing_half_made(writer, tmp_path, caplog):
    writer.ask(tmp_path, steps=10**6, size=200_000)
    process, folder = writer.process, tmp_path / "statistics"

    def stopped_while_writing() -> bool:
        """Freeze it, and see whether that hit it between a file's creation and its final name."""
        if not (folder.exists() and len(list(folder.glob("*.json"))) >= 3 and any(folder.glob(".*"))):
            return False
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if any(folder.glob(".*")):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    deadline = time.monotonic() + 60
    while not stopped_while_writing():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "never caught it writing"
    process.kill()
    process.wait()

    assert any(folder.glob(".*")), "the kill left no unfinished file: this shows nothing"
    store, kept = Store(tmp_path), len(list(folder.glob("*.json")))
    for step in range(kept):
        assert same(store.find_statistics({"step": step}), made_up(step, 200_000))
    assert store.find_statistics({"step": kept}) is None
    measured = {row["step"] for row in store.measurements("task", "model", "plan")}
    assert measured in (set(range(kept)), set(range(kept - 1)))
    assert not caplog.records, "half-made files were taken for finished ones"


# Files


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    file.write_bytes(b"earlier")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_atomically(file, b"later")
    assert raised.value.filename == str(file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"] and file.read_bytes() == b"earlier"
    monkeypatch.undo()
    write_atomically(file, b"later")
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.json"] and file.read_bytes() == b"later"


def test_a_written_file_may_be_read_by_whom_any_new_file_may(tmp_path):
    (tmp_path / "ordinary").touch()
    write_atomically(tmp_path / "written", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "written")}
    assert len(modes) == 1


def test_a_pipe_and_a_link_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_atomically(tmp_path / "pipe", b"through the pipe")
    reader.join(10)
    assert read == [b"through the pipe"] and (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", b"content")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"content"


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
    monkeypatch.setattr(workbench, "_SLICED_KEPT", 1)
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
