"""Processes that end with the one that started them, however that one ends.

A process that is killed cannot end its children, so they watch it: each holds the reading end of a pipe whose writing
end the starter alone has, and which the system closes when the starter is gone.
"""

from __future__ import annotations

import os
import queue
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_MOMENT = 0.2  # seconds


class PythonModule(subprocess.Popen):
    """`python -m module arguments`, its standard input empty; it ends at once when this process, or this object, is
    gone. `options` are those of `Popen`."""

    def __init__(self, module: str, *arguments: str | os.PathLike, **options: Any) -> None:
        watched, held = os.pipe()
        self._held = os.fdopen(held, "wb")
        try:
            super().__init__([sys.executable, __file__, module, *arguments], stdin=watched, **options)
        finally:
            os.close(watched)


def lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """What a process prints, line by line until it ends; None whenever a moment passes without a line, so that whoever
    waits can look up."""
    printed: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        with suppress(ValueError):  # closed by whoever does not wait for the end
            for line in process.stdout:
                printed.put(line)
        printed.put("")

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            line = printed.get(timeout=_MOMENT)
        except queue.Empty:
            yield None
            continue
        if not line:
            return
        yield line


def _run_watching() -> None:
    """What the new process does: run the module that its arguments name, and end when standard input ends."""
    watched = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()
    sys.path[0] = os.getcwd()  # as `python -m` has it, in place of the folder of this file
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with(watched: int) -> None:
    os.read(watched, 1)  # nothing is ever written: this returns when the pipe is closed
    os._exit(1)


if __name__ == "__main__":
    _run_watching()
