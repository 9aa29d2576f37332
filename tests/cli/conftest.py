"""What tests of the command line share: a folder with inputs to run in, and commands run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from lines import TEXT
from made_up import save_tiny

from amp_explore import cli


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with everything that commands need; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(autouse=True)
def place(request, tmp_path, monkeypatch, saved) -> Path:
    """Each test runs in a folder of its own, with `model` and `text.txt` in it. Demo tests have the real cache, others
    an empty one."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "text.txt"):
        (tmp_path / name).symlink_to(saved / name)
    if not request.node.get_closest_marker("demo"):
        monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def run(capsys):
    """run("score --model model ...") -> (exit code, standard output, standard error)."""

    def command(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(line.split())
        except SystemExit as end:  # argparse ends the process for --help and for wrong options
            code = end.code
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def good(run):
    """As `run`, for commands that must succeed without a word on standard error; gives standard output."""

    def command(line: str) -> str:
        code, output, errors = run(line)
        assert (code, errors) == (0, "")
        return output

    return command
