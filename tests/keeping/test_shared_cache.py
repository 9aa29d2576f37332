"""Processes share the cache, and one that is killed at any moment leaves nothing half-made."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kept import made_up, same

from amp_explore.keeping.store import Store

ROOT = Path(__file__).resolve().parents[2]
WRITER = "import test_shared_cache; test_shared_cache.write_on_demand()"


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
        path = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
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
