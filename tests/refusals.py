"""What tests of refused models share: how a folder is spoilt, and what a refusal must be like."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from amp_explore.errors import ModelError
from amp_explore.models.loading import load

CPU = {"device": "cpu", "dtype": "float32"}
DEVICES = ["auto", "cpu", "balanced", {"": "cpu"}]


def refused(source, match: str, **options) -> str:
    """Assert that a model is refused with such a message, in one line that is not too long; returns the message."""
    with pytest.raises(ModelError, match=match) as raised:
        load(str(source), **CPU | options)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 500
    return message


def edit_json(path: Path, **changes) -> None:
    """Replace entries of a JSON file; those of ... are left out."""
    described = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in described.items() if value is not ...}))


def edit_weights(folder: Path, **changes) -> None:
    """Replace tensors; those of None are left out."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, {"format": "pt"})


def edit_tokenizer(folder: Path, edit: Callable[[Tokenizer], object]) -> None:
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    edit(core)
    core.save(str(folder / "tokenizer.json"))
