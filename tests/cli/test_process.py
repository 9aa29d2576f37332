"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lines import SCORE

ROOT = Path(__file__).resolve().parents[2]


def process(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "amp_explore", *line.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_process_says_nothing_but_its_result():
    done = process(f"{SCORE} --out scores.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and Path("scores.safetensors").exists()


def test_a_process_that_fails_says_nothing_but_its_error():
    done = process(f"{SCORE} --window 5000 --out scores.safetensors")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not Path("scores.safetensors").exists()
