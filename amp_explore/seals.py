"""What is in the cache is what was put there: every file's SHA-256, noted when it was made and checked before use.

One flipped bit in a weight, a text or an answer key gives another number and no error. So a folder that this program
made ends with a seal, the digests of all its other files, and is not trusted when they differ. Hashing takes a second
per gigabyte or less, once per process and file as long as size and times stay the same.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path

from amp_explore.progress import Progress, no_progress

SEAL = "manifest.json"

_CHUNK = 2**22  # bytes hashed between two reports

Stamp = tuple[int, int, int, int]
_known: dict[Path, tuple[Stamp, str]] = {}


def stamp_of(path: Path) -> Stamp:
    """What changes when a file does: size, times and inode. Raises `OSError` for what is no regular file."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever, or never end
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def file_digest(path: Path, *, progress: Progress = no_progress) -> str:
    """SHA-256 of a regular file, in hexadecimal; of one that has not changed since, without reading it again.

    `progress` counts bytes. Raises `OSError` where the file cannot be read.
    """
    stamp = stamp_of(path)
    known = _known.get(path)
    if known is not None and known[0] == stamp:
        return known[1]
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(done, stamp[0], f"checking {path.name}")
    _known[path] = stamp, digest.hexdigest()
    return _known[path][1]


def seal(folder: Path) -> None:
    """Note down what the files of `folder` are; a folder whose seal is missing was never finished."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    document = {"files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files}}
    with (folder / SEAL).open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sealed(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by its path in the folder, as sealed; empty where there is no seal that can be read."""
    try:
        stamp_of(folder / SEAL)
        files = json.loads((folder / SEAL).read_bytes())["files"]
        return {str(name): str(digest) for name, digest in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_intact(path: Path, digest: str, *, progress: Progress = no_progress) -> bool:
    """Whether a file is there and is what it was."""
    try:
        return file_digest(path, progress=progress) == digest
    except OSError:
        return False


def damage(folder: Path, *, progress: Progress = no_progress) -> str | None:
    """The first file of a sealed folder that is not what it was, or is missing; None where all are.

    Of a folder without a seal that is the seal itself.
    """
    files = sealed(folder)
    if not files:
        return SEAL
    return next((name for name in files if not is_intact(folder / name, files[name], progress=progress)), None)
