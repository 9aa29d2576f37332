"""Work on what strangers made, in a sandbox: a process that may hang, eat memory or crash while nothing else does.

The helper process (this module, run) imports what is needed once and forks for each piece of work, which then has
limits of its own, on time and memory. It ends when nobody has asked for a while, and with the process that started it.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from amp_explore.errors import AmpExploreError, ModelError, in_one_line
from amp_explore.processes import PythonModule
from amp_explore.progress import Progress, no_progress

_IDLE_SECONDS = 60  # after which the helper ends
_POLL_SECONDS = 0.2  # between two looks whether the person has cancelled
_LONGEST_ANSWER = 2**20  # bytes
_TOO_SLOW = "reading it takes too long; do not use it"
_TOO_LARGE = "reading it takes too much memory, or breaks what reads it; do not use it"
_TURN = threading.Lock()
_helper: _Helper | None = None


def run(
    work: Callable[..., Any],
    *arguments: str,
    memory: int,
    seconds: int | None = None,
    progress: Progress = no_progress,
    note: str = "",
) -> Any:
    """What a public function of a module returns (JSON), computed in a process of its own.

    Args:
        memory: bytes that it may take.
        seconds: for which it may compute, and ten times as long that it may take; None: as long as it wants.
        progress: called several times a second, so that the work can be cancelled.

    Raises:
        ModelError: the work raised one, failed in another way, or reached a limit.
        AmpExploreError: the work raised one.
        OSError: the disk filled up meanwhile.
    """
    request = {"work": [work.__module__, work.__qualname__], "arguments": arguments}
    line = json.dumps(request | {"memory": memory, "seconds": seconds}).encode() + b"\n"
    while not _TURN.acquire(timeout=_POLL_SECONDS):
        progress(0, 1, note)
    try:
        # A helper that was idle for too long may end just when it is asked.
        answer = _asked(line, progress, note) or _asked(line, progress, note)
    finally:
        _TURN.release()
    if not answer:
        raise ModelError("the process that reads models cannot be started; see whether there is memory left")
    answer = json.loads(answer)
    if "full" in answer:
        raise OSError(errno.ENOSPC, answer["full"])
    if "error" in answer:
        raise (ModelError if answer["of_model"] else AmpExploreError)(answer["error"])
    return answer["result"]


def _asked(line: bytes, progress: Progress, note: str) -> bytes:
    """The helper's answer; nothing if it is no more."""
    global _helper
    _helper = _helper or _Helper()
    answer = b""
    try:
        with suppress(BrokenPipeError):
            _helper.requests.write(line)
        while not answer.endswith(b"\n"):
            progress(0, 1, note)
            if select.select([_helper.stdout], [], [], _POLL_SECONDS)[0]:
                read = os.read(_helper.stdout.fileno(), _LONGEST_ANSWER)
                if not read:
                    return b""
                answer += read
        return answer
    finally:
        if not answer.endswith(b"\n"):  # cancelled, or gone
            _end()


class _Helper(PythonModule):
    """The process that does the work, the lines that it is asked, and its answers on `stdout`."""

    def __init__(self) -> None:
        root = Path(__file__).parents[2]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(root), *(os.path.abspath(path) for path in sys.path if path)]),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "MALLOC_ARENA_MAX": "2",  # by default it is more with each core, and the memory is limited
            "TOKENIZERS_PARALLELISM": "false",
        }
        asked, asking = os.pipe()
        self.requests = os.fdopen(asking, "wb", buffering=0)
        try:
            super().__init__(
                __name__,
                str(asked),
                pass_fds=(asked,),
                env=environment,
                cwd=root,  # it is searched for modules
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # so that it can be ended with what it forked, and Ctrl-C is ours alone
            )
        finally:
            os.close(asked)


@atexit.register
def _end() -> None:
    """End the helper, and what it is doing."""
    global _helper
    if _helper is None:
        return
    with suppress(ProcessLookupError):
        os.killpg(_helper.pid, signal.SIGKILL)
    while _helper.stdout.read1():  # until it is closed on the other side, by the last of them
        pass
    _helper.wait()
    _helper.requests.close()
    _helper.stdout.close()
    _helper = None


# What runs in the helper


def _serve(requests: int) -> None:
    """Answer each line, until there is none for a while."""
    import amp_explore.models.gguf  # noqa: F401, because what it imports takes seconds

    answers = os.dup(sys.stdout.fileno())
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # libraries print
    signal.alarm(_IDLE_SECONDS)
    with open(requests, "rb") as lines:
        for line in lines:
            signal.alarm(0)
            os.write(answers, _answer(json.loads(line)) + b"\n")
            signal.alarm(_IDLE_SECONDS)


def _answer(request: dict[str, Any]) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
            os.write(writing, _outcome(**request))
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read(_LONGEST_ANSWER)
    _, status = os.waitpid(child, 0)
    return answer or json.dumps({"error": _why_ended(status), "of_model": True}).encode()


def _end_with(helper: int) -> None:
    while os.getppid() == helper:
        time.sleep(1)
    os._exit(1)


def _outcome(work: list[str], arguments: list[str], memory: int, seconds: int | None) -> bytes:
    try:
        _limit(memory, seconds)
        module, name = work
        return json.dumps({"result": getattr(import_module(module), name)(*arguments)}).encode()
    except MemoryError:
        outcome = {"error": _TOO_LARGE, "of_model": True}
    except AmpExploreError as error:
        outcome = {"error": str(error), "of_model": isinstance(error, ModelError)}
    except BaseException as error:  # what a library written in Rust panics with is no Exception
        outcome = {"error": f"it cannot be loaded ({in_one_line(error)}); download it again", "of_model": True}
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            outcome = {"full": error.strerror}
    return json.dumps(outcome).encode()


def _limit(memory: int, seconds: int | None) -> None:
    import resource

    import psutil

    limit = psutil.Process().memory_info().vms + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if seconds is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        signal.alarm(10 * seconds)


def _why_ended(status: int) -> str:
    return _TOO_SLOW if -os.waitstatus_to_exitcode(status) in (signal.SIGXCPU, signal.SIGALRM) else _TOO_LARGE


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
