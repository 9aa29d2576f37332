"""From a toggled head to its perplexity: the dashboard's way beside slicing afresh and running the whole model.

Every edit toggles one head, drawn by lot, of the demo model pruned by 20 %. The dashboard's way is
`Workbench.perplexity`, with its kept layers and hidden states, and with keeping the result in the cache; the other way
slices all pruned layers and runs every layer. The two take turns, in swapped order every other time, and must agree.

    python -m benchmarks.toggle
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from amp_explore.budgets.allocation import allocate, rank
from amp_explore.keeping.store import Store
from amp_explore.measure.perplexity import perplexity
from amp_explore.surgery.slicing import slice_model
from amp_explore.texts.assets import cache_root
from amp_explore.texts.calibration import calibration_windows, evaluation_windows
from amp_explore.workbench import LIVE_WINDOWS, Workbench
from benchmarks import in_turn

RATIO = 0.2


def run(*, edits: int = 30, windows: tuple[int, ...] = (1, 4), seed: int = 0) -> dict[str, object]:
    """Measure `edits` edits for each precision and each number of live windows.

    Returns:
        `toggle_speedup` and `toggle_speedup_upper_third` (the medians over all edits, and over those in the upper third
        of the layers) and `toggle_seconds` (the median of the dashboard's way), all three for the dashboard's own
        number of windows in bfloat16, and `details` of every combination.
    """
    details = {}
    for dtype in ("bfloat16", "float32"):
        for count in windows:
            details[f"{dtype}, {count} windows"] = _edits(dtype, count, edits, seed)
    usual = details[f"bfloat16, {LIVE_WINDOWS} windows"]
    return {
        "toggle_speedup": usual["speedup"]["median"],
        "toggle_speedup_upper_third": usual["speedup_upper_third"]["median"],
        "toggle_seconds": usual["seconds"]["median"],
        "details": details,
    }


def _edits(dtype: str, count: int, edits: int, seed: int) -> dict[str, object]:
    kept = Workbench()  # statistics and model come from the cache
    loaded = kept.pool.get("demo", dtype=dtype)
    base = allocate(rank(loaded.shape, kept.scores(loaded, calibration_windows(loaded.tokenizer))), RATIO)
    text = evaluation_windows(loaded.tokenizer, windows=count)
    layers = len(loaded.shape.layers)
    drawn = np.random.default_rng(seed).permutation(sum(loaded.shape.heads))[:edits]  # no head twice
    rows = []
    with tempfile.TemporaryDirectory(dir=cache_root()) as folder:
        bench = Workbench(Store(Path(folder)), kept.pool)
        bench.perplexity(loaded, base, text)
        perplexity(slice_model(loaded, base), text)  # warm-up
        for number, which in enumerate(drawn.tolist()):
            layer, head = divmod(which, loaded.shape.heads[0])
            plan = base.with_units("heads", layer, [head], not base.heads[layer][head])
            ways = {
                "ours": lambda plan=plan: bench.perplexity(loaded, plan, text),
                "afresh": lambda plan=plan: perplexity(slice_model(loaded, plan), text),
            }
            seconds = in_turn(ways, number)
            rows.append((layer, seconds["ours"], seconds["afresh"]))
    layer, ours, afresh = map(np.array, zip(*rows, strict=True))
    return {
        "edits": edits,
        "seconds": _spread(ours),
        "seconds_afresh": _spread(afresh),
        "speedup": _spread(afresh / ours),
        "speedup_upper_third": _spread((afresh / ours)[layer >= layers - layers // 3]),
        "tokens": text.tokens,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    names = ("min", "q1", "median", "q3", "max")
    return dict(zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist(), strict=True))


if __name__ == "__main__":
    print(json.dumps(run(), indent=1))
