"""`check`, and the check that runs by itself where libraries are of versions that nobody has tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lines import MEASURE
from tiny import tiny

from amp_explore.measure import identities
from amp_explore.measure.identities import Failure

WRONG = Failure("gpt2", "cached equals full", "plan 1 by lot", 0.4)


@pytest.fixture
def untried(monkeypatch, tmp_path):
    """As if no lock named what is installed."""
    lock = tmp_path / "empty.lock"
    lock.touch()
    monkeypatch.setenv("AMP_EXPLORE_LOCK", str(lock))


def test_a_model_is_checked(good):
    output = good("check --model model --device cpu")
    assert "transformers " in output and "sliced equals masked" in output


def test_without_a_model_one_of_every_family_is_checked(good, monkeypatch):
    monkeypatch.setattr(identities.tiny, "SPECS", {"gpt2": identities.tiny.SPECS["gpt2"]})
    assert "1 tiny models" in good("check")


def test_a_failure_is_the_exit_code(run, monkeypatch):
    monkeypatch.setattr(identities, "check", lambda *_, **__: [WRONG])
    code, output, errors = run("check --model model --device cpu")
    assert code == 1 and "FAILED gpt2: cached equals full" in output
    assert errors.startswith("error: 1 checks failed")


def test_it_runs_by_itself_once_for_each_set_of_versions(run, untried, monkeypatch):
    asked = []
    monkeypatch.setattr(identities, "check_libraries", lambda **_: asked.append(1) or [WRONG])
    for _ in range(2):
        code, _, errors = run(f"{MEASURE} --perplexity --windows 1 --json report.json")
        assert code == 0 and "trust no number of this installation: gpt2: cached equals full" in errors
        assert json.loads(Path("report.json").read_text())["failed_checks"] == [str(WRONG)]
    assert asked == [1]
    monkeypatch.setattr(identities, "versions", lambda: {"transformers": "99"})
    run(f"{MEASURE} --perplexity --windows 1")
    assert asked == [1, 1], "another set of versions has to be tried too"


def test_nothing_is_said_where_all_is_well(good, untried, monkeypatch):
    monkeypatch.setattr(identities, "check_libraries", lambda **_: identities.check(tiny("llama")))
    good(f"{MEASURE} --perplexity --windows 1 --json report.json")
    assert "failed_checks" not in json.loads(Path("report.json").read_text())
