"""`criteria` and `allocations`: what there is to choose from."""

from __future__ import annotations

import argparse

from amp_explore.cli.terminal import ProgressBar


def add_to(commands: argparse._SubParsersAction) -> None:
    for name, what in (("criteria", "the criteria"), ("allocations", "the ways to share a budget between layers")):
        listing = commands.add_parser(name, help=f"list {what}: what each covers, its formula and source")
        listing.set_defaults(command=_list, what=name)


def _list(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.criteria.registry import CRITERIA
    from amp_explore.studies.recipe import ALLOCATIONS

    for name, each in (CRITERIA if options.what == "criteria" else ALLOCATIONS).items():
        covers = f" ({each.covers})" if options.what == "criteria" else ""
        print(f"{name}{covers}: {each.says}\n    {each.formula}\n    {each.source}")
