"""A process that was started ends with its starter, even one that is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from amp_explore.processes import PythonModule

ROOT = Path(__file__).resolve().parents[1]
# Says that it runs, and what its standard input holds, then waits for ever.
CHILD = "import sys, time; print(repr(sys.stdin.read()), sys.argv[1:], flush=True); time.sleep(10**6)"
STARTER = """
import sys, time
from amp_explore.processes import PythonModule
child = PythonModule("child", "one argument", cwd=sys.argv[1])
time.sleep(10**6)
"""


def test_a_child_outlives_no_starter_that_was_killed(tmp_path):
    (tmp_path / "child.py").write_text(CHILD)
    starter = subprocess.Popen([sys.executable, "-c", STARTER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert starter.stdout.readline() == "'' ['one argument']\n"
    starter.kill()
    assert starter.communicate(timeout=60) == ("", None)  # the child holds the same pipe: at its end, both are gone


def test_a_module_runs_as_python_runs_it_and_may_be_talked_to(tmp_path):
    (tmp_path / "child.py").write_text("print(__name__, __file__); raise SystemExit(3)")
    with PythonModule("child", cwd=tmp_path, stdout=subprocess.PIPE, text=True) as child:
        said, _ = child.communicate(timeout=60)
    assert (said, child.returncode) == (f"__main__ {tmp_path / 'child.py'}\n", 3)
