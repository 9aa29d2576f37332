"""What was computed once is kept: statistics as safetensors, measurements and plans in SQLite.

A cached answer stands under a key that names everything it depends on. Statistics lie in a file named by its own
SHA-256, and a small JSON file named by the key points to it; both are written aside and renamed, so a killed writer
leaves nothing half-made and two processes may share the folder. A damaged file is never trusted: it is reported and
computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from safetensors.torch import load, save

from amp_explore.errors import PlanError
from amp_explore.models.shapes import ModelShape
from amp_explore.observe.statistics import LayerStatistics
from amp_explore.plan import PruningPlan

log = logging.getLogger(__name__)

Key = dict[str, Any]
Layer = TypeVar("Layer")

UNUSED_DAYS = 30
"""After so many days without use statistics are deleted; Gram matrices of a large model are gigabytes."""

_DAY = 86400  # seconds

_SCHEMA = """
CREATE TABLE IF NOT EXISTS measurements (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, model TEXT NOT NULL, plan TEXT NOT NULL,
    setup TEXT NOT NULL, result TEXT NOT NULL, sha256 TEXT NOT NULL, created REAL NOT NULL);
CREATE INDEX IF NOT EXISTS measurements_of_plan ON measurements (model, plan, kind);
CREATE TABLE IF NOT EXISTS plans (
    digest TEXT PRIMARY KEY, model TEXT NOT NULL, document TEXT NOT NULL, created REAL NOT NULL);
