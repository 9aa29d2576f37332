"""What goes wrong is told in one line that says what to do, with exit code 1; for a wrong option 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from lines import MEASURE, PLAN, SCORE
from safetensors.torch import save_file
from tiny import tiny

from amp_explore.plan import PruningPlan


@pytest.fixture
def bad_files(place):
    """Files that are not what a command wants."""
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"caf\xe9" * 999)
    Path("broken.json").write_text("{")
    shape = tiny("qwen3").shape
    Path("other.json").write_text(PruningPlan.empty(shape).to_json())
    Path("narrow.json").write_text(PruningPlan.empty(shape).to_json().replace("[40, 40, 40, 40]", "[40, 40, 41, 40]"))
    save_file({"heads": torch.zeros(4, 6), "neurons": torch.zeros(4, 41)}, "wide.safetensors")
    Path("bloom").mkdir()
    Path("bloom/config.json").write_text('{"model_type": "bloom"}')
    Path("bloom/model.safetensors").touch()
    Path("pickled").mkdir()
    Path("pickled/config.json").write_text('{"model_type": "llama"}')
    Path("pickled/pytorch_model.bin").touch()
    Path("nonsense.gguf").write_bytes(b"nonsense" * 9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("score --model ./none --out x", "there is no such folder"),
        ("score --model bloom --out x", "'bloom' is not supported; use a model of one of"),
        ("score --model pickled --out x", "only pickled weights"),
        ("score --model nonsense.gguf --out x", "is not a GGUF file"),
        ("score --model demo --out x", "run `python -m amp_explore fetch`"),
        ("score --model model --device none --out x", "device 'none' is not usable here"),
        ("score --model model --out x", "run `python -m amp_explore fetch`"),
        (f"{SCORE} --text none.txt --out x", "cannot read the text none.txt"),
        (f"{SCORE} --text empty.txt --out x", "0 tokens, fewer than one window"),
        (f"{SCORE} --text latin.txt --out x", "not UTF-8"),
        (f"{SCORE} --window 2000 --out x", "use a longer text or shorter windows"),
        (f"{SCORE} --window 1 --out x", "window must be at least 2"),
        (f"{SCORE} --windows 0 --out x", "windows must be at least 1"),
        (f"{SCORE} --criterion magic --out x", "'magic' is not known; use one of amp"),
        (f"{SCORE} --out none/x.safetensors", "none/x.safetensors: No such file or directory"),
        (f"{SCORE} --out bloom", "bloom: Is a directory"),
        (f"{PLAN} --out x", "say how much goes by one of --ratio"),
        (f"{PLAN} --ratio 0.2 --heads-ratio 0.2 --out x", "say how much goes by one of --ratio"),
        (f"{PLAN} --ratio 2 --out x", "ratio must be between 0 and 1, not 2"),
        (f"{PLAN} --ratio nan --out x", "ratio must be between 0 and 1, not nan"),
        (f"{PLAN} --ratio -0.1 --out x", "ratio must be between 0 and 1, not -0.1"),
        (f"{PLAN} --ratio 0.99 --out x", "at most"),
        (f"{PLAN} --layers-worth -1 --out x", "must be between 0 and 1"),
        (f"{PLAN} --parameters 1e12 --out x", "1,000,000,000,000 cannot be left"),
        (f"{PLAN} --flops 0.99 --out x", "of the FLOPs are in heads and neurons that may go"),
        (f"{PLAN} --ratio 0.1 --whole-groups --multiple-of 8 --out x", "do not go together"),
        (f"{PLAN} --heads-ratio 1.5 --out x", "heads ratio must be between 0 and 1"),
        (f"{PLAN} --neurons-ratio 0.1,0.2 --out x", "2 neurons ratios for 4 layers"),
        (f"{PLAN} --ratio 0.2 --scores none.safetensors --out x", "none.safetensors: cannot be read as scores"),
        (f"{PLAN} --ratio 0.2 --scores text.txt --out x", "text.txt: cannot be read as scores"),
        (f"{PLAN} --ratio 0.2 --scores wide.safetensors --out x", "the neurons do not fit this model"),
        (f"{MEASURE} --plan none.json", "cannot read the plan none.json"),
        (f"{MEASURE} --plan broken.json", "broken.json: not a plan"),
        (f"{MEASURE} --plan other.json", "made for other weights"),
        (f"{MEASURE} --plan narrow.json", "layer 2 has 40 neurons, the plan says 41"),
        (f"{MEASURE} --perplexity --text none.txt", "cannot read the text none.txt"),
        (f"{MEASURE} --perplexity --windows 0", "windows must be at least 1, not 0"),
        (f"{MEASURE} --perplexity --bos always --window 0", "window must be at least 2"),
        (f"{MEASURE} --tasks trivia", "unknown task 'trivia'; choose from piqa"),
        (f"{MEASURE} --tasks piqa --limit 0", "give at least 1"),
        (f"{MEASURE} --tasks piqa", "run `python -m amp_explore fetch`"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_no_file(run, bad_files, line, message):
    before = set(os.listdir())
    code, output, errors = run(line)
    assert (code, output) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert set(os.listdir()) - before <= {"cache"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "command"),
        ("prune", "invalid choice: 'prune'"),
        ("score --out x", "--model"),
        ("score --model model", "--out"),
        ("plan --model model --ratio much --out x", "--ratio"),
        ("plan --model model --heads-ratio 0.1,much --out x", "--heads-ratio"),
        ("plan --model model --ratio 0.1 --order sideways --out x", "--order"),
        ("measure --model model --dtype int4", "--dtype"),
        ("measure --model model --bos sometimes", "--bos"),
        ("measure --model model --unheard-of", "--unheard-of"),
        ("run --port web", "--port"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(run, line, message):
    code, output, errors = run(line)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors and "--help" in errors and "_" not in errors.replace("amp_explore", "")


def test_an_unknown_criterion_is_refused_before_the_work(run, place):
    run(f"{SCORE} --criterion magic --out x")
    assert not list((place / "cache" / "statistics").glob("*"))


@pytest.mark.parametrize("command", ["", "fetch", "score", "plan", "measure", "run"])
def test_help_describes_every_option(run, command):
    code, output, errors = run(f"{command} --help")
    assert (code, errors) == (0, "")
    if command:
        assert command in output
    else:
        assert all(name in output for name in ("fetch", "score", "plan", "measure", "run"))
