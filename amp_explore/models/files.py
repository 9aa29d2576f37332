"""Files that come from outside: what they are is seen before they are opened, and how large before they are read.

Opening a pipe waits for ever, and a device has no end.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from amp_explore.errors import ModelError, in_one_line
from amp_explore.progress import Progress, no_progress
from amp_explore.seals import file_digest

LARGEST = 256 * 2**20
"""Bytes of a file beside the weights. The largest tokenizers take 40 MB."""

Stamp = tuple[int, int]
"""A file's size in bytes and the time of its last change in nanoseconds: what tells cheaply that it is another one."""

_POINTER = b"version https://git-lfs"


def regular(path: Path) -> os.stat_result:
    """A file's status, links followed.

    Raises:
        ModelError: it is no regular file.
        FileNotFoundError: it is not there.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = "a link that leads back to itself" if error.errno == errno.ELOOP else error.strerror
        raise ModelError(f"{path} cannot be read ({reason}); download it again") from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is no regular file but a folder, a pipe or a device; put the file itself there")
    return status


def refuse_pointer(path: Path, start: bytes) -> None:
    """Raise `ModelError` where a file's first bytes say that it stands for one that Git LFS has not brought."""
    if start.startswith(_POINTER):
        raise ModelError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def read_json(path: Path) -> Any:
    """What a small JSON file holds.

    Raises:
        ModelError: it is too large, not a regular file, or no JSON.
        FileNotFoundError: it is not there.
    """
    require_small(path)
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({in_one_line(error)}); download it again") from None


def require_small(path: Path) -> None:
    """Raise `ModelError` unless a file that is no weights is a regular one, readable, and of a size to expect of it."""
    size = regular(path).st_size
    if size > LARGEST:
        raise ModelError(f"{path} has {size / 1e6:.0f} MB, too many for what it is; move it out of the folder")
    try:
        with path.open("rb") as file:
            refuse_pointer(path, file.read(len(_POINTER)))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check who may read it") from None


def stamp(path: Path) -> Stamp:
    """The stamp of a regular file; errors as for `regular`."""
    status = regular(path)
    return status.st_size, status.st_mtime_ns


def digests(paths: Iterable[Path], progress: Progress = no_progress, note: str = "") -> list[str]:
    """SHA-256 of each file, read again only where it has changed; `progress` counts bytes. Errors as for `stamp`."""
    sizes = {path: stamp(path)[0] for path in paths}
    found, done, total = [], 0, max(sum(sizes.values()), 1)
    for path, size in sizes.items():
        found.append(file_digest(path, progress=lambda read, _, __, before=done: progress(before + read, total, note)))
        done += size
    return found
