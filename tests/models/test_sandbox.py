"""Work in the sandbox may hang, eat memory or crash: it is ended, said in one line, and the next piece is done."""

import ctypes
import os
import signal
import time

import psutil
import pytest

from amp_explore.errors import AmpExploreError, DataError, ModelError
from amp_explore.models import sandbox
from amp_explore.progress import Cancelled

ROOM = 2**28


# What is done in the sandbox


def add(one: str, other: str) -> str:
    return one + other


def compute_for_ever() -> None:
    while True:
        pass


def wait_for_ever() -> None:
    time.sleep(10**6)


def fill_memory() -> None:
    print(len(bytearray(2**33)))


def crash() -> None:
    ctypes.string_at(0)


def refuse(kind: str) -> None:
    raise {"model": ModelError, "data": DataError, "library": ValueError, "panic": BaseException}[kind]("like\nthis")


def fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


def own_process() -> list[int]:
    return [os.getpid(), os.getppid()]


# Tests


def test_what_it_returns_comes_back():
    assert sandbox.run(add, "a", "mod\udce9l", memory=ROOM) == "amod\udce9l"


def test_each_piece_of_work_has_a_process_and_all_share_a_helper():
    (one, helper), (other, same) = (sandbox.run(own_process, memory=ROOM) for _ in range(2))
    assert one != other and helper == same != os.getpid()


@pytest.mark.parametrize(
    ("work", "said"),
    [(compute_for_ever, "too long"), (fill_memory, "too much memory"), (crash, "breaks what reads it")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_work_that_reaches_a_limit_is_ended(work, said):
    with pytest.raises(ModelError, match=said):
        sandbox.run(work, memory=ROOM, seconds=1)
    assert sandbox.run(add, "a", "b", memory=ROOM) == "ab"


@pytest.mark.parametrize(("kind", "error"), [("model", ModelError), ("data", AmpExploreError)])
def test_a_refusal_comes_back_as_it_is(kind, error):
    with pytest.raises(error, match="^like\nthis$"):
        sandbox.run(refuse, kind, memory=ROOM)


@pytest.mark.parametrize("kind", ["library", "panic"])
def test_what_a_library_raises_becomes_one_line(kind):
    with pytest.raises(ModelError, match=r"^it cannot be loaded \(like this\)"):
        sandbox.run(refuse, kind, memory=ROOM)


def test_a_full_disk_is_told_apart():
    with pytest.raises(OSError, match="No space left"):
        sandbox.run(fill_the_disk, memory=ROOM)


def test_work_can_be_cancelled_and_nothing_of_it_goes_on():
    started = []

    def cancel(done, total, note):
        assert (done, total, note) == (0, 1, "waiting")
        started.extend(child.pid for child in psutil.Process(sandbox._helper.pid).children())
        if started:
            raise Cancelled

    with pytest.raises(Cancelled):
        sandbox.run(wait_for_ever, memory=ROOM, progress=cancel, note="waiting")
    assert sandbox._helper is None
    deadline = time.monotonic() + 60
    while any(map(is_alive, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(process: int) -> bool:
    """Whether it runs; dead ones may wait to be buried."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_helper_that_has_ended_is_started_anew():
    _, helper = sandbox.run(own_process, memory=ROOM)
    os.kill(helper, signal.SIGALRM)  # as when nobody asked for long
    assert sandbox.run(own_process, memory=ROOM)[1] != helper
