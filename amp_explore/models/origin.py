"""The files that a model was read from, and whether they are still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from amp_explore.errors import ModelError
from amp_explore.models.files import Stamp, digests, stamp
from amp_explore.models.vetting import small_files
from amp_explore.progress import Progress, no_progress

# What two machines may write differently for the same weights.
_INCIDENTAL_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True)
class Origin:
    """A model folder or a `.gguf` file, as it was when it was read."""

    place: Path
    stamps: Mapping[Path, Stamp]
    digest: str  # names what the files hold: weights, configuration and tokenizer

    @classmethod
    def of(cls, place: Path, progress: Progress = no_progress) -> Origin:
        """As it is now. Raises `ModelError` where a file is none."""
        stamps = _stamps(place)
        named = [(path.name, digest) for path, digest in zip(stamps, digests(stamps, progress), strict=True)]
        return cls(place, stamps, hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16])

    def touched(self) -> bool:
        """Whether a file came, went, or was written since; what it holds is not read. Files that are gone altogether
        leave the model as it is."""
        with suppress(ModelError, OSError):
            return self.place.exists() and _stamps(self.place) != self.stamps
        return True


def _stamps(place: Path) -> dict[Path, Stamp]:
    files = [*small_files(place), *sorted(place.glob("*.safetensors"))] if place.is_dir() else [place]
    return {path: stamp(path) for path in files}


def fingerprint_of(folder: Path, config: Mapping[str, object], progress: Progress = no_progress) -> str:
    """Names the weights in a model folder and their configuration, wherever it lies."""
    kept = {key: value for key, value in config.items() if key not in _INCIDENTAL_CONFIG}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for of_file in digests(sorted(folder.glob("*.safetensors")), progress, "fingerprinting the weights"):
        digest.update(of_file.encode())
    return digest.hexdigest()[:16]
