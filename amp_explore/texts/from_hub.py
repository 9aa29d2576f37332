"""What only the hub has: AMP's calibration prompts, the test set of published perplexities, official questions.

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
from amp_explore.seals import SEAL, damage, file_digest, seal
from amp_explore.texts.assets import cache_root

HubText = Literal["alpaca", "wikitext2"]

_SAYS = {
    "no id": "the hub does not know it",
    "unreachable": "the hub cannot be reached; check the network",
    "refused": "the hub does not give it",
    "broken": "the download broke off ({reason}); try again",
}


@dataclass(frozen=True)
class Repository:
    """Files of a data set on the hub: those that match the patterns."""

    name: str
    patterns: tuple[str, ...] = ("*",)
    instead: str = "use offline data"

    @property
    def folder(self) -> Path:
        """Where its files are, or will be."""
        return cache_root() / "assets" / self.name.replace("/", "--")

    def is_here(self) -> bool:
        """Whether the files can be read without a network, their content verified."""
        return damage(self.folder) is None

    @property
    def digest(self) -> str | None:
        """Names the content of all files; None where they are not here."""
        return file_digest(self.folder / SEAL) if self.is_here() else None

    def fetch(self, progress: Progress = no_progress) -> None:
        """Download the files, unless they are here. `progress` counts bytes.

        Raises:
            DataError: they cannot be had.
        """
        if self.is_here():
            return
        lock_file = self.folder.with_name(f".{self.folder.name}.lock")
        with lock(lock_file, progress=progress, note="waiting for another download to finish"):
            if self.is_here():
                return
            found = self._download(progress)
            with new_folder(self.folder) as folder:
                shutil.copytree(found, folder, dirs_exist_ok=True)  # links become files
                seal(folder)

    def _download(self, progress: Progress) -> Path:
        try:
            return hub.download(self.name, self.patterns, kind="dataset", progress=progress)
        except hub.HubError as error:
            said = _SAYS[error.problem].format(reason=error)
            raise DataError(f"{self.name} cannot be had: {said}, or {self.instead}") from error


_TEXTS: dict[HubText, Repository] = {
    "alpaca": Repository("yahma/alpaca-cleaned", ("alpaca_data_cleaned.json",), "use a bundled text"),
    "wikitext2": Repository("Salesforce/wikitext", ("wikitext-2-raw-v1/test-*.parquet",), "use a bundled text"),
}


def text(name: HubText) -> Repository:
    """What has this text."""
    return _TEXTS[name]


def rows(name: HubText) -> list[dict[str, str]]:
    """A text's rows, downloaded first where they are not here. Errors as for `fetch`."""
    repository = _TEXTS[name]
    repository.fetch()
    found: list[dict[str, str]] = []
    for path in sorted(path for pattern in repository.patterns for path in repository.folder.glob(pattern)):
        is_json = path.suffix == ".json"
        found += json.loads(path.read_bytes()) if is_json else pyarrow.parquet.read_table(path).to_pylist()
    if not found:
        raise DataError(f"{repository.name} has no {repository.patterns[0]} any more; {repository.instead}")
    return found
