"""The client of the hub, in a process of its own: it says how far it is, and ends when it is told to."""

import socket

import pytest
from fake_hub import FakeHub, at, serving

from amp_explore import hub
from amp_explore.progress import Cancelled

FILES = {"config.json": b"{}", "weights.bin": bytes(range(256)) * 4096, "code.py": b"print()"}
WANTED = ["*.json", "*.bin"]
SIZE = len(FILES["config.json"]) + len(FILES["weights.bin"])


def test_the_files_that_match_come_and_their_bytes_are_counted(monkeypatch, tmp_path):
    reports = []
    with serving(monkeypatch, tmp_path, FakeHub("owner/model", FILES)):
        folder = hub.download("owner/model", WANTED, progress=lambda *report: reports.append(report))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "weights.bin")
    }
    came = [report[:2] for report in reports if report[2] == "downloading owner/model"]
    done = [done for done, _ in came]
    assert done == sorted(done) and came[0] == (0, 1) and came[-1] == (SIZE, SIZE)
    assert len(set(done)) > 5, "the client reports too rarely for a slow hub"


def test_a_download_that_stands_still_is_cancelled_at_once_and_its_process_ended(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path, FakeHub("owner/model", FILES, pause_after=2**19)) as slow:

        def cancel(done, total, note):
            # What came is shown while nothing more comes; the total grows until all files are open.
            if slow.paused.is_set() and done >= 2**18 and total == SIZE:
                raise Cancelled

        with pytest.raises(Cancelled):
            hub.download("owner/model", WANTED, progress=cancel)
        assert slow.hung_up.wait(60), "the client goes on"


def test_a_model_that_is_here_is_taken_where_the_hub_is_silent(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)
    with serving(monkeypatch, tmp_path, FakeHub("owner/model", FILES)):
        folder = hub.download("owner/model", WANTED)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        at(monkeypatch, tmp_path, silent.getsockname()[1])
        assert hub.download("owner/model", WANTED) == folder
        with pytest.raises(hub.HubError) as raised:
            hub.download("owner/other", WANTED)
    assert raised.value.problem == "unreachable"


@pytest.mark.parametrize(("repository", "problem"), [("owner/other", "refused"), ("not an id", "no id")])
def test_what_the_hub_does_not_have_is_told(monkeypatch, tmp_path, repository, problem):
    with serving(monkeypatch, tmp_path, FakeHub("owner/model", FILES)), pytest.raises(hub.HubError) as raised:
        hub.download(repository, WANTED)
    assert raised.value.problem == problem and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "weights.bin"])
def test_a_file_that_is_damaged_since_it_came_is_downloaded_again(monkeypatch, tmp_path, caplog, name):
    with serving(monkeypatch, tmp_path, FakeHub("owner/model", FILES)) as server:
        file = hub.download("owner/model", WANTED) / name
        damaged = bytearray(FILES[name])
        damaged[1] ^= 1
        file.resolve().write_bytes(damaged)
        assert (hub.download("owner/model", WANTED) / name).read_bytes() == FILES[name]
        assert f"{name} of owner/model is damaged; downloading it again" in caplog.text
        file.resolve().write_bytes(damaged)
        del server.files[name]
        with pytest.raises(hub.HubError, match=f"{name} was damaged here, and does not come again"):
            hub.download("owner/model", WANTED)
