"""Text files of one's own: read piece by piece, and only as far as somebody wants to know."""

from __future__ import annotations

import codecs
import stat
from collections.abc import Iterator
from pathlib import Path

from amp_explore.errors import DataError

LARGEST = 2**30
"""Bytes; what is larger was hardly meant to be read as one text."""

_PIECE = 2**18  # bytes


def pieces(path: str | Path) -> Iterator[str]:
    """The text of a UTF-8 file in pieces, without a byte order mark. Line ends stay as they are: CRLF is two
    characters to a tokenizer.

    Raises:
        DataError: it is missing, no regular file, larger than `LARGEST`, or not UTF-8 as far as it was read.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    try:
        file = Path(path)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device may never end
            raise DataError(f"cannot read the text {path}: not a file; check the path")
        if status.st_size > LARGEST:
            raise DataError(f"the text {path} is larger than {LARGEST / 1e9:.1f} GB; use a part of it")
        with file.open("rb") as content:
            while data := content.read(_PIECE):
                yield decode(data)
            yield decode(b"", final=True)
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; convert it first") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason, shown = getattr(error, "strerror", None) or error, str(path)[:200].replace("\0", "?")
        raise DataError(f"cannot read the text {shown}: {reason}; check the path") from None
