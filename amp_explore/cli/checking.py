"""`check`: whether what every number rests on holds, with the libraries that are installed."""

from __future__ import annotations

import argparse

from amp_explore.cli.options import add_device, open_model
from amp_explore.cli.terminal import ProgressBar, quiet
from amp_explore.errors import AmpExploreError


def add_to(commands: argparse._SubParsersAction) -> None:
    check = commands.add_parser(
        "check", help="prove that sliced equals masked and cached equals full, with the libraries that are installed"
    )
    check.add_argument("--model", metavar="M", help="on this model; without, on a tiny random one of every family")
    add_device(check, dtype="float32")
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.measure import identities

    if options.model:
        _, loaded = open_model(options, progress)
        tried = f"{loaded.name} ({loaded.dtype})"
        failures = identities.check(loaded, progress=progress)
    else:
        quiet()
        tried = f"{len(identities.tiny.SPECS)} tiny models of all families"
        failures = identities.check_libraries(progress=progress)
    progress.clear()
    print(" · ".join(f"{name} {version}" for name, version in identities.versions().items()))
    for failure in failures:
        print(f"FAILED {failure}")
    if failures:
        raise AmpExploreError(
            f"{len(failures)} checks failed: trust no number of this installation; `make setup` installs versions that "
            "were tried"
        )
    print(f"{tried}: {identities.SAYS}")
