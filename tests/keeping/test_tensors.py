"""Statistics come back as they were or not at all, whatever stands in their place; and what is too much goes."""

import logging
import os
import shutil
import time
from pathlib import Path

import pytest
from kept import KEY, made_up, open_folder, read_only, refuse, same

from amp_explore.errors import AmpExploreError
from amp_explore.keeping import tensors
from amp_explore.keeping.keys import key_digest
from amp_explore.keeping.space import usage
from amp_explore.keeping.store import Store
from amp_explore.progress import Cancelled


def test_statistics_are_computed_once_and_come_back_the_same(tmp_path, caplog):
    fresh = Store(tmp_path).statistics(KEY, lambda: made_up(1))
    for store in (Store(tmp_path), Store(tmp_path)):
        assert same(store.statistics(KEY, refuse), fresh)
        assert same(store.find_statistics(KEY), made_up(1))
    assert not caplog.records


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
    store.put_statistics(KEY | {"number": -1}, made_up(2))
    for number in range(2):
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
    assert not list(tmp_path.iterdir())


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "within").touch()


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def a_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nothing")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("suffix", ["safetensors", "json"])
@pytest.mark.parametrize("intrude", [a_folder, a_link_to_itself, a_link_to_nothing, a_pipe])
def test_what_stands_in_the_place_of_a_file_makes_way(tmp_path, caplog, intrude, suffix):
    store = Store(tmp_path)
    store.statistics(KEY, lambda: made_up(1))
    (file,) = (tmp_path / "statistics").glob(f"*.{suffix}")
    intrude(file)
    assert suffix == "safetensors" or not store.has_statistics(KEY)
    assert same(store.statistics(KEY, lambda: made_up(1)), made_up(1))
    assert "damaged" in caplog.text
    assert same(Store(tmp_path).statistics(KEY, refuse), made_up(1)) and file.is_file()


@pytest.mark.parametrize("gone", ["statistics", "."])
def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path, caplog, gone):
    root = tmp_path / "cache"
    store = Store(root)
    store.put_statistics(KEY, made_up(1))
    shutil.rmtree(root / gone)
    assert same(store.statistics(KEY, lambda: made_up(1)), made_up(1))
    assert same(Store(root).statistics(KEY, refuse), made_up(1)) and not caplog.records


def test_a_folder_that_may_only_be_read_is_read_with_one_warning(caplog):
    with open_folder() as root:
        Store(root).put_statistics(KEY, made_up(1))
        with read_only(root):
            store = Store(root)
            assert same(store.statistics(KEY, refuse), made_up(1)) and not caplog.records
            for number in range(3):
                other = KEY | {"number": number}
                assert same(store.statistics(other, lambda number=number: made_up(number)), made_up(number))
                assert store.has_statistics(other) and same(store.statistics(other, refuse), made_up(number))
            store.require_room(10**15, "what stays in memory anyway")
        (said,) = caplog.records
        assert "cannot be written" in said.getMessage() and "AMP_EXPLORE_CACHE" in said.getMessage()


def test_a_folder_that_may_not_even_be_entered_is_done_without(caplog):
    with open_folder() as root:
        Store(root).put_statistics(KEY, made_up(1))
        with read_only(root / "statistics", 0):
            store = Store(root)
            assert not store.has_statistics(KEY)
            assert same(store.statistics(KEY, lambda: made_up(2)), made_up(2))
            assert same(store.statistics(KEY, refuse), made_up(2))


def test_a_cache_that_cannot_be_made_at_all_is_done_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "cache")
    for _ in range(2):
        assert same(store.statistics(KEY, lambda: made_up(1)), made_up(1))
    store.put_measurement("task", "model", "plan", {}, {"acc": 1})
    assert store.find_measurement("task", "model", "plan", {}) == {"acc": 1}
    assert len(caplog.records) == 2 and "set AMP_EXPLORE_CACHE to a folder that can" in caplog.text


def test_the_memory_of_what_cannot_be_kept_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "_IN_MEMORY", 1300)  # what is made up is some 500 bytes
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file")
    for number in range(3):
        store.put_statistics(KEY | {"number": number}, made_up(number))  # 468 bytes
    assert [store.has_statistics(KEY | {"number": number}) for number in range(3)] == [False, True, True]
    store.put_statistics(KEY, made_up(1, size=100))
    assert not store.has_statistics(KEY) and store.has_statistics(KEY | {"number": 2})


def test_what_killed_writers_left_goes(tmp_path):
    folder = tmp_path / "statistics"
    folder.mkdir()
    for name in (".abc.json-0123abcd", ".abc.safetensors-0123abcd"):
        (folder / name).write_bytes(b"half")
    Store(tmp_path).put_statistics(KEY, made_up(1))
    assert not list(folder.glob(".*")) and len(list(folder.iterdir())) == 2


# Room

BIG = 5000  # made_up(_, BIG) takes 0.6 MB


def layer_keys(name: str = "grams") -> list[dict]:
    return [KEY | {"kind": name, "layer": number} for number in range(3)]


