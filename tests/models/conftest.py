"""Folders of tiny models, to be spoilt."""

import shutil
from pathlib import Path

import pytest
from made_up import save_tiny


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Path:
    """A tiny Llama as people have it on disk; copy it before changing it."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def folder(saved, tmp_path, monkeypatch) -> Path:
    """A copy of it, to be changed at will, and a cache of its own."""
    monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(saved, tmp_path / "model")
