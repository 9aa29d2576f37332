"""How much faster commonsense tasks are scored than by lm-eval's own class for Hugging Face models.

Both score the same tokenised questions of the five tasks with the same model, dense and pruned by AMP, in turn in one
process. Tokenising is left out on both sides. Of a few fixed batch sizes lm-eval's class gets the fastest.

    python -m benchmarks.commonsense --device cpu
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amp_explore.budgets import allocation
from amp_explore.measure import commonsense
from amp_explore.measure.likelihood import Scorer
from amp_explore.models.families import share
from amp_explore.models.loading import LoadedModel
from amp_explore.models.placement import Dtype
from amp_explore.plan import PruningPlan
from amp_explore.progress import Progress, no_progress
from amp_explore.texts.calibration import calibration_windows
from amp_explore.workbench import Workbench

PRUNED = 0.2
"""Share of all parameters that the plan removes."""

TOLERANCE = 1e-2
"""How far a log-likelihood of the two may differ in float32."""

_STOCK_BATCHES = {"cpu": (4, 8, 16, 32), "cuda": (16, 32, 64, 128, 256)}

Requests = dict[str, list[tuple]]  # of each task: (number of the question, tokens of the context, of the answer)


def run(
    questions: int = 200,
    repeats: int = 3,
    *,
    device: str = "auto",
    dtypes: Sequence[Dtype] = ("float32", "bfloat16"),
    progress: Progress = no_progress,
) -> dict[str, object]:
    """Measure both in turn, `repeats` times, on the first `questions` of each task.

    Returns:
        For each dtype `commonsense_speedup_DTYPE`, the ratio of the median seconds of both (dense or pruned, whichever
        is smaller), and `details`: of each dtype and model the seconds, tokens (padding included) and projected
        positions of either, the ratio of each round, by how much log-likelihoods differ and how many choices do.

    Raises:
        ValueError: the log-likelihoods differ in float32.
    """
    bench, plan = Workbench(), None
    report: dict[str, object] = {}
    details: dict[str, object] = {"questions": questions, "pruned": PRUNED, "torch": torch.__version__}
    with commonsense._undisturbed(progress):  # what the harness prints
        for dtype in dtypes:
            loaded = bench.pool.get("demo", device=device, dtype=dtype)
            plan = plan or amp_plan(bench, loaded)
            requests = tokenised(loaded, questions)
            batch = best_stock_batch(loaded, requests)
            details[dtype] = {
                side: compare(model, loaded.tokenizer, requests, batch, repeats, f"{dtype} {side}", progress)
                for side, model in (("dense", loaded.model), ("pruned", bench.sliced(loaded, plan)))
            }
            report[f"commonsense_speedup_{dtype}"] = min(side["speedup"] for side in details[dtype].values())
    on_gpu = loaded.device.type == "cuda"
    details["device"] = torch.cuda.get_device_name(loaded.device) if on_gpu else "cpu"
    details["threads"] = torch.get_num_threads()
    return report | {"details": details}


def amp_plan(bench: Workbench, loaded: LoadedModel) -> PruningPlan:
    scores = bench.scores(loaded, calibration_windows(loaded.tokenizer))
    return allocation.allocate(allocation.rank(loaded.shape, scores), PRUNED)


def tokenised(loaded: LoadedModel, questions: int) -> Requests:
    """What lm-eval's class makes of the first questions of each task."""

    class Tokenising(HFLM):
        def _loglikelihood_tokens(self, requests, disable_tqdm=False, override_bs=None):
            return [(context, answer) for _, context, answer in requests]

    harness = Tokenising(share(loaded.model), tokenizer=deepcopy(loaded.tokenizer), backend="causal")
    requests: Requests = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in commonsense.TASKS:
            task = commonsense._load(name, "offline", Path(folder))
            task.build_all_requests(limit=questions)
            pairs = harness.loglikelihood(task.instances, disable_tqdm=True)
            requests[name] = [(instance.doc_id, *pair) for instance, pair in zip(task.instances, pairs, strict=True)]
    return requests


