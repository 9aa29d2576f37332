"""The measured truth of every head: what it costs, and what it would cost to run each ablation from scratch.

Heads of the demo model, drawn by lot, are taken out one at a time in the order that `ablation` takes them,
by its way and by slicing afresh and running every layer; the two take turns and must agree.

    python -m benchmarks.ablation
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from amp_explore.keeping.store import Store
from amp_explore.measure.perplexity import perplexity
from amp_explore.plan import PruningPlan
from amp_explore.studies.ablation import ablations
from amp_explore.surgery.slicing import slice_model
from amp_explore.texts.assets import cache_root
from amp_explore.texts.calibration import calibration_windows
from amp_explore.workbench import Workbench
from benchmarks import in_turn


def run(*, heads: int = 45, windows: int = 2, dtype: str = "float32", seed: int = 0) -> dict[str, object]:
    """Returns `ablation_speedup`, the seconds of all heads drawn from scratch over those of the map's way, and
    `ablation_minutes`, what the whole map takes at that rate, with `details`."""
    loaded = Workbench().pool.get("demo", dtype=dtype)
    text, every = calibration_windows(loaded.tokenizer, windows=windows), ablations(loaded.shape)
    drawn = sorted(np.random.default_rng(seed).permutation(len(every))[:heads].tolist())
    seconds: dict[str, list[float]] = {"ours": [], "afresh": []}
    with tempfile.TemporaryDirectory(dir=cache_root()) as folder:
        bench = Workbench(Store(Path(folder)))
        bench.perplexity(loaded, PruningPlan.empty(loaded.shape), text)
        for number, which in enumerate(drawn):
            plan = every[which][-1]
            ways = {
                "ours": lambda plan=plan: bench.perplexity(loaded, plan, text),
                "afresh": lambda plan=plan: perplexity(slice_model(loaded, plan), text),
            }
            for name, taken in in_turn(ways, number).items():
                seconds[name].append(taken)
    totals = {name: sum(each) for name, each in seconds.items()}
    return {
        "ablation_speedup": totals["afresh"] / totals["ours"],
        "ablation_minutes": totals["ours"] / len(drawn) * len(every) / 60,
        "details": {
            "heads": len(drawn),
            "of": len(every),
            "seconds": seconds,
            "tokens": text.tokens,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
        },
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
