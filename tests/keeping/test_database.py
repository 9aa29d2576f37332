"""Rows survive damage, company, locks and folders that may only be read; and nobody who reads waits for a writer."""

import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from kept import open_folder, read_only

from amp_explore.keeping import database
from amp_explore.keeping.database import Database

ROOT = Path(__file__).resolve().parents[2]
ROWS = 12


def row(name: object, text: str = "") -> dict[str, object]:
    return {"digest": str(name), "model": "model", "document": text, "created": 0.0}


def names(kept: Database) -> list[str]:
    return [found["digest"] for found in kept.rows("plans", model="model")]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "runs.sqlite"


def test_rows_come_newest_first_and_one_takes_the_place_of_another(file):
    for name in ("a", "b", "c", "a"):
        Database(file).put("plans", row(name, "late"))
    assert names(Database(file)) == ["a", "c", "b"]
    assert Database(file).rows("plans", digest="b") == [row("b", "late")]
    assert Database(file).rows("plans", digest="b", model="another") == []


def test_nothing_is_written_by_looking(tmp_path):
    assert Database(tmp_path / "cache" / "runs.sqlite").rows("plans", digest="a") == []
    assert not list(tmp_path.iterdir())


# Damage


def filled(file: Path) -> None:
    kept = Database(file)
    for number in range(ROWS):
        kept.put("plans", row(number, "x" * 2000))
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def garbage(file: Path) -> None:
    file.write_bytes(os.urandom(20_000))


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbage_in_the_middle(file: Path) -> None:
    """The first page, where SQLite recognises its own, stays whole."""
    data = bytearray(file.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    file.write_bytes(data)


def read_only_by_its_own_word(file: Path) -> None:
    """The format's version for writing, from the future."""
    data = bytearray(file.read_bytes())
    data[18] = 9
    file.write_bytes(data)


def another_schema(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE plans (digest)")


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "within").touch()


def a_link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES = [garbage, cut_in_half, garbage_in_the_middle, read_only_by_its_own_word]
INTRUDERS = [another_schema, a_folder, a_link_to_itself, a_pipe]


@pytest.mark.parametrize("damage", DAMAGES + INTRUDERS)
def test_a_damaged_database_is_moved_aside_with_a_warning(file, caplog, damage):
    filled(file)
    damage(file)
    before = file.read_bytes() if damage in DAMAGES else None
    kept = Database(file)
    kept.put("plans", row("new"))
    kept.rows("plans", model="model")
    kept.put("plans", row("newer"))
    assert names(kept)[:2] == names(Database(file))[:2] == ["newer", "new"]
    assert "damaged" in caplog.text and not any(kept.obstacles.values())
    (aside,) = (path for path in file.parent.glob("runs.damaged-*") if not path.name.endswith(("-wal", "-shm")))
    assert before is None or aside.read_bytes() == before
    caplog.clear()
    Database(file).put("plans", row("newest"))
    assert names(Database(file))[0] == "newest" and not caplog.records


def test_what_was_written_last_goes_aside_with_a_damaged_database(file):
    """The -wal of a lost database must not be taken for one of the new database; and a killed mover may leave it."""
    filled(file)
    with closing(sqlite3.connect(file)) as other:  # open: what it writes stays in the -wal
        other.execute("DELETE FROM plans")
        other.commit()
        assert Path(f"{file}-wal").stat().st_size
        garbage_in_the_middle(file)
        data = bytearray(Path(f"{file}-wal").read_bytes())
        data[100:] = os.urandom(len(data) - 100)
        Path(f"{file}-wal").write_bytes(data)
        Database(file).put("plans", row("new"))
    assert len(list(file.parent.glob("runs.damaged-*-wal"))) == 1
    assert names(Database(file)) == ["new"]
    file.unlink()
    Path(f"{file}-wal").write_bytes(data)
    Database(file).put("plans", row("newer"))
    assert names(Database(file)) == ["newer"]


def test_flipped_bytes_stop_nothing_and_make_nothing_up(tmp_path, caplog):
    """At every kind of place; what comes back is what was written, or nothing, and then can be written again."""
    caplog.set_level(logging.CRITICAL)
    whole, lot, lost = tmp_path / "whole.sqlite", random.Random(5), 0
    texts = {str(number): "é" * (number * 37 % 300) for number in range(12)}
    for name, text in texts.items():
        Database(whole).put("plans", row(name, text))
    data = whole.read_bytes()
    for attempt in range(25):
        damaged, file = bytearray(data), tmp_path / str(attempt) / "runs.sqlite"
        for _ in range(lot.choice((1, 3, 30))):
            damaged[lot.randrange(100 if lot.random() < 0.2 else len(data))] ^= lot.randrange(1, 256)
        file.parent.mkdir()
        file.write_bytes(damaged)
        for name, text in texts.items():
            found = [kept["document"] for kept in Database(file).rows("plans", digest=name)]
            if found != [text]:
                lost += 1
                Database(file).put("plans", row(name, text))
                assert [kept["document"] for kept in Database(file).rows("plans", digest=name)] == [text]
        shutil.rmtree(file.parent)
    assert lost > 5, "the damage hit nothing: this shows nothing"


WRITER = """
import logging, sys
from pathlib import Path
from amp_explore.keeping.database import Database
logging.disable()
kept = Database(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    name = f"{sys.argv[2]}-{number}"
    if not kept.rows("plans", digest=name):
        kept.put("plans", {"digest": name, "model": "model", "document": "", "created": 0.0})
"""


def test_processes_that_meet_one_damaged_database_lose_nothing(file):
    """Moving it aside twice would move the new one, and what the first to come wrote there."""
    command = [sys.executable, "-c", WRITER, str(file)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    for damage in (garbage_in_the_middle, garbage):
        filled(file)
        damage(file)
        writers = [subprocess.Popen([*command, str(number)], **pipes) for number in range(4)]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("\n")
            writer.stdin.flush()
        assert [writer.communicate(timeout=120) and writer.returncode for writer in writers] == [0] * 4
        wanted = {f"{writer}-{number}" for writer in range(4) for number in range(10)}
        assert wanted <= set(names(Database(file)))
        for path in file.parent.iterdir():
            path.unlink()


# Locks


@pytest.fixture
def locked(file):
    """Another program that writes to the database and does not come to an end; ask it to."""
    filled(file)
    with closing(sqlite3.connect(file, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


def test_a_locked_database_is_waited_for_and_not_taken_for_a_damaged_one(file, locked, caplog):
    release = threading.Timer(0.3, locked.rollback)
    release.start()
    Database(file).put("plans", row("new"))
    release.join()
    assert names(Database(file))[0] == "new"
    assert not list(file.parent.glob("*damaged*")) and not caplog.records


def test_what_a_locked_database_does_not_take_is_found_and_written_later(file, locked, caplog, monkeypatch):
    monkeypatch.setattr(database, "_WRITE_SECONDS", 0.1)
    kept = Database(file)
    for name in ("new", "newer", "3"):
        kept.put("plans", row(name))
    assert names(kept)[:3] == ["3", "newer", "new"] and len(names(kept)) == ROWS + 2
    assert names(Database(file))[0] == str(ROWS - 1)
    (said,) = caplog.records
    assert "locked by another program: close that program" in said.getMessage()
    locked.rollback()
    assert names(kept)[:3] == ["3", "newer", "new"]  # whoever looks next has it written
    assert names(Database(file)) == names(kept) and not kept._memory
    assert len(caplog.records) == 1


def test_what_could_not_be_written_is_written_at_the_end_of_the_program(file, locked):
    """As by a command that measured while another program had the database."""
    program = WRITER.replace("sys.stdin.readline()", "import amp_explore.keeping.database as d; d._WRITE_SECONDS = 0.1")
    program += "d._WRITE_SECONDS = 60; print('done', flush=True)"
    command = [sys.executable, "-c", program, str(file), "late"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "done\n"]
        locked.rollback()
        assert process.wait(60) == 0
    assert names(Database(file))[:10] == [f"late-{number}" for number in reversed(range(10))]


def test_reading_does_not_wait_for_a_writer_that_waits(file, locked):
    kept = Database(file)
    writer = threading.Thread(target=kept.put, args=("plans", row("new")))
    writer.start()
    while not kept._turn.locked():
        pass
    assert len(names(kept)) == ROWS + 1 and len(names(Database(file))) == ROWS
    assert writer.is_alive(), "the writer had given up: this shows nothing"
    locked.rollback()
    writer.join(60)
    assert names(Database(file))[0] == "new"


def test_a_database_that_another_program_has_to_itself_is_left_alone(file, caplog, monkeypatch):
    filled(file)
    for name in ("_READ_SECONDS", "_WRITE_SECONDS"):
        monkeypatch.setattr(database, name, 0.1)
    kept = Database(file)
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        kept.put("plans", row("new"))
        assert names(kept) == ["new"] and "locked" in kept.obstacles["reading"]
    assert len(names(kept)) == ROWS + 1 and not any(kept.obstacles.values())
    assert len(caplog.records) == 2 and not list(file.parent.glob("*damaged*"))


# Folders


def test_a_folder_that_may_only_be_read_is_read_with_one_warning(caplog):
    with open_folder() as folder:
        file = folder / "runs.sqlite"
        filled(file)
        with read_only(folder):
            kept = Database(file)
            assert len(names(kept)) == ROWS and not caplog.records
            for name in ("new", "newer"):
                kept.put("plans", row(name))
            assert names(kept)[:3] == ["newer", "new", str(ROWS - 1)]
            (said,) = caplog.records
            assert "cannot be written" in said.getMessage() and "AMP_EXPLORE_CACHE" in said.getMessage()
        assert not list(folder.glob("*damaged*"))


def test_a_folder_that_is_removed_meanwhile_is_made_again(tmp_path):
    kept = Database(tmp_path / "cache" / "runs.sqlite")
    kept.put("plans", row("old"))
    shutil.rmtree(tmp_path / "cache")
    assert names(kept) == []
    kept.put("plans", row("new"))
    assert names(Database(tmp_path / "cache" / "runs.sqlite")) == ["new"]


def test_a_full_disk_is_said_with_what_to_do(file):
    advice = Database(file)._advice
    with closing(sqlite3.connect(file)) as small:
        small.execute("PRAGMA max_page_count = 2")
        with pytest.raises(sqlite3.OperationalError) as raised:
            for number in range(100):
                small.execute(f"CREATE TABLE t{number} (a)")
    assert "free some" in advice(raised.value)


def test_the_plans_that_are_kept_are_bounded(file, monkeypatch):
    monkeypatch.setattr(database, "PLANS_BYTES", 1000)
    kept = Database(file)
    for number in range(10):
        kept.put("plans", row(number, "x" * 300))
        kept.put("plans", row("used", "x"))
    assert names(kept) == ["used", "9", "8", "7"]


def test_the_memory_of_what_cannot_be_written_is_bounded(file, monkeypatch):
    monkeypatch.setattr(database, "_UNWRITTEN_ROWS", 3)
    file.parent.joinpath("runs.lock").mkdir()  # no turn is ever had
    kept = Database(file)
    for number in range(5):
        kept.put("plans", row(number))
    assert names(kept) == ["4", "3", "2"]
