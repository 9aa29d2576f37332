"""Files of the Hugging Face hub, downloaded in a process of their own.

A hub may be silent, slow, or stop in the middle; its client then waits, tries again, and hears nobody. So the client
runs in a child, which says how many bytes there are and can be ended at any moment. What had arrived by then stays in
the client's own cache, where the next attempt goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from amp_explore.errors import AmpExploreError, in_one_line
from amp_explore.processes import PythonModule, lines
from amp_explore.progress import Progress, no_progress
from amp_explore.seals import file_digest

log = logging.getLogger(__name__)

Kind = Literal["model", "dataset"]
Problem = Literal["no id", "unreachable", "refused", "broken"]

ANSWER_SECONDS = 10
"""Until a hub that does not answer counts as out of reach."""

_ROOT = Path(__file__).resolve().parents[1]
_CHUNK = 2**16  # bytes; by default the client reports once in 10 MB, which a slow hub takes minutes for


class HubError(AmpExploreError):
    """What was asked for cannot be had: it is no id, the hub is unreachable, it refused, or the download broke off."""

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(reason)
        self.problem = problem


def download(
    repository: str, patterns: Sequence[str], *, kind: Kind = "model", progress: Progress = no_progress
) -> Path:
    """The local folder with the files of a repository that match, their content verified.

    Where the hub does not answer, that is a model as it was kept from before; of a data set there may be only parts.

    `progress` counts bytes, and is called several times a second whether they come or not.

    Raises:
        HubError: the files cannot be had.
    """
    folder = _downloaded(repository, patterns, kind, progress)
    if not (damaged := [path for path in folder.rglob("*") if _is_damaged(path, progress)]):
        return folder
    log.warning("%s of %s is damaged; downloading it again", damaged[0].name, repository)
    for path in damaged:
        path.resolve().unlink()
    try:
        return _downloaded(repository, patterns, kind, progress)
    except HubError as error:
        raise HubError("broken", f"{damaged[0].name} was damaged here, and does not come again: {error}") from error


def _is_damaged(path: Path, progress: Progress) -> bool:
    """Whether a file of the client's cache is not what it was when it came.

    The hub names large files by their SHA-256 and small ones as git does, and the client keeps them under these names.
    What has another kind of name, from another kind of hub, cannot be told.
    """
    if not path.is_file():
        return False
    name = path.resolve().name
    if re.fullmatch("[0-9a-f]{64}", name):
        return file_digest(path, progress=progress) != name
    if re.fullmatch("[0-9a-f]{40}", name):
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() != name
    return False


def _downloaded(repository: str, patterns: Sequence[str], kind: Kind, progress: Progress) -> Path:
    at, note = (0, 1), f"downloading {repository}"
    progress(*at, note)
    arguments = ("amp_explore.hub", kind, repository, str(ANSWER_SECONDS), *patterns)
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with PythonModule(*arguments, cwd=_ROOT, **output) as client:
        try:
            for line in lines(client):
                said = _parsed(line)
                if "folder" in said:
                    return Path(said["folder"])
                if "problem" in said:
                    raise HubError(said["problem"], said["reason"])
                if "done" in said:  # by one of several bars, which are not quite in step
                    at = max(at[0], said["done"]), said["total"]
                progress(*at, note)
        finally:
            client.kill()
    raise HubError("broken", "the download ended without a word")


def _parsed(line: str | None) -> dict:
    """What the child says; what libraries print in between is none of ours."""
    try:
        said = json.loads(line or "")
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _child(kind: Kind, repository: str, seconds: float, patterns: list[str]) -> None:
    """The other side: say how far it is, then where the files are or why there are none."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        _say(folder=_snapshot(kind, repository, seconds, patterns))
    except HFValidationError as error:
        _say(problem="no id", reason=in_one_line(error))
    except LocalEntryNotFoundError as error:
        _say(problem="unreachable", reason=in_one_line(error))
    except HfHubHTTPError as error:
        _say(problem="refused", reason=in_one_line(error))
    except Exception as error:  # a connection that breaks, a full disk: many types
        _say(problem="broken", reason=in_one_line(error))


def _snapshot(kind: Kind, repository: str, seconds: float, patterns: list[str]) -> str:
    from huggingface_hub import constants, snapshot_download
    from tqdm import tqdm

    class Bar(tqdm):
        """The client has a bar for files and some for bytes, whose total grows as it opens files."""

        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options | {"file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            moved = super().update(n)
            if self.unit == "B":
                _say(done=int(self.n), total=int(self.total or 0))
            return moved

    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
    here = not _answers(kind, repository, seconds)
    return snapshot_download(repository, repo_type=kind, allow_patterns=patterns, local_files_only=here, tqdm_class=Bar)


def _answers(kind: Kind, repository: str, seconds: float) -> bool:
    """Whether the hub can be asked: `snapshot_download` would wait for ever for one that is silent."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        HfApi().repo_info(repository, repo_type=kind, timeout=seconds)
    except (HfHubHTTPError, HFValidationError):
        return True  # an answer, if not the one that was hoped for
    except Exception:  # no route, offline mode, a proxy in between: all end here, with different types
        return False
    return True


def _say(**what: object) -> None:
    print("\n" + json.dumps(what), flush=True)


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4:])
