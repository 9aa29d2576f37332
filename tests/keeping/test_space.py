"""How much of the cache is what, and what may go of it."""

import hashlib
import os
from pathlib import Path

import pytest
from filelock import FileLock

from amp_explore.folders import Hold, mark_used
from amp_explore.keeping.space import DEMO_FOLDER, KINDS, Evictable, limit, make_room, usage
from amp_explore.texts import assets


def write(path: Path, size: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def model(root: Path, name: str) -> Path:
    write(root / "models" / name / "model.safetensors")
    config = write(root / "models" / name / "config.json")
    mark_used(config.parent, root)
    return config


@pytest.fixture(autouse=True)
def little(monkeypatch):
    monkeypatch.setenv("AMP_EXPLORE_CACHE_GB", "0.00001")  # 10,000 bytes


def fits(root: Path, needed: int, *statistics: Evictable) -> bool:
    return make_room(root, needed, lambda: statistics)


def test_the_limit_is_twenty_gigabytes_unless_it_is_set(monkeypatch):
    assert limit() == 10_000
    monkeypatch.delenv("AMP_EXPLORE_CACHE_GB")
    assert limit() == 20 * 10**9


def test_usage_is_told_by_kind(tmp_path):
    root = tmp_path / "cache"
    assert set(usage(root).values()) == {0}
    write(tmp_path / "another disk" / "file", 1)
    for number, kind in enumerate(KINDS[1:], 2):
        write(root / kind / "below" / "file", number)
    (root / "statistics").symlink_to(tmp_path / "another disk")
    write(root / "runs.sqlite", 50)
    write(root / "runs.damaged-1", 60)
    (root / "texts" / "link").symlink_to("/dev/zero")
    (root / "texts" / "round").symlink_to(root / "texts")
    found = usage(root)
    assert 3 < found.pop("texts") < 500
    assert found == {"statistics": 1, "models": 2, "assets": 4, "results": 110}


def test_converted_models_go_as_everything_does_and_the_demo_and_results_stay(tmp_path):
    kept = [model(tmp_path, DEMO_FOLDER), write(tmp_path / "assets" / "file"), write(tmp_path / "runs.sqlite")]
    old, new = model(tmp_path, "old"), model(tmp_path, "new")
    (tmp_path / "models" / ".old.lock").touch()
    assert fits(tmp_path, 2000) and old.exists()
    mark_used(old.parent, tmp_path)
    assert fits(tmp_path, 3000)
    assert not new.parent.exists() and old.exists()
    assert not fits(tmp_path, 7000)
    assert not old.parent.exists() and all(path.exists() for path in kept)


def test_a_model_that_is_loaded_or_being_made_stays(tmp_path):
    loaded, made = model(tmp_path, "loaded"), model(tmp_path, "made")
    unfinished = write(tmp_path / "models" / ".new.unfinished" / "model.safetensors")
    holds = [Hold(loaded), FileLock(tmp_path / "models" / ".made.lock"), FileLock(tmp_path / "models" / ".new.lock")]
    with holds[1], holds[2]:
        assert not fits(tmp_path, 9000)
        assert loaded.exists() and made.exists() and unfinished.exists()
    assert not fits(tmp_path, 9000)
    assert loaded.exists() and not made.exists() and not unfinished.parent.exists()


def test_what_a_killed_conversion_left_goes_first(tmp_path):
    unfinished = write(tmp_path / "models" / ".new.unfinished" / "model.safetensors", 5000)
    old = model(tmp_path, "old")
    assert fits(tmp_path, 4000)
    assert old.exists() and not unfinished.parent.exists()


def test_uploaded_texts_go_last(tmp_path):
    text, data = write(tmp_path / "texts" / "0.txt", 3000), write(tmp_path / "statistics" / "0")
    os.utime(text, (1, 1))

    def remove() -> int:
        data.unlink()
        return 1000

    assert fits(tmp_path, 6500, Evictable("new", 10**20, remove))
    assert text.exists() and not data.exists()
    assert fits(tmp_path, 9000) and not text.exists()


@pytest.mark.demo
def test_the_demo_model_is_known_by_its_folder():
    with assets.demo_gguf().open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest().startswith(DEMO_FOLDER)
