"""How long work tells where it stands, and how it is stopped: a callback called between batches."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""``progress(done, total, note)``; it may raise `Cancelled`, which the work lets pass."""


class Cancelled(Exception):
    """Raised out of a progress callback: the person no longer wants the result."""


def no_progress(done: int, total: int, note: str) -> None:
    """The default callback: say nothing, never cancel."""
