"""How files and folders in the cache come to be: whole or not at all, and only where they fit.

The demo data and converted models are large, take long to make, and are shared by processes that may be
killed at any moment. They are therefore made in a folder beside their final place, which is renamed at the
very end: whoever sees the final name sees all of it. Files are written the same way.

What tells whether somebody is at work on a file, or needs it, is a lock that the system lets go when its
process ends, however it ends: no process number that another gets, no age by a clock that may be wrong.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from amp_explore.errors import AmpExploreError, CacheError
from amp_explore.progress import Progress

try:
    import fcntl
except ImportError:  # Windows, where a file that somebody has open cannot be deleted anyway
    fcntl = None

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def lock(path: Path, *, progress: Progress, note: str) -> Iterator[None]:
    """Hold the lock file `path`; while another has it, call `progress(0, 1, note)` twice a second.

    The note lets a person see why nothing moves, and the call lets them cancel.

    Raises:
        AmpExploreError: the folder of `path` cannot be written.
    """
    file_lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not file_lock.is_locked:
            try:
                file_lock.acquire(timeout=0.5)
            except Timeout:
                progress(0, 1, note)
    except OSError as error:
        raise AmpExploreError(advice(error, path.parent)) from error
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def turn(file_lock: FileLock, seconds: float) -> Iterator[None]:
    """Hold a lock file that others, too, hold for moments only; the same thread may do so again inside.

    Raises:
        CacheError: somebody holds it for longer than `seconds`, or its folder cannot be written.
    """
    place = Path(file_lock.lock_file)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        file_lock.acquire(timeout=seconds, poll_interval=0.01)
    except Timeout:
        raise CacheError(locked(place)) from None
    except OSError as error:
        raise CacheError(advice(error, place.parent)) from error
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends well and vanishes when it does not.

    An existing `target` is replaced. Hold a `lock` around it: the unfinished folder always has the same name,
    so that what a killed process left behind is cleared away here.

    Raises:
        AmpExploreError: the disk filled up meanwhile.
    """
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(parents=True)
        yield unfinished
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    except OSError as error:
        if error.errno in _FULL:
            raise AmpExploreError(full(target.parent)) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. What is no file, such as a pipe, is written to as it is.

    What a killed writer of the same file left unfinished is removed.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = Path(os.path.realpath(path))  # a link stays one: /dev/stdout, sent to a file, is not replaced
    try:
        remove_abandoned(path.parent, path.name)
        temporary, hold = _unfinished(path)
        with hold:
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        error.filename = str(path)  # the name that was asked for
        raise


def _unfinished(path: Path) -> tuple[Path, Hold]:
    """An empty file beside `path`, and the hold on it."""
    while True:
        temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
        temporary.touch(exist_ok=False)
        with suppress(FileNotFoundError):  # taken for abandoned before it was held
            if (hold := Hold.alone(temporary)) is not None and temporary.exists():
                return temporary, hold


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Remove the unfinished files that killed writers of `name`, or of any file, left in a folder."""
    for path in folder.glob(f".{'*' if name is None else glob.escape(name)}-{'[0-9a-f]' * 8}"):
        with suppress(OSError):  # somebody else's, or gone by now
            if (hold := Hold.alone(path)) is not None:
                with hold:
                    if hold.certain:
                        path.unlink()


def clear_away(path: Path) -> None:
    """Remove whatever stands at a path: a file, a folder with all that is in it, or a link, wherever it leads."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Hold:
    """A file that is held until this object is closed or gone, or its process is, however that ends.

    Many may hold a file together, or one alone. This hinders nobody but who asks with `alone`, before deleting it.
    `certain` is False where the file system knows no locks: then nobody can tell whether others hold the file.
    """

    def __init__(self, path: Path) -> None:
        """Hold a file together with others; waits while another holds it alone.

        Raises:
            OSError: it cannot be opened.
        """
        self._open(path, os.O_RDONLY)
        self._take(alone=False)

    @classmethod
    def alone(cls, path: Path) -> Hold | None:
        """Hold a file alone; None, at once, where somebody else holds it.

        Raises:
            OSError: it cannot be opened.
        """
        hold = cls.__new__(cls)
        hold._open(path, os.O_RDWR)
        try:
            hold._take(alone=True)
        except (BlockingIOError, PermissionError):  # some file systems say it so
            hold.close()
            return None
        return hold

    def close(self) -> None:
        """Let it go."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _open(self, path: Path, flags: int) -> None:
        self._descriptor = None
        if fcntl:
            self._descriptor = os.open(path, flags | os.O_NONBLOCK)

    def _take(self, *, alone: bool) -> None:
        self.certain = True
        try:
            if fcntl:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            self.certain = False

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    __del__ = close


def mark_used(path: Path, root: Path) -> None:
    """Give a file or folder of the cache folder `root` a later time than whatever was marked there before.

    The order of these times is that of use even where this machine's clock went wrong meanwhile, in either direction.
    What cannot be marked is left as it is.
    """
    with suppress(OSError, OverflowError):
        clock = root / "last-use"  # bears the latest of these times
        latest = max(each.stat().st_mtime_ns for each in (path, clock) if each.exists())
        now = max(time.time_ns(), latest + 1000)  # times of some file systems are no finer
        os.utime(path, ns=(now, now))
        clock.touch()
        os.utime(clock, ns=(now, now))


def require_space(folder: Path, needed: int) -> None:
    """Raise `AmpExploreError` unless the disk of `folder`, which must exist, has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AmpExploreError(f"{full(folder)} ({needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free)")


def advice(error: OSError, folder: Path) -> str:
    """What a person can do about a folder of the cache that cannot be written, in one line."""
    return full(folder) if error.errno in _FULL else forbidden(folder, error.strerror or str(error))


def full(folder: Path) -> str:
    """What a person can do about a disk that is full, in one line."""
    return f"No space left for {folder}: free some, or set AMP_EXPLORE_CACHE to a folder on another disk"


def forbidden(path: Path, reason: str) -> str:
    """What a person can do about a file or folder that cannot be written, in one line."""
    return f"{path} cannot be written ({reason}): set AMP_EXPLORE_CACHE to a folder that can"


def locked(path: Path) -> str:
    """What a person can do about a file that is not let go, in one line."""
    return f"{path} is locked by another program: close that program"
