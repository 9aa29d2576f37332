"""Texts of the hub, here a hub on this machine: downloaded once, verified, and never asked for unasked."""

import io
import json
import socket

import pyarrow as pa
import pyarrow.parquet
import pytest
from fake_hub import FakeHub, at, serving
from made_up import ids_of, tokenizer
from tiny import tiny

from amp_explore import hub
from amp_explore.errors import DataError
from amp_explore.keeping.store import Store
from amp_explore.plan import PruningPlan, Repair
from amp_explore.texts import from_hub
from amp_explore.texts.calibration import calibration_windows, evaluation_windows, fetch_text, needs_network
from amp_explore.workbench import Workbench

PROMPTS = [{"instruction": f"Say {n}", "input": "" if n % 2 else f"loud {n}", "output": "so"} for n in range(200)]
LINES = ["", "a line", "and another"] * 20


def parquet(rows: list[dict]) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


ALPACA = {"alpaca_data_cleaned.json": json.dumps(PROMPTS).encode(), "README.md": b"#"}
WIKITEXT = {"wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet([{"text": line} for line in LINES])}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)


@pytest.fixture
def alpaca(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "hub", FakeHub("yahma/alpaca-cleaned", ALPACA)) as server:
        yield server


@pytest.fixture
def silent(monkeypatch, tmp_path):
    """A hub that takes connections and says nothing; how many it has taken can be asked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        at(monkeypatch, tmp_path / "hub", server.getsockname()[1])
        yield server


def was_asked(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def test_amps_prompts_are_instruction_and_input_without_the_answer(alpaca):
    windows = calibration_windows(tokenizer(), "alpaca", window=100, seed=3)
    texts = {"\n".join(filter(None, (row["instruction"], row["input"]))) for row in PROMPTS}
    assert len(windows.ids) == 50 and windows.data == "alpaca-cleaned, 50 prompts, seed 3"
    assert {tuple(ids.tolist()) for ids in windows.ids} <= {tuple(ids_of(text)) for text in texts}


def test_wikitext_is_joined_by_blank_lines(monkeypatch, tmp_path):
    with serving(monkeypatch, tmp_path / "hub", FakeHub("Salesforce/wikitext", WIKITEXT)):
        windows = evaluation_windows(tokenizer(), "wikitext2", window=50, windows=2)
    assert [ids.tolist() for ids in windows.ids] == [ids_of("\n\n".join(LINES)[i : i + 50]) for i in (0, 50)]


def test_what_was_downloaded_needs_no_hub_and_what_is_damaged_is_downloaded_again(alpaca, monkeypatch, tmp_path):
    assert needs_network("alpaca") and not needs_network("wiki") and not needs_network("alpaca", "own.txt")
    reports = []
    fetch_text("alpaca", lambda *report: reports.append(report))
    size = len(ALPACA["alpaca_data_cleaned.json"])
    assert (size, size, "downloading yahma/alpaca-cleaned") in reports
    first = calibration_windows(tokenizer(), "alpaca", window=100)
    path = from_hub.text("alpaca").folder / "alpaca_data_cleaned.json"
    path.write_bytes(path.read_bytes().replace(b"Say 7", b"Say 8"))
    assert needs_network("alpaca")
    assert calibration_windows(tokenizer(), "alpaca", window=100).digest == first.digest
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        at(monkeypatch, tmp_path / "other", server.getsockname()[1])
        assert calibration_windows(tokenizer(), "alpaca", window=100).digest == first.digest
        assert not was_asked(server)


def test_a_silent_hub_is_given_up(silent):
    with pytest.raises(
        DataError, match="alpaca-cleaned cannot be had: the hub cannot be reached; check the network, or"
    ):
        calibration_windows(tokenizer(), "alpaca")
    assert was_asked(silent)


def test_a_plan_whose_repair_names_a_text_of_the_hub_asks_no_hub_by_itself(silent, tmp_path):
    bench, loaded = Workbench(Store(tmp_path)), tiny("llama")
    plan = PruningPlan.empty(loaded.shape).with_units("heads", 0, [0], True)
    assert not bench.is_ready(loaded, plan.repaired(Repair("bias", "0123456789abcdef", source="alpaca")))
    assert not was_asked(silent)
