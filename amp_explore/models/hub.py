"""Models of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from amp_explore import hub
from amp_explore.errors import ModelError
from amp_explore.progress import Progress, no_progress

_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]
_SAYS = {
    "no id": "{id!r} is neither a folder nor a hub id (owner/name); check the spelling",
    "unreachable": "{id!r} is no local folder, and the hub cannot be reached; check the path or the network",
    "refused": "the hub has no {id!r}, or does not let you have it ({reason}); check the id, or log in",
    "broken": "{id!r} cannot be downloaded ({reason}); try again",
}
_prepared: dict[str, Path] = {}  # downloaded for the next `folder_of`


def prepare(hub_id: str, progress: Progress = no_progress) -> None:
    """Download a model, so that the next `folder_of` needs no network. Arguments and errors as there."""
    _prepared[hub_id] = _download(hub_id, progress)


def folder_of(hub_id: str, progress: Progress = no_progress) -> Path:
    """The local folder of a model, downloaded if it is not here or not the newest. `progress` counts bytes.

    Raises:
        ModelError: it cannot be had.
    """
    prepared = _prepared.pop(hub_id, None)
    return prepared if prepared and prepared.is_dir() else _download(hub_id, progress)


def _download(hub_id: str, progress: Progress) -> Path:
    try:
        return hub.download(hub_id, _FILES, progress=progress)
    except hub.HubError as error:
        raise ModelError(_SAYS[error.problem].format(id=hub_id, reason=error)) from None