def best_stock_batch(loaded: LoadedModel, requests: Requests) -> int:
    """The batch size with which lm-eval's class is fastest on two tasks, a fifth of the work."""
    tried = {task: requests[task] for task in ("piqa", "winogrande")}
    sides = {batch: Stock(loaded.model, loaded.tokenizer, batch) for batch in _STOCK_BATCHES[loaded.device.type]}
    if loaded.device.type != "cpu":
        _seconds(next(iter(sides.values())), tried)  # loads kernels
    return min(sides, key=lambda batch: _seconds(sides[batch], tried)[0])


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Requests,
    stock_batch: int,
    repeats: int,
    note: str = "",
    progress: Progress = no_progress,
) -> dict[str, object]:
    """Both on one model; for what it returns see `run`. On a GPU, one round of each before is not counted."""
    stock = Stock(model, tokenizer, stock_batch)
    sides = {"stock": stock, "tree": Tree(model, stock.max_length)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list] = {}
    if model.device.type != "cpu":
        for side in sides.values():  # the first pass of each shape loads kernels and reserves memory
            _seconds(side, requests)
            side.counts.update(tokens=0, projected=0)
    for number in range(repeats):
        for name in (list(sides), list(sides)[::-1])[number % 2]:
            progress(sum(map(len, seconds.values())), 2 * repeats, f"{note} {name}")
            taken, answers[name] = _seconds(sides[name], requests)
            seconds[name].append(taken)
    difference = max(abs(a - b) for a, b in zip(*answers.values(), strict=True))
    if model.dtype == torch.float32 and not difference < TOLERANCE:
        raise ValueError(f"log-likelihoods differ by {difference:.1e}")
    median = {name: statistics.median(rounds) for name, rounds in seconds.items()}
    return {
        "speedup": median["stock"] / median["tree"],
        "speedup_rounds": [slow / fast for slow, fast in zip(*seconds.values(), strict=True)],
        "log_likelihoods_differ_by": difference,
        "choices_differ": sum(
            a != b for a, b in zip(*(_choices(requests, each) for each in answers.values()), strict=True)
        ),
    } | {
        name: {
            "median": median[name],
            "min": min(seconds[name]),
            "max": max(seconds[name]),
            "rounds": seconds[name],
            "batch": side.batch,
            "tokens": side.counts["tokens"] // repeats,
            "projected": side.counts["projected"] // repeats,
        }
        for name, side in sides.items()
    }


class Stock:
    """lm-eval's own class, as `lm_eval.simple_evaluate` would run it."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int) -> None:
        self.batch = f"{batch} sequences"
        model, self.counts = _counting(model)
        self._harness = HFLM(model, tokenizer=deepcopy(tokenizer), backend="causal", batch_size=batch)
        self.max_length = self._harness.max_length

    def __call__(self, pairs: list[tuple]) -> list[tuple[float, bool]]:
        return self._harness._loglikelihood_tokens([("", *pair) for pair in pairs], disable_tqdm=True)


class Tree:
    """What `amp_explore.measure.commonsense` does."""

    def __init__(self, model: PreTrainedModel, max_length: int) -> None:
        tokens = commonsense.default_batch_tokens(model)
        self.batch = f"{tokens} tokens"
        model, self.counts = _counting(model)
        self._scorer = Scorer(model, max_length=max_length, batch_tokens=tokens)

    def __call__(self, pairs: list[tuple]) -> list[tuple[float, bool]]:
        return self._scorer.log_likelihoods(pairs)


def _counting(model: PreTrainedModel) -> tuple[PreTrainedModel, dict[str, int]]:
    """A copy of the model, and how many tokens it reads and positions it projects to the vocabulary."""
    model, counts = share(model), {"tokens": 0, "projected": 0}

    def count(name: str):
        def hook(_, __, output: torch.Tensor) -> None:
            counts[name] += output.shape[:-1].numel()

        return hook

    model.get_input_embeddings().register_forward_hook(count("tokens"))
    model.get_output_embeddings().register_forward_hook(count("projected"))
    return model, counts


def _seconds(side: Stock | Tree, requests: Requests) -> tuple[float, list[float]]:
    """Seconds for all tasks, one after the other, and the log-likelihoods."""
    start = time.perf_counter()
    answers = [answer for of_task in requests.values() for answer in side([pair for _, *pair in of_task])]
    return time.perf_counter() - start, [value for value, _ in answers]


def _choices(requests: Requests, values: list[float]) -> list[int]:
    """Which answer of each question is likeliest."""
    best: dict[tuple, tuple[float, int]] = {}
    numbered = ((task, request[0]) for task, of_task in requests.items() for request in of_task)
    for number, (question, value) in enumerate(zip(numbered, values, strict=True)):
        best[question] = max(best.get(question, (-float("inf"), number)), (value, number))
    return [number for _, number in best.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--questions", type=int, default=200, help="of each task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    print(json.dumps(run(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
