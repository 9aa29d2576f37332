"""What tests of the cache keep in it, and what they do to its folder."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import torch

from amp_explore.observe.statistics import LayerStatistics

KEY = {"kind": "statistics", "model": "abc", "windows": [1, 2], "dtype": "float32"}
_NOBODY = 65534


def made_up(seed: int, size: int = 3) -> tuple[LayerStatistics, ...]:
    lot = torch.Generator().manual_seed(seed)
    names = [field.name for field in fields(LayerStatistics)]
    return tuple(
        LayerStatistics(**{name: torch.rand(size + layer, generator=lot) for name in names}) for layer in range(3)
    )


def same(one: tuple[LayerStatistics, ...], two: tuple[LayerStatistics, ...]) -> bool:
    return all(
        torch.equal(value, getattr(b, name)) for a, b in zip(one, two, strict=True) for name, value in vars(a).items()
    )


def refuse():
    raise AssertionError("computed again, though it was kept")


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; those of pytest are for its user alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextmanager
def read_only(folder: Path, mode: int = 0o555) -> Iterator[None]:
    """While this lasts, the folder, and what is in it, has this mode; root, whom no mode binds, becomes nobody."""
    places = [folder, *folder.rglob("*")]
    modes = [place.stat().st_mode for place in places]
    for place in reversed(places):
        place.chmod(mode)
    root = os.geteuid() == 0
    try:
        if root:
            os.setresuid(_NOBODY, _NOBODY, 0)
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)
        for place, before in zip(places, modes, strict=True):
            place.chmod(before)
