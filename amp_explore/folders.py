"""How a folder in the cache comes to be: whole or not at all, one process at a time, and only where it fits.

The demo data and converted models are large, take long to make, and are shared by processes that may be
killed at any moment. They are therefore made in a folder beside their final place, which is renamed at the
very end: whoever sees the final name sees all of it.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from amp_explore.errors import AmpExploreError
from amp_explore.progress import Progress


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
        message = f"{path.parent} cannot be written ({error.strerror}): set AMP_EXPLORE_CACHE to a folder that can"
        raise AmpExploreError(message) from error
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
        if error.errno == errno.ENOSPC:
            raise AmpExploreError(_full(target.parent)) from error
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def require_space(folder: Path, needed: int) -> None:
    """Raise `AmpExploreError` unless the disk of `folder`, which must exist, has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise AmpExploreError(f"{_full(folder)} ({needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free)")


def _full(folder: Path) -> str:
    return f"No space left for {folder}: free some, or set AMP_EXPLORE_CACHE to a folder on another disk"
