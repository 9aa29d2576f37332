"""Commonsense accuracy, as the EleutherAI harness (lm-eval) measures it.

The tasks, prompts and metrics are lm-eval's own and stay untouched, zero-shot, so that the numbers can be compared with
published ones. Only three things differ from calling the harness by hand: the questions may come from the offline data
(`amp_explore.assets`) instead of the hub, the work reports where it stands and can be cancelled between batches, and
only those logits are computed that a score needs.

`evaluate` gives accuracy and its standard error per task. Importing lm-eval takes seconds, so that happens on first use.
"""

from __future__ import annotations

import inspect
import itertools
import json
import logging
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amp_explore.assets import cache_root, task_data
from amp_explore.errors import AmpExploreError, DataError
from amp_explore.progress import Progress, no_progress

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

# Where lm-eval keeps each task, and the split that it scores.
_OFFICIAL = {
    "piqa": ("piqa/piqa.yaml", "validation"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "winogrande": ("winogrande/default.yaml", "validation"),
    "arc_easy": ("arc/arc_easy.yaml", "test"),
    "arc_challenge": ("arc/arc_challenge.yaml", "test"),
}
TASKS: tuple[str, ...] = tuple(_OFFICIAL)

# Requests that are tokenised at a time: enough to sort by length, few enough to report and cancel in between.
_BLOCK = 2048
_one_at_a_time = threading.Lock()


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str] = TASKS,
    *,
    limit: int | None = None,
    data: Literal["offline", "hub"] = "offline",
    batch_tokens: int | None = None,
    progress: Progress = no_progress,
) -> dict[str, dict[str, float | int | None]]:
    """Zero-shot accuracy of ``model`` on lm-eval's tasks.

    Neither the model nor the tokenizer is changed, and no random state is touched. One evaluation runs at a time in a
    process, because lm-eval's and datasets' own messages are silenced meanwhile; a second one waits.

    Args:
        model: a dense or sliced causal model in eval mode, on any device.
        tasks: names out of `TASKS`.
        limit: the first so many questions of each task; None takes all.
        data: ``offline`` reads what ``python -m amp_explore fetch`` brought, ``hub`` what the official task names.
        batch_tokens: the most tokens in one forward pass, padding included (a longer question goes alone). None takes
            1,024 on a CPU and 16,384 elsewhere.
        progress: called between batches with the number of answers scored, their total, and the task's name.

    Returns:
        For each task ``acc`` and ``acc_norm`` (by length-normalised likelihood) in 0..1, their standard errors of the mean
        ``acc_stderr`` and ``acc_norm_stderr`` (None for one question), and the number of questions ``n``. Tasks without
        ``acc_norm`` (WinoGrande) have None there.

    Raises:
        AmpExploreError: an unknown task, or a limit below 1.
        AssetError: the offline data was not fetched.
        DataError: the hub could not be reached, or does not have the data.
    """
    unknown = [task for task in tasks if task not in _OFFICIAL]
    if unknown or not tasks:
        problem = f"unknown task {', '.join(map(repr, unknown))}" if unknown else "no task given"
        raise AmpExploreError(f"{problem}; choose from {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise AmpExploreError(f"limit is {limit}; give at least 1 question, or none for all of them")
    if batch_tokens is None:
        batch_tokens = 1024 if model.device.type == "cpu" else 16384

    with _one_at_a_time, _quiet_harness(progress):
        import lm_eval

        progress(0, 1, "loading the questions")
        loaded = {task: _load(task, data) for task in tasks}
        harness_model = _harness_model(model, tokenizer, batch_tokens, progress)
        results = lm_eval.evaluate(harness_model, {"tasks": loaded}, limit=limit, log_samples=False)
    return {task: _numbers(results["results"][task], results["n-samples"][task]["effective"]) for task in tasks}


def _load(name: str, data: Literal["offline", "hub"]) -> Task:
    """lm-eval's own task, zero-shot; offline, an overlay on its file changes where the questions come from."""
    from lm_eval import tasks

    file, split = _OFFICIAL[name]
    official = Path(tasks.__file__).parent / file
    manager = tasks.TaskManager(include_defaults=False)
    if data == "hub":
        try:
            task = manager.load(str(official))["tasks"][name]
        except Exception as error:  # no route, a proxy, gated, gone: all end here, with different types
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{name} cannot be had from the hub ({reason}); check the network or use offline data") from error
    else:
        overlay = {
            "include": str(official),
            "dataset_path": "arrow",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(task_data(name))},
                "cache_dir": str(cache_root() / "datasets"),
            },
            "training_split": None,
            "validation_split": None,
            "test_split": None,
            f"{split}_split": split,
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.yaml"
            path.write_text(json.dumps(overlay), encoding="utf-8")  # JSON is YAML
            task = manager.load(str(path))["tasks"][name]
    task.set_config("num_fewshot", 0)
    return task