"""


class Store:
    """The cache folder `root`: safe for threads of this process, and for other processes, at the same time."""

    def __init__(self, root: Path) -> None:
        self._statistics = root / "statistics"
        self._statistics.mkdir(parents=True, exist_ok=True)
        self._database = root / "runs.sqlite"
        self._lock = threading.Lock()
        self._execute("SELECT 1")

    # Statistics

    def statistics(
        self, key: Key, compute: Callable[[], tuple[Layer, ...]], kind: type[Layer] = LayerStatistics
    ) -> tuple[Layer, ...]:
        """The statistics under this key, computed if they are not there or damaged.

        `kind` is a dataclass of tensors, one of which stands for each layer.
        """
        if (found := self.find_statistics(key, kind)) is not None:
            return found
        fresh = compute()
        self.put_statistics(key, fresh)
        return fresh

    def find_statistics(self, key: Key, kind: type[Layer] = LayerStatistics) -> tuple[Layer, ...] | None:
        """The statistics under this key, or None."""
        pointer = self._statistics / f"{key_digest(key)}.json"
        try:
            document = json.loads(pointer.read_text())
            data = (self._statistics / f"{document['sha256']}.safetensors").read_bytes()
            if document["key"] != key or hashlib.sha256(data).hexdigest() != document["sha256"]:
                raise ValueError("content does not match its name")
            tensors, names = load(data), [field.name for field in fields(kind)]
            layers = range(len(tensors) // len(names))
            with contextlib.suppress(OSError):  # a cache that may only be read
                os.utime(pointer)  # in use: see `_forget`
            return tuple(kind(**{name: tensors[f"{name}.{number}"] for name in names}) for number in layers)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever is wrong with it, the remedy is the same
            log.warning("cached statistics %s are damaged (%s); computing them again", pointer.name, error)
            return None

    def has_statistics(self, key: Key) -> bool:
        """Whether something stands under this key; it may still turn out to be damaged."""
        return (self._statistics / f"{key_digest(key)}.json").exists()

    def put_statistics(self, key: Key, layers: tuple) -> None:
        """Keep the statistics of all layers under a key."""
        tensors: dict[str, torch.Tensor] = {}
        for number, layer in enumerate(layers):
            tensors |= {f"{name}.{number}": value.contiguous() for name, value in vars(layer).items()}
        data = save(tensors)
        digest = hashlib.sha256(data).hexdigest()
        write_atomically(self._statistics / f"{digest}.safetensors", data)
        document = {"key": key, "sha256": digest, "created": time.time()}
        write_atomically(self._statistics / f"{key_digest(key)}.json", json.dumps(document, indent=1).encode())
        self._forget()

    def _forget(self) -> None:
        """Delete statistics that were not used for long, and what killed writers left; once a day, for it reads every
        pointer."""
        now, stamp = time.time(), self._statistics / "last-forgotten"  # whose age tells when this was last done
        with contextlib.suppress(FileNotFoundError):
            if stamp.stat().st_mtime > now - _DAY:
                return
        stamp.touch()
        named = set()
        for path in self._statistics.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or deleted meanwhile
                if path.stat().st_mtime < now - UNUSED_DAYS * _DAY:
                    path.unlink()
                else:
                    named.add(f"{json.loads(path.read_text())['sha256']}.safetensors")
        for path in self._statistics.iterdir():
            with contextlib.suppress(OSError):
                if path.suffix != ".json" and path.name not in named and path.stat().st_mtime < now - _DAY:
                    path.unlink()

    # Measurements

    def measurement(self, kind: str, model: str, plan: str, setup: Key, compute: Callable[[], Any]) -> Any:
        """The result (plain data) of measuring `kind` under this setup, measured if it was not yet.

        `model` is a fingerprint, `plan` a plan's digest, `setup` everything else the result depends on.
        """
        if (found := self.find_measurement(kind, model, plan, setup)) is not None:
            return found
        result = compute()
        self.put_measurement(kind, model, plan, setup, result)
        return result

    def find_measurement(self, kind: str, model: str, plan: str, setup: Key) -> Any | None:
        """The kept result, or None."""
        key = _measurement_key(kind, model, plan, setup)
        rows = self._execute("SELECT result, sha256 FROM measurements WHERE key = ?", (key,))
        return _checked(*rows[0]) if rows else None

    def put_measurement(self, kind: str, model: str, plan: str, setup: Key, result: Any) -> None:
        """Keep a result, in place of an earlier one under the same setup."""
        key = _measurement_key(kind, model, plan, setup)
        text = json.dumps(result)
        row = (key, kind, model, plan, _canonical(setup), text, _sha256(text), time.time())
        self._execute("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def measurements(self, kind: str, model: str, plan: str) -> list[Any]:
        """All kept results of this kind for a plan, newest first."""
        query = "SELECT result, sha256 FROM measurements WHERE kind = ? AND model = ? AND plan = ?"
        rows = self._execute(f"{query} ORDER BY created DESC", (kind, model, plan))
        return [result for row in rows if (result := _checked(*row)) is not None]

    def measurements_under(self, kind: str, model: str, setup: Key) -> dict[str, Any]:
        """All kept results of this kind under one setup, by their plan's digest."""
        query = "SELECT plan, result, sha256 FROM measurements WHERE model = ? AND kind = ? AND setup = ?"
        rows = self._execute(query, (model, kind, _canonical(setup)))
        return {plan: result for plan, *row in rows if (result := _checked(*row)) is not None}

    # Plans

    def put_plan(self, plan: PruningPlan) -> str:
        """Keep a plan under its digest, which is returned."""
        row = (plan.digest, plan.shape.fingerprint, plan.to_json(), time.time())
        self._execute("INSERT OR REPLACE INTO plans VALUES (?, ?, ?, ?)", row)
        return plan.digest

    def plan(self, digest: str, shape: ModelShape) -> PruningPlan:
        """The kept plan of this digest. Raises `PlanError`."""
        rows = self._execute("SELECT document FROM plans WHERE digest = ?", (digest,))
        if not rows:
            raise PlanError("the plan in this link is not kept on this server; ask for it as a file")
        return PruningPlan.from_json(rows[0][0], shape)

    def _execute(self, statement: str, values: tuple = ()) -> list[tuple]:
        """The rows of one statement, run as a transaction of its own. A damaged database is moved aside first."""
        with self._lock:
            try:
                return self._attempt(statement, values)
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extension that says where
                if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                self._move_aside(error)
                return self._attempt(statement, values)

    def _attempt(self, statement: str, values: tuple) -> list[tuple]:
        if not self._database.exists():
            self._create()
        with closing(sqlite3.connect(self._database, timeout=30)) as database, database:
            database.executescript(_SCHEMA)
            return database.execute(statement, values).fetchall()

    def _create(self) -> None:
        """Make the database aside: SQLite fails at once, timeout or not, where two processes turn WAL on together."""
        with FileLock(self._database.with_suffix(".lock")):
            if self._database.exists():
                return
            unfinished = self._database.with_suffix(".unfinished")
            unfinished.unlink(missing_ok=True)
            with closing(sqlite3.connect(unfinished)) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.executescript(_SCHEMA)
            unfinished.rename(self._database)

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self._database.with_suffix(f".damaged-{time.time_ns()}")
        log.warning("%s is damaged (%s); moved to %s, starting afresh", self._database, error, aside.name)
        self._database.rename(aside)
        for suffix in ("-wal", "-shm"):
            Path(f"{self._database}{suffix}").unlink(missing_ok=True)


def key_digest(key: Key) -> str:
    """A file name for a key."""
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:32]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all. What is no file, such as a pipe, is written to as it is."""
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    path = path.resolve()  # a link stays one: /dev/stdout, sent to a file, is not replaced
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # the name that was asked for
        raise


def _checked(text: str, sha256: str) -> Any | None:
    """A kept result, or None where it is no longer what was written."""
    if _sha256(text) != sha256:
        log.warning("a kept measurement is damaged; measuring it again")
        return None
    return json.loads(text)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _measurement_key(kind: str, model: str, plan: str, setup: Key) -> str:
    return key_digest({"kind": kind, "model": model, "plan": plan, "setup": setup})


def _canonical(key: Key) -> str:
    return json.dumps(key, sort_keys=True)
