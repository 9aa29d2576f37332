"""Statistics as files: tensors as safetensors, named by their own SHA-256, and a small JSON file named by the key that
points to them.

Both are written aside and renamed, so a killed writer leaves nothing half-made and two processes may share the folder.
A damaged file is never trusted: it is reported, and counts as not there. What the folder does not take stays in memory,
as much as there is room for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors.torch import load, save

from amp_explore import folders
from amp_explore.errors import AmpExploreError, CacheError
from amp_explore.keeping.keys import Key, canonical, key_digest
from amp_explore.keeping.space import Evictable, make_room, unlink
from amp_explore.progress import Progress, no_progress

log = logging.getLogger(__name__)

Layer = TypeVar("Layer")

_WRITE_SECONDS = 60  # until a folder whose lock another process holds counts as one that cannot be written
_AGAIN_SECONDS = 0.05  # the next time
_IN_MEMORY = 2**30  # bytes of what the folder does not take


class TensorFiles:
    """The folder `statistics` of the cache folder `root`; for threads and processes, all at the same time."""

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / "statistics"
        self._lock = FileLock(root / "statistics.lock")  # of who writes or evicts
        self._memory = _Memory()
        self._obstacle, self._tidy = "", False  # why nothing can be kept; whether killed writers were cleared up after

    def find(self, key: Key, kind: type[Layer]) -> tuple[Layer, ...] | None:
        """What stands under a key, one `kind` (a dataclass of tensors) for each layer; None if nothing sound does."""
        pointer = self._pointer(key)
        if (found := self._memory.get(pointer)) is not None:
            return found
        try:
            document = json.loads(_read(pointer))
            data = _read(self._folder / _data_name(document))
            if document["key"] != key or hashlib.sha256(data).hexdigest() != document["sha256"]:
                raise ValueError("content does not match its name")
            tensors, names = load(data), [field.name for field in fields(kind)]
            layers = range(len(tensors) // len(names))
            found = tuple(kind(**{name: tensors[f"{name}.{number}"] for name in names}) for number in layers)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # whatever is wrong with it, the remedy is the same
            log.warning("cached statistics %s are damaged (%s); computing them again", pointer.name, error)
            return None
        folders.mark_used(pointer, self._root)
        return found

    def has(self, key: Key) -> bool:
        """Whether something stands under a key; it may still turn out to be damaged."""
        pointer = self._pointer(key)
        return os.path.isfile(pointer) or self._memory.get(pointer) is not None

    def hold(self, key: Key) -> folders.Hold | None:
        """What stands under a key, and whatever differs from it in the layer alone, is evicted by no process as long
        as the result is there; None where nothing does."""
        try:
            return folders.Hold(self._pointer(key))
        except OSError:
            return None

    def put(self, items: Sequence[tuple[Key, Sequence[Any]]], progress: Progress = no_progress) -> None:
        """Keep one dataclass of tensors for each layer under each of these keys, which differ in the layer alone: all
        or, where the folder does not take them or `progress` cancels, none."""
        pointers = [self._pointer(key) for key, _ in items]
        with ExitStack() as holds:
            try:
                for number, (pointer, (key, layers)) in enumerate(zip(pointers, items, strict=True)):
                    progress(number, len(items), "keeping")
                    self._write(pointer, key, layers)
                    # No room is made for the next at the cost of this one.
                    holds.enter_context(self.hold(key) or nullcontext())
            except BaseException as error:
                if isinstance(error, CacheError):
                    self._note(str(error))
                with suppress(CacheError), self._writing():
                    self._remove(pointers, self._named())
                    self._remove_unnamed()
                if not isinstance(error, CacheError):
                    raise
                self._memory.put({pointer: tuple(layers) for pointer, (_, layers) in zip(pointers, items, strict=True)})
            else:
                self._obstacle = ""

    def require_room(self, needed: int, what: str) -> None:
        """Make room for `needed` bytes.

        Raises:
            CacheError: the folder cannot be written at all.
            AmpExploreError: the limit of the cache, or its disk, has no room for `what`.
        """
        with self._writing():
            if not make_room(self._root, needed, self._evictables):
                raise AmpExploreError(
                    f"{what} take {needed / 1e9:.1f} GB, more than is left of the cache's limit: set "
                    "AMP_EXPLORE_CACHE_GB higher"
                )
            folders.require_space(self._folder, needed)

    def _write(self, pointer: Path, key: Key, layers: Sequence[Any]) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for number, layer in enumerate(layers):
            tensors |= {f"{name}.{number}": value.contiguous() for name, value in vars(layer).items()}
        data = save(tensors)
        document = {"key": key, "sha256": hashlib.sha256(data).hexdigest(), "created": time.time()}
        with self._writing():
            if not make_room(self._root, len(data), self._evictables):
                raise CacheError(f"{self._root} is at its limit: set AMP_EXPLORE_CACHE_GB higher")
            _replace(self._folder / _data_name(document), data)
            _replace(pointer, json.dumps(document, indent=1).encode())
            folders.mark_used(pointer, self._root)

    def _note(self, obstacle: str) -> None:
        """Say why nothing can be kept, once."""
        if not self._obstacle:
            log.warning("%s (new statistics stay in memory meanwhile)", obstacle)
        self._obstacle = obstacle

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """While this lasts, the folder is there, and nobody else writes to it or evicts. Raises `CacheError`."""
        with folders.turn(self._lock, _AGAIN_SECONDS if self._obstacle else _WRITE_SECONDS):
            try:
                self._folder.mkdir(exist_ok=True)
                if not self._tidy:
                    folders.remove_abandoned(self._folder)
                    self._tidy = True
                yield
            except OSError as error:
                raise CacheError(folders.advice(error, self._folder)) from error

    # Eviction

    def _evictables(self) -> Iterator[Evictable]:
        """What no pointer names goes first; what stands under keys that differ in the layer alone is used together, and
        goes together."""
        sets, named = defaultdict(list), self._named()
        for pointer in self._folder.glob("*.json"):
            sets[_pointed(pointer)[0]].append(pointer)
        yield Evictable("what nothing points to", 0, self._remove_unnamed)
        for name, pointers in sets.items():
            used = max(pointer.lstat().st_mtime_ns for pointer in pointers)
            yield Evictable(name, used, partial(self._evict, pointers, named))

    def _evict(self, pointers: Sequence[Path], named: Counter[str]) -> int:
        """Remove what all of these point to, unless somebody holds one; returns the bytes that this freed."""
        with ExitStack() as holds:
            for pointer in filter(Path.is_file, pointers):
                try:
                    hold = folders.Hold.alone(pointer)
                except OSError:  # somebody else's
                    return 0
                if hold is None:
                    return 0
                holds.enter_context(hold)
            return self._remove(pointers, named)

    def _remove(self, pointers: Sequence[Path], named: Counter[str]) -> int:
        """Remove pointers, and the files that no other one names; returns the bytes that this freed."""
        freed = 0
        for pointer in pointers:
            _, data = _pointed(pointer)
            freed += unlink(pointer)
            named[data] -= 1
            if data and named[data] < 1:
                freed += unlink(self._folder / data)
        return freed

    def _remove_unnamed(self) -> int:
        """Remove the files that no pointer names; returns the bytes that this freed."""
        named = self._named()
        return sum(unlink(data) for data in self._folder.glob("*.safetensors") if data.name not in named)

    def _named(self) -> Counter[str]:
        """How many pointers name each file."""
        return Counter(_pointed(pointer)[1] for pointer in self._folder.glob("*.json"))

    def _pointer(self, key: Key) -> Path:
        return self._folder / f"{key_digest(key)}.json"


class _Memory:
    """What the folder does not take, the longest unused of which goes first."""

    def __init__(self) -> None:
        self._items: OrderedDict[Path, tuple] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pointer: Path) -> tuple | None:
        with self._lock:
            if pointer in self._items:
                self._items.move_to_end(pointer)
            return self._items.get(pointer)

    def put(self, items: Mapping[Path, tuple]) -> None:
        """Keep all of these, or none where there is no room for all."""
        with self._lock:
            if sum(map(_bytes, items.values())) <= _IN_MEMORY:
                self._items |= items
                while sum(map(_bytes, self._items.values())) > _IN_MEMORY:
                    self._items.popitem(last=False)


def _bytes(layers: Sequence[Any]) -> int:
    return sum(value.nbytes for layer in layers for value in vars(layer).values())


def _data_name(document: dict[str, Any]) -> str:
    """The file that a pointer names."""
    if not re.fullmatch("[0-9a-f]{64}", document["sha256"]):
        raise ValueError("no file is named so")
    return f"{document['sha256']}.safetensors"


def _pointed(pointer: Path) -> tuple[str, str | None]:
    """(what the keys of its set have in common, the file that it names) of a pointer; a damaged one is alone."""
    try:
        document = json.loads(_read(pointer))
        common = {name: value for name, value in document["key"].items() if name != "layer"}
        return canonical(common), _data_name(document)
    except Exception:  # anything can be in a damaged file
        return pointer.name, None


def _read(path: Path) -> bytes:
    """Raises `FileNotFoundError`, or `ValueError` for what is no file, which might never end."""
    if os.path.lexists(path) and not path.is_file():
        raise ValueError(f"{path.name} is no file")
    return path.read_bytes()


def _replace(path: Path, data: bytes) -> None:
    if not path.is_file():
        folders.clear_away(path)
    folders.write_atomically(path, data)
