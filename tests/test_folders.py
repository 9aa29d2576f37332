"""Files come to be whole or not at all, and what dead writers left goes; the times of use keep their order."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from amp_explore import folders
from amp_explore.folders import Hold, mark_used, remove_abandoned, write_atomically

ROOT = Path(__file__).resolve().parents[1]


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


def test_a_link_that_leads_round_in_a_circle_makes_way(tmp_path):
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    write_atomically(tmp_path / "one", b"content")
    assert (tmp_path / "one").read_bytes() == b"content"


WRITER = """
import os, sys
from pathlib import Path
from amp_explore import folders
os.fsync = lambda _: (print("writing", flush=True), sys.stdin.read())
folders.write_atomically(Path(sys.argv[1]), b"content")
"""


@pytest.fixture
def writer(tmp_path):
    """Another process in the middle of writing `plan.json`; it goes on when its standard input ends."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "plan.json")]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def test_what_a_killed_writer_left_goes_with_the_next_write_of_that_name(writer, tmp_path):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (left,) = tmp_path.iterdir()
    write_atomically(tmp_path / "another", b"")
    write_atomically(tmp_path / "plan.json.bak", b"")
    assert left.exists(), "the unfinished file of another name went"
    write_atomically(tmp_path / "plan.json", b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "plan.json", "plan.json.bak"]


def test_what_a_living_writer_is_at_is_left_alone(writer, tmp_path):
    write_atomically(tmp_path / "plan.json", b"ours")
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    writer.stdin.close()
    assert writer.wait(60) == 0
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"content"]


def test_the_files_of_people_are_not_taken_for_abandoned_ones(tmp_path):
    names = [".bashrc", ".plan.json-backup", ".plan.json-0123456g", "plan.json-01234567", ".plan.json-012345678"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".plan.json-01234567").mkdir()
    remove_abandoned(tmp_path)
    remove_abandoned(tmp_path, "plan.json")
    assert {path.name for path in tmp_path.iterdir()} == {*names, ".plan.json-01234567"}


def test_a_time_in_the_future_is_no_reason_to_count_as_unused(tmp_path):
    """As a clock left it that was put right before anything was marked."""
    for name in ("unused", "used"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() + 40 * 86_400,) * 2)
    mark_used(tmp_path / "used", tmp_path)
    assert (tmp_path / "used").stat().st_mtime_ns > (tmp_path / "unused").stat().st_mtime_ns


def test_a_file_is_held_together_or_alone(tmp_path):
    (tmp_path / "file").touch()
    one, two = Hold(tmp_path / "file"), Hold(tmp_path / "file")
    assert Hold.alone(tmp_path / "file") is None
    one.close()
    assert Hold.alone(tmp_path / "file") is None
    del two
    alone = Hold.alone(tmp_path / "file")
    assert alone is not None and Hold.alone(tmp_path / "file") is None
    alone.close()
    with pytest.raises(FileNotFoundError):
        Hold(tmp_path / "nothing")


def test_without_locks_nothing_is_taken_for_abandoned(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(folders.fcntl, "flock", unknown)
    (tmp_path / ".plan.json-01234567").touch()
    write_atomically(tmp_path / "plan.json", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".plan.json-01234567", "plan.json"]


@pytest.mark.parametrize("days", [0, 40, -40])
def test_the_times_of_use_keep_their_order_whatever_the_clock_does(tmp_path, monkeypatch, days):
    """It goes wrong, by so many days, between the first use and the last but one."""
    used = []
    for name in ("a", "b", "c", "d", "b"):
        (tmp_path / name).touch()
        now = time.time_ns() + (days * 86_400 * 10**9 if name == "c" else 0)
        with monkeypatch.context() as patch:
            patch.setattr(folders.time, "time_ns", lambda now=now: now)
            mark_used(tmp_path / name, tmp_path)
        used.append(name)
    assert sorted("abcd", key=lambda name: (tmp_path / name).stat().st_mtime_ns) == ["a", "c", "d", "b"]
