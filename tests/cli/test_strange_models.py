"""Models that cannot be measured: every command that runs one says why, and writes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lines import MEASURE, PLAN, SCORE
from safetensors.torch import load_file, save_file

RUNS = [
    f"{SCORE} --out x",
    f"{SCORE} --criterion taylor --out x",
    f"{PLAN} --ratio 0.2 --criterion obs --out x",
    f"{PLAN} --ratio 0.2 --order random --allocation search --generations 1 --out x",
    f"{PLAN} --ratio 0.2 --order random --allocation blocks --out x",
    f"{MEASURE} --perplexity --json x",
    "ablate --model model --device cpu --text text.txt --window 16 --windows 2 --out x",
    "compare --model model --device cpu --ratios 0.1 --text text.txt --window 16 --evaluation-text text.txt --out x",
]


@pytest.fixture
def own_model(place, saved) -> Path:
    """A copy of the model that a test may change."""
    Path("model").unlink()
    return Path(shutil.copytree(saved / "model", "model"))


def make_overflow(model: Path, value: float) -> None:
    """Have layer 2 write numbers as large as this."""
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.2.mlp.down_proj.weight"
    tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("line", RUNS)
def test_what_is_no_number_is_said_with_its_layer(run, own_model, line):
    make_overflow(own_model, 3e38)
    code, output, errors = run(line)
    assert (code, output) == (1, "") and errors.startswith("error: layer 2 gives NaN or infinity in float32: the weigh")
    assert not Path("x").exists()


def test_float16_that_overflows_is_told_to_take_more(run, own_model):
    make_overflow(own_model, 6e4)
    measure = f"{MEASURE} --perplexity --windows 2"
    code, _, errors = run(f"{measure} --dtype float16")
    assert code == 1 and "layer 2 gives NaN or infinity in float16: take float32 or bfloat16" in errors
    assert run(measure)[0] == 0


@pytest.mark.parametrize("line", RUNS)
def test_windows_longer_than_the_models_context_are_refused(run, own_model, line):
    path = own_model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 8}))
    code, output, errors = run(line)
    assert (code, output) == (1, "") and "windows of 16 tokens do not fit the model's context of 8" in errors
    assert not Path("x").exists()
