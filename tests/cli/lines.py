"""Command lines that tests begin with, and what they are about: a tiny model and a text of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from made_up import ids_of, made_up_text
from tiny import tiny

from amp_explore.plan import PruningPlan
from amp_explore.texts.calibration import TokenWindows

TEXT = made_up_text(1003)
SCORE = "score --model model --device cpu --text text.txt --window 16 --windows 4"
PLAN = "plan --model model --device cpu --text text.txt --window 16 --windows 4"
MEASURE = "measure --model model --device cpu --dtype float32 --text text.txt --window 16"


def windows(count: int | None) -> TokenWindows:
    """The windows that TEXT has to be cut into."""
    ids = torch.tensor(ids_of(TEXT[: 16 * (count or len(TEXT) // 16)])).view(-1, 16)
    return TokenWindows(tuple(ids), "text.txt", False)


def load_plan(name: str) -> PruningPlan:
    """A plan file, fitted to the model in memory, which has another fingerprint than the folder."""
    document = json.loads(Path(name).read_text())
    document["model"]["fingerprint"] = None
    return PruningPlan.from_json(json.dumps(document), tiny("llama").shape)


def report_of(good, line: str) -> dict:
    good(f"{line} --json report.json")
    return json.loads(Path("report.json").read_text())
