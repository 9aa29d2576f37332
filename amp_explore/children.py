"""Processes of our own for work that may hang outside our reach: ended at any moment, and never left behind.

A child that is only waited for outlives a parent that is killed with -9. Linux can send a signal then
(PR_SET_PDEATHSIG), but to the thread that started the child, not to the process, and other systems cannot. So a child
holds the reading end of a pipe whose other end is ours alone: whatever ends us closes it, and the child ends itself.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]

_MOMENT = 0.2  # seconds

_WATCHED = """
import os, runpy, sys, threading
def end_with_the_parent():
    os.read(0, 1)  # nothing is ever written, so this waits for the end; sys.stdin would be locked at exit
    os._exit(1)
threading.Thread(target=end_with_the_parent, daemon=True).start()
sys.path[0], sys.argv = sys.argv[1], sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@contextmanager
def running(module: str, *arguments: str | Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m module arguments`, its output and errors together as text in `stdout`.

    Ended at the end of the block if it still runs by then, and with this process, however that ends.
    """
    theirs, ours = os.pipe()  # not Popen's own, which `communicate` closes
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", _WATCHED, _ROOT, module, *arguments],
            env=environment,
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        os.close(theirs)
        with child:
            try:
                yield child
            finally:
                child.kill()
    finally:
        os.close(ours)


def lines(child: subprocess.Popen[str]) -> Iterator[str | None]:
    """What a child prints, line by line until it ends; None whenever a moment passes without a line, so that whoever
    waits can look up."""
    printed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in child.stdout:
            printed.put(line)
        printed.put("")

    threading.Thread(target=read, name="amp-explore-child", daemon=True).start()
    while True:
        try:
            line = printed.get(timeout=_MOMENT)
        except queue.Empty:
            yield None
            continue
        if not line:
            return
        yield line
