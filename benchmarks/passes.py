"""What one pass for all forward-only criteria costs, beside a plain forward of the model over the same windows.

The three take turns in one process, and every ratio is that of one round.

    python -m benchmarks.passes
"""

from __future__ import annotations

import json
import statistics
import time

import torch

from amp_explore.models.loading import load
from amp_explore.observe.statistics import collect, collect_with_grams
from amp_explore.texts.calibration import calibration_windows

BATCH = 2  # windows at a time of the plain forward: as many tokens as a pass takes


@torch.inference_mode()
def run(*, windows: int = 16, repeats: int = 3, model: str = "demo", dtype: str = "float32") -> dict[str, object]:
    """Measure `repeats` rounds.

    Returns:
        `statistics_cost` and `statistics_cost_with_grams`, medians of the rounds' ratios to the plain forward, and
        `details`: the seconds of every round and what they were measured on.
    """
    loaded = load(model, dtype=dtype)
    text = calibration_windows(loaded.tokenizer, windows=windows)
    ids = torch.stack(text.ids).to(loaded.device)
    ways = {
        "forward": lambda: [loaded.model(part, use_cache=False) for part in ids.split(BATCH)],
        "statistics": lambda: collect(loaded, text),
        "with_grams": lambda: collect_with_grams(loaded, text),
    }
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:  # the first round warms up
                rounds[name].append(time.perf_counter() - start)
    ratios = {
        name: [taken / plain for taken, plain in zip(rounds[name], rounds["forward"], strict=True)]
        for name in ("statistics", "with_grams")
    }
    return {
        "statistics_cost": statistics.median(ratios["statistics"]),
        "statistics_cost_with_grams": statistics.median(ratios["with_grams"]),
        "details": {
            "seconds": rounds,
            "ratios": ratios,
            "text": text.describe(),
            "model": loaded.describe(),
            "threads": torch.get_num_threads(),
        },
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
