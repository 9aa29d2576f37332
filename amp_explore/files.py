"""Files that a person names, looked at before they are opened: opening a pipe waits for ever, a device has no end."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from pathlib import Path


def read_regular(path: str | Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: it is not there, not a regular file, larger, or cannot be read; `strerror` says which.
    """
    size = regular_size(path)
    with open(path, "rb") as file:
        data = file.read(most + 1)  # bounded: some files of the system are longer than they say
    if max(size, len(data)) > most:
        raise OSError(errno.EFBIG, f"{max(size, len(data)) / 1e6:,.0f} MB, and at most {most / 1e6:,.0f} MB are read")
    return data


def regular_size(path: str | Path) -> int:
    """Bytes of a regular file, links followed. Raises `OSError` as `read_regular`."""
    try:
        status = os.stat(path)
    except ValueError:  # a NUL
        raise OSError(errno.EINVAL, "this is no file name") from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a folder, a pipe or a device, not a regular file")
    return status.st_size


def require_writable(path: str | Path) -> None:
    """Raise `OSError`, its `filename` the path, unless a result can be written there when the work is done.

    What is there already stays as it is.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except ValueError:
        raise OSError(errno.EINVAL, "this is no file name", str(path)) from None
    except FileNotFoundError:
        kind = stat.S_IFREG
    if stat.S_ISDIR(kind):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(kind):  # a pipe or a device is written to as it is
        return
    target = Path(os.path.realpath(path))
    trial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")  # as `write_atomically` begins
    try:
        trial.open("xb").close()
        trial.unlink()
    except OSError as error:
        error.filename = str(path)
        raise
