"""The models that a shared server offers: all others are refused, whoever names them.

Whoever starts the server lists folders and ids; a folder that holds models stands for each of them, those that are put
there later too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "AMP_EXPLORE_ALLOWED"
"""The environment variable that hands the list to a server: JSON, a list of strings. Unset: everything is allowed."""


def allowed_models() -> list[str] | None:
    """The sources that this server offers, in the order of its list; None where it takes every source."""
    text = os.environ.get(VARIABLE)
    return None if text is None else sources_in(json.loads(text))


def sources_in(entries: Sequence[str]) -> list[str]:
    """The sources that a list of ids, models and folders of models stands for, each once."""
    return list(dict.fromkeys(source for entry in entries for source in _sources_of(entry)))


def offered(source: str) -> str | None:
    """The source as this server's list spells it; None where it is not on the list."""
    listed = allowed_models()
    if listed is None or source in listed:
        return source
    return next((each for each in listed if _same_file(source, each)), None)


def _sources_of(entry: str) -> list[str]:
    folder = Path(entry)
    if not folder.is_dir() or (folder / "config.json").exists():
        return [entry]
    return [str(path) for path in sorted(folder.iterdir()) if _is_model(path) and str(path).isprintable()]


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() or (path.suffix.lower() == ".gguf" and path.is_file())


def _same_file(one: str, other: str) -> bool:
    try:
        return Path(one).expanduser().samefile(other)
    except (OSError, ValueError, RuntimeError):  # an id, a path that is none, a home that nobody has
        return False