def _harness_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, progress: Progress
) -> HFLM:
    """The harness's Hugging Face model, with progress and batches of a bounded number of tokens."""
    from lm_eval.models.huggingface import HFLM

    options = {"use_cache": False}
    trims_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    class ReportingLM(HFLM):
        def __init__(self) -> None:
            # HFLM ties the weights of a module it is given and adds a pad token to a tokenizer. So it gets a copy of the
            # tokenizer, and of the model only what it reads; the forward pass is below.
            described = SimpleNamespace(device=model.device, config=model.config)
            super().__init__(pretrained=described, tokenizer=deepcopy(tokenizer), backend="causal", batch_size="auto")

        def loglikelihood(self, requests, disable_tqdm=True):
            self.done, self.total = 0, len(requests)
            answers = []
            for self.task, of_task in itertools.groupby(requests, key=lambda request: request.task_name):
                for block in _blocks(of_task, _BLOCK):
                    answers += super().loglikelihood(block, disable_tqdm=True)
            progress(self.total, self.total, self.task)
            return answers

        def _loglikelihood_tokens(self, requests, disable_tqdm=True, override_bs=None):
            """One answer (log-likelihood, is greedy) per request (texts, context tokens, answer tokens)."""
            answers = [None] * len(requests)
            for batch in _batches([context + answer for _, context, answer in requests], batch_tokens):
                progress(self.done, self.total, self.task)
                chosen = [requests[i] for i in batch]
                self.kept = self._needed_logits(chosen)
                scored = super()._loglikelihood_tokens(chosen, disable_tqdm=True, override_bs=len(batch))
                for i, answer in zip(batch, scored, strict=True):
                    answers[i] = answer
                self.done += len(batch)
            return answers

        def _needed_logits(self, requests) -> int:
            """How many positions at the end of the padded batch hold every logit that an answer is scored on."""
            lengths = [min(len(context) + len(answer) - 1, self.max_length) for _, context, answer in requests]
            starts = [length - len(answer) for length, (_, _, answer) in zip(lengths, requests, strict=True)]
            return max(lengths) - min(starts)

        def _model_call(self, inps, attn_mask=None, labels=None):
            """(B, T) token ids -> (B, kept, vocabulary) logits of the last positions; HFLM counts from the end."""
            trim = {"logits_to_keep": self.kept} if trims_logits else {}
            with torch.no_grad():
                return model(inps, **options, **trim).logits

    return ReportingLM()


def _blocks(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    while block := list(itertools.islice(items, size)):
        yield block


def _batches(rows: Sequence[list[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of rows of tokens, longest first, in batches of at most ``batch_tokens`` after padding.

    Rows that differ in their last token only stay neighbours: HFLM answers those from one row.
    """
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), rows[i])):
        if batch and (len(batch) + 1) * len(rows[batch[0]]) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def _quiet_harness(progress: Progress) -> Iterator[None]:
    """Silence what lm-eval, datasets and the hub's client print; the bar for building requests reports to ``progress``."""
    import datasets
    from lm_eval.api import task

    def report(docs: Iterable, **_) -> Iterator:
        for number, doc in enumerate(docs):
            if number % 100 == 0:
                progress(0, 1, "preparing the questions")
            yield doc

    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_bars, tqdm = not datasets.are_progress_bars_disabled(), task.tqdm
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        task.tqdm = report  # lm-eval has no switch for this one
        yield
    finally:
        task.tqdm = tqdm
        if had_bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _numbers(metrics: dict, n: int) -> dict[str, float | int | None]:
    def number(key: str) -> float | None:
        value = metrics.get(f"{key},none")
        return None if value in (None, "N/A") else float(value)  # lm-eval has no standard error for one question

    return {key: number(key) for key in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")} | {"n": n}
