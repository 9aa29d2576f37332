"""A hub on this machine: as much of the Hugging Face hub's HTTP as its client asks for, as slow as a test wants."""

from __future__ import annotations

import hashlib
import http.server
import json
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(http.server.ThreadingHTTPServer):
    """Serves one repository. What is larger than `pause_after` bytes stops there until `go_on` is set."""

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes], *, pause_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.files, self.pause_after = repository, files, pause_after
        self.paused, self.go_on, self.hung_up = threading.Event(), threading.Event(), threading.Event()

    def handle_error(self, request, client_address) -> None:
        """A client that is ended closes its connections at any moment."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if f"/api/models/{self.server.repository}" in path or f"/api/datasets/{self.server.repository}" in path:
            self._send(json.dumps(self._tree() if "/tree/" in path else self._info()).encode())
        elif (name := path.rpartition(f"/resolve/{COMMIT}/")[2]) in self.server.files:
            self._send_file(self.server.files[name])
        else:
            self._send(b"", status=404, headers={"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def _info(self) -> dict:
        return {
            "id": self.server.repository,
            "sha": COMMIT,
            "siblings": [{"rfilename": name} for name in self.server.files],
        }

    def _tree(self) -> list[dict]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _named(data)}
            for name, data in self.server.files.items()
        ]

    def _send_file(self, data: bytes) -> None:
        self._send(data, headers={"ETag": f'"{_named(data)}"', "X-Repo-Commit": COMMIT})

    def _send(self, data: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": len(data)} | (headers or {})
        ).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        pause = self.server.pause_after
        if pause is not None and len(data) > pause:
            self.wfile.write(data[:pause])
            self.wfile.flush()
            self.server.paused.set()
            while not self.server.go_on.is_set():
                if select.select([self.connection], [], [], 0.05)[0]:  # the client hung up: it has nothing to say now
                    self.server.hung_up.set()
                    return
            data = data[pause:]
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


def _named(data: bytes) -> str:
    """What the hub calls a file: a small one as git does, a large one by its SHA-256."""
    if len(data) > 100_000:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path, hub: FakeHub) -> Iterator[FakeHub]:
    """The client asks this hub, and keeps what it gets in `cache`."""
    at(monkeypatch, cache, hub.server_address[1])
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        hub.shutdown()
        hub.server_close()


def at(monkeypatch: pytest.MonkeyPatch, cache: Path, port: int) -> None:
    """The client asks this port of this machine."""
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
