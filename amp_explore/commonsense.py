"""Commonsense accuracy, as the EleutherAI harness (lm-eval) measures it.

The tasks, prompts and metrics are lm-eval's own and stay untouched, zero-shot, so that the numbers can be
compared with published ones. Three things differ from calling the harness by hand: the questions may come
from the offline data (`amp_explore.assets`) instead of the hub, the work says where it stands and can be
cancelled between batches, and only those logits are computed that a score needs.

`evaluate` gives accuracy and its standard error per task. Importing lm-eval takes seconds, so that happens
on first use.
"""

from __future__ import annotations

import itertools
import json
import logging
import random
import shutil
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

from amp_explore.assets import task_data
from amp_explore.errors import AmpExploreError, DataError
from amp_explore.progress import Progress, no_progress

if TYPE_CHECKING:
    from datasets import Dataset
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
# Reentrant, because a progress callback may run other work in between.
_one_at_a_time = threading.RLock()


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

    Neither the model nor the tokenizer is changed, and no random state is touched. One evaluation runs at a
    time in a process, because what lm-eval and datasets print is silenced meanwhile; a second thread waits.

    Args:
        model: a dense or sliced causal model in eval mode, on any device.
        tasks: names out of `TASKS`.
        limit: the first so many questions of each task; None takes all.
        data: ``offline`` reads what ``python -m amp_explore fetch`` brought, ``hub`` the official data sets.
        batch_tokens: the most tokens in one forward pass, padding included (a longer question goes alone).
            None takes 256 for each thread on a CPU and 8,192 elsewhere.
        progress: called between batches with the number of answers scored, their total, and the task's name;
            before that, while their number is not known, with 0 of 1.

    Returns:
        For each task ``acc`` and ``acc_norm`` (by likelihood per byte of the answer) in 0..1, their standard
        errors ``acc_stderr`` and ``acc_norm_stderr`` (None for a single question), and the number of questions
        ``n``. Where the official task has no ``acc_norm`` (WinoGrande), it is None.

    Raises:
        AmpExploreError: an unknown task, or a limit below 1.
        AssetError: the offline data was not fetched.
        DataError: the hub could not be reached, or does not have the data.
    """
    check(tasks, limit)
    if batch_tokens is None:
        batch_tokens = 256 * torch.get_num_threads() if model.device.type == "cpu" else 8192

    # datasets keeps what a task derives from its questions beside their file. A new folder each time costs a
    # moment, and nothing in it is ever stale, damaged or in another process's way.
    scratch = tempfile.TemporaryDirectory(prefix="amp-explore-", ignore_cleanup_errors=True)
    with _one_at_a_time, _undisturbed(progress), scratch as folder:
        import lm_eval

        progress(0, 1, "loading the questions")
        loaded = {task: _load(task, data, Path(folder)) for task in tasks}
        harness_model = _harness_model(model, tokenizer, batch_tokens, progress)
        results = lm_eval.evaluate(harness_model, {"tasks": loaded}, limit=limit, log_samples=False)
    return {task: _numbers(results["results"][task], results["n-samples"][task]["effective"]) for task in tasks}


def check(tasks: Sequence[str], limit: int | None) -> None:
    """Raise `AmpExploreError` unless `evaluate` would take these tasks and this limit."""
    unknown = [task for task in tasks if task not in _OFFICIAL]
    if unknown or not tasks:
        problem = f"unknown task {', '.join(map(repr, unknown))}" if unknown else "no task given"
        raise AmpExploreError(f"{problem}; choose from {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise AmpExploreError(f"limit is {limit}; give at least 1 question, or none for all of them")


def offline_questions(*, file: str, split: str, **_) -> dict[str, Dataset]:
    """What lm-eval asks for a task's data, offline: an Arrow file as its only split.

    datasets' own `load_dataset` would do, if it did not report each use to a server first.
    """
    from datasets import Dataset

    return {split: Dataset.from_file(file)}


def _load(name: str, data: Literal["offline", "hub"], scratch: Path) -> Task:
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
            raise DataError(
                f"{name} cannot be had from the hub ({reason}); check the network or use offline data"
            ) from error
    else:
        overlay = {
            "include": str(official),
            "dataset_kwargs": {"file": shutil.copy(task_data(name), scratch), "split": split},
            "training_split": None,
            "validation_split": None,
            "test_split": None,
            f"{split}_split": split,
        }
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in overlay.items()]
        lines.append(f"custom_dataset: !function {__name__}.{offline_questions.__name__}\n")
        path = scratch / f"{name}.yaml"
        path.write_text("".join(lines), encoding="utf-8")
        task = manager.load(str(path))["tasks"][name]
    task.set_config("num_fewshot", 0)
    return task


def _harness_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_tokens: int, progress: Progress
) -> HFLM:
    """The harness's Hugging Face model, with progress and batches of a bounded number of tokens."""
    from lm_eval.models.huggingface import HFLM

    class ReportingLM(HFLM):
        def __init__(self) -> None:
            # HFLM ties the weights of a module it is given, and may add a pad token to a tokenizer. So it gets
            # a copy of the tokenizer, and of the model only what it reads; the forward pass is below.
            described = SimpleNamespace(device=model.device, config=model.config)
            own_tokenizer = deepcopy(tokenizer)
            super().__init__(pretrained=described, tokenizer=own_tokenizer, backend="causal", batch_size="auto")

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
            """How many positions, at the end of the padded batch, hold the logits of all answers."""
            ends = [min(len(context) + len(answer) - 1, self.max_length) for _, context, answer in requests]
            starts = [end - len(answer) for end, (_, _, answer) in zip(ends, requests, strict=True)]
            return max(ends) - min(starts)

        def _model_call(self, inps, attn_mask=None, labels=None):
            """(B, T) token ids -> (B, kept, V) logits of the last positions; HFLM counts from the end."""
            with torch.no_grad():
                return model(inps, use_cache=False, logits_to_keep=self.kept).logits

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
def _undisturbed(progress: Progress) -> Iterator[None]:
    """Undo what the harness does to the process: what it prints (and what datasets and the hub's client do), and that
    it draws from the global random state. Its bar for building requests reports to ``progress`` instead.
    """
    import datasets
    from lm_eval.api import task

    def report(docs: Iterable, **_) -> Iterator:
        for number, doc in enumerate(docs):
            if number % 100 == 0:
                progress(0, 1, "preparing the questions")
            yield doc

    loggers = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_bars, tqdm, state = not datasets.are_progress_bars_disabled(), task.tqdm, random.getstate()
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        task.tqdm = report  # lm-eval has no switch for this one
        yield
    finally:
        random.setstate(state)
        task.tqdm = tqdm
        if had_bars:
            datasets.enable_progress_bars()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _numbers(metrics: dict, n: int) -> dict[str, float | int | None]:
    def number(key: str) -> float | None:
        value = metrics.get(f"{key},none")
        return None if value in (None, "N/A") else float(value)  # N/A: the standard error of one question

    return {key: number(key) for key in ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")} | {"n": n}