@pytest.fixture
def limit(monkeypatch):
    """Sets the limit of the cache, in megabytes."""
    return lambda megabytes: monkeypatch.setenv("AMP_EXPLORE_CACHE_GB", str(megabytes / 1000))


def fill(store: Store, *names: str) -> None:
    for name in names:
        store.put_statistics(KEY | {"name": name}, made_up(ord(name), BIG))


def left(store: Store) -> str:
    return "".join(name for name in "abcdefghij" if store.has_statistics(KEY | {"name": name}))


def test_the_longest_unused_go_when_there_is_no_room(tmp_path, limit):
    limit(2.6)
    store = Store(tmp_path)
    fill(store, *"abc")
    assert store.find_statistics(KEY | {"name": "a"}) is not None, "use keeps it"
    fill(store, "d")
    assert left(store) == "acd"
    fill(Store(tmp_path), "e")
    assert left(store) == "ade"
    assert sum(usage(tmp_path).values()) < 2.6e6
    assert len(list((tmp_path / "statistics").glob("*.safetensors"))) == 3


def test_no_age_and_no_clock_deletes_anything_while_there_is_room(tmp_path):
    store = Store(tmp_path)
    fill(store, *"abc")
    for path, days in zip((tmp_path / "statistics").iterdir(), (400, -400) * 3, strict=True):
        os.utime(path, (time.time() - days * 86_400,) * 2)
    fill(Store(tmp_path), "d")
    assert left(store) == "abcd"


def test_statistics_of_layers_are_used_together_and_go_together(tmp_path, limit):
    store = Store(tmp_path)
    store.put_layers(layer_keys(), made_up(1, BIG))
    fill(store, "a")
    assert store.find_statistics(layer_keys()[1]) is not None
    limit(1.5)
    fill(store, "b")
    assert left(store) == "b" and all(map(store.has_statistics, layer_keys()))
    fill(store, "c")
    assert left(store) == "bc" and not any(map(store.has_statistics, layer_keys()))


def test_what_is_in_use_does_not_go(tmp_path, limit):
    store = Store(tmp_path)
    store.put_layers(layer_keys(), made_up(1, BIG))
    fill(store, *"ab")
    hold = Store(tmp_path).hold_statistics(layer_keys()[0])
    limit(1.5)
    fill(store, "c")
    assert left(store) == "c" and all(map(store.has_statistics, layer_keys()))
    hold.close()
    fill(store, "d")
    assert left(store) == "cd" and not any(map(store.has_statistics, layer_keys()))


def test_content_that_two_keys_have_stays_for_the_other(tmp_path, limit):
    store = Store(tmp_path)
    for name in "ab":
        store.put_statistics(KEY | {"name": name}, made_up(1, BIG))
    fill(store, "c")
    limit(1.9)
    assert store.find_statistics(KEY | {"name": "b"}) is not None
    fill(store, "d")
    assert left(store) == "bd" and same(store.find_statistics(KEY | {"name": "b"}), made_up(1, BIG))


def test_what_nothing_points_to_goes_first(tmp_path, limit):
    store = Store(tmp_path)
    fill(store, *"ab")
    (tmp_path / "statistics" / f"{key_digest(KEY | {'name': 'b'})}.json").unlink()
    limit(1.5)
    fill(store, "c")
    assert left(store) == "ac"


def test_what_does_not_fit_at_all_stays_in_memory(tmp_path, limit, caplog):
    limit(0.5)
    store = Store(tmp_path)
    fill(store, "a")
    assert left(store) == "a" and left(Store(tmp_path)) == "" and usage(tmp_path)["statistics"] == 0
    assert "AMP_EXPLORE_CACHE_GB higher" in caplog.text


def test_room_is_required_before_the_work(tmp_path, limit, monkeypatch):
    store = Store(tmp_path)
    fill(store, *"ab")
    limit(2)
    store.require_room(1_300_000, "they")
    assert left(store) == ""
    with pytest.raises(AmpExploreError, match="they take 0.0 GB, more than.*AMP_EXPLORE_CACHE_GB higher"):
        store.require_room(2_100_000, "they")
    disk = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(tensors.folders.shutil, "disk_usage", lambda _: disk)
    with pytest.raises(AmpExploreError, match="No space left.*free some"):
        store.require_room(1_000_000, "they")


@pytest.mark.parametrize("end", ["cancelled", "full for data", "full for a pointer"])
def test_of_layers_that_cannot_all_be_kept_none_is(tmp_path, monkeypatch, caplog, end):
    store, written = Store(tmp_path), []

    def full(_):
        written.append(1)
        if len(written) == (5 if end == "full for data" else 6):  # two files for each layer
            raise OSError(28, "No space left on device")

    def cancel(done, *_):
        if done == 2:
            raise Cancelled

    if end != "cancelled":
        monkeypatch.setattr(os, "fsync", full)
        store.put_layers(layer_keys(), made_up(1))
        assert "free some" in caplog.text and store.has_statistics(layer_keys()[0]), "memory has it"
    else:
        with pytest.raises(Cancelled):
            store.put_layers(layer_keys(), made_up(1), cancel)
    assert not list((tmp_path / "statistics").iterdir())
    assert not Store(tmp_path).has_statistics(layer_keys()[0])
