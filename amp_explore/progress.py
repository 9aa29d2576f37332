"""How long work tells where it stands, and how it is stopped: a callback called between batches."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""``progress(done, total, note)``; it may raise `Cancelled`, which the work lets pass."""


class Cancelled(Exception):
    """Raised out of a progress callback: the person no longer wants the result."""


def no_progress(done: int, total: int, note: str) -> None:
    """The default callback: say nothing, never cancel."""


def labelled(progress: Progress, label: str) -> Progress:
    """The same progress, each note with the label in front."""
    return lambda done, total, note: progress(done, total, label + note)


def part(progress: Progress, number: int, of: int) -> Progress:
    """Progress of the part `number` (from 0) of as many equal parts as `of`, as progress of the whole."""
    return lambda done, total, note: progress(1000 * number + 1000 * done // max(total, 1), 1000 * of, note)
