"""The command line: `python -m amp_explore fetch | score | plan | measure | ablate | compare | check | run` and so on.

Results go to files and to standard output, progress and errors to standard error. The exit code is 0 only on success;
an error is one line that says what to do next.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from amp_explore.cli import checking, listing, measuring, scoring, serving
from amp_explore.cli.terminal import ProgressBar
from amp_explore.errors import AmpExploreError
from amp_explore.progress import Cancelled


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        with ProgressBar() as progress:
            options.command(options, progress)
    except AmpExploreError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Cancelled):
        print("error: cancelled; nothing half-made was left", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def parser() -> argparse.ArgumentParser:
    """All commands with their options. The engine is not imported for it: --help and wrong options answer at once."""
    whole = _Parser(prog="python -m amp_explore", description="Explore structured pruning of language models.")
    commands = whole.add_subparsers(required=True, metavar="command")
    for group in (serving, scoring, measuring, checking, listing):
        group.add_to(commands)
    return whole
