"""Texts that only the hub has: AMP's calibration prompts, and the test set that perplexities are published for.

Each is downloaded once, into the cache, and read from there without a network ever after.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.parquet

from amp_explore import hub
from amp_explore.errors import DataError
from amp_explore.folders import lock, new_folder
from amp_explore.progress import Progress, no_progress
from amp_explore.seals import damage, seal
from amp_explore.texts.assets import cache_root

HubText = Literal["alpaca", "wikitext2"]


@dataclass(frozen=True)
class _Source:
    """One file, JSON or Parquet, of a data set."""

    repository: str
    file: str

    @property
    def folder(self) -> Path:
        return cache_root() / "assets" / self.repository.replace("/", "--")

    @property
    def path(self) -> Path:
        return self.folder / Path(self.file).name


_SOURCES: dict[HubText, _Source] = {
    "alpaca": _Source("yahma/alpaca-cleaned", "alpaca_data_cleaned.json"),
    "wikitext2": _Source("Salesforce/wikitext", "wikitext-2-raw-v1/test-00000-of-00001.parquet"),
}
_SAYS = {
    "no id": "the hub does not know it",
    "unreachable": "the hub cannot be reached; check the network",
    "refused": "the hub does not give it",
    "broken": "the download broke off; try again",
}


def is_here(name: HubText) -> bool:
    """Whether the text can be read without a network, its content verified."""
    return damage(_SOURCES[name].folder) is None


def fetch(name: HubText, progress: Progress = no_progress) -> None:
    """Download the text, unless it is here. `progress` counts bytes.

    Raises:
        DataError: it cannot be had.
    """
    source = _SOURCES[name]
    lock_file = source.folder.with_name(f".{source.folder.name}.lock")
    with lock(lock_file, progress=progress, note="waiting for another download to finish"):
        if is_here(name):
            return
        found = _download(source, progress)
        with new_folder(source.folder) as folder:
            shutil.copyfile(found, folder / source.path.name)
            seal(folder)


def rows(name: HubText) -> list[dict[str, str]]:
    """The text's rows, downloaded first where they are not here. Errors as for `fetch`."""
    if not is_here(name):
        fetch(name)
    path = _SOURCES[name].path
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    return json.loads(path.read_bytes())


def _download(source: _Source, progress: Progress) -> Path:
    try:
        found = hub.download(source.repository, [source.file], kind="dataset", progress=progress) / source.file
    except hub.HubError as error:
        said = f"{_SAYS[error.problem]}, or use a bundled text"
        raise DataError(f"{source.repository} cannot be had: {said}") from error
    if not found.is_file():
        raise DataError(f"{source.repository} has no {source.file} any more; use a bundled text")
    return found
