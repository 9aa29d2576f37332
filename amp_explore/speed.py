"""Tokens per second, dense beside pruned.

A speed figure means little without how it was taken. Here prefill (one forward pass over a prompt, bound by
arithmetic) and decode (one token at a time on the KV cache, bound by memory and, in eager mode on a fast GPU,
by launching kernels) are timed apart, and the models take turns within one run, in swapped order every other
round: whatever else the machine does then falls on all of them alike.

`measure` gives the figures with their spread and everything they depend on; `speedup` compares two models
round by round.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from amp_explore.errors import AmpExploreError
from amp_explore.models.families import context_of
from amp_explore.progress import Progress, no_progress

FIGURES = ("prefill_tokens_per_s", "decode_tokens_per_s")


def measure(
    models: Mapping[str, PreTrainedModel],
    *,
    batch: int = 1,
    prompt: int = 128,
    new_tokens: int = 32,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, dict]:
    """Time prefill and greedy decoding of each model, in turn.

    Args:
        models: name -> model in eval mode. All read the same random token ids.
        batch: sequences at once.
        prompt: tokens per sequence in the prefill.
        new_tokens: decode steps after it.
        repeats: timed rounds.
        warmup: rounds before them that are not counted.
        seed: of the token ids.
        progress: called before each model's turn, with the number of turns done and their total.

    Returns:
        For each name ``prefill_tokens_per_s`` and ``decode_tokens_per_s``, counted over all sequences of the
        batch (``median``, ``min``, ``max``, the quartiles ``q1`` and ``q3``, ``repeats``, and the single
        ``rounds`` in order), and ``setup``: what they were measured on.

    Raises:
        AmpExploreError: a number is too small, or prompt and new tokens exceed a model's context.
    """
    _check(models, batch=batch, prompt=prompt, new_tokens=new_tokens, repeats=repeats, warmup=warmup)
    vocabulary = min(model.get_input_embeddings().num_embeddings for model in models.values())
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (batch, prompt), generator=generator)  # (B, T)

    names = list(models)
    orders = (names, names[::-1])
    turns = [(number, name) for number in range(-warmup, repeats) for name in orders[number % 2]]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for done, (number, name) in enumerate(turns):
        turn = "warm-up" if number < 0 else f"round {number + 1} of {repeats}"
        progress(done, len(turns), f"{name}, {turn}")
        taken = _time(models[name], ids, new_tokens)
        if number >= 0:
            seconds[name].append(taken)
    progress(len(turns), len(turns), "done")

    tokens = np.array([batch * prompt, batch * new_tokens])
    results = {}
    for name, model in models.items():
        rates = tokens / np.array(seconds[name])  # (repeats, 2)
        results[name] = {figure: _summary(rates[:, i]) for i, figure in enumerate(FIGURES)}
        results[name]["setup"] = _setup(model, batch=batch, prompt=prompt, new_tokens=new_tokens)
    return results


def speedup(dense: Mapping[str, dict], pruned: Mapping[str, dict]) -> dict[str, dict[str, float]]:
    """How many times faster the pruned model is, round by round, from two results of one call of `measure`.

    Neighbours in time are compared, so a machine that slows down half-way does not count as a difference.

    Returns:
        For ``prefill_tokens_per_s`` and ``decode_tokens_per_s``: ``median``, ``min`` and ``max`` over the rounds.
    """
    ratios = {}
    for figure in FIGURES:
        by_round = np.array(pruned[figure]["rounds"]) / np.array(dense[figure]["rounds"])
        ratios[figure] = {
            "median": float(np.median(by_round)),
            "min": float(by_round.min()),
            "max": float(by_round.max()),
        }
    return ratios


@torch.inference_mode()
def _time(model: PreTrainedModel, ids: torch.Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds for the prefill of ``ids`` (B, T), and for the decode steps that follow."""
    ids = ids.to(model.device)
    _synchronize(model.device)
    start = time.perf_counter()
    output = model(ids, use_cache=True, logits_to_keep=1)
    _synchronize(model.device)
    prefilled = time.perf_counter()
    for _ in range(new_tokens):
        token = output.logits[:, -1:].argmax(dim=-1)  # (B, 1)
        output = model(token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
    _synchronize(model.device)
    return prefilled - start, time.perf_counter() - prefilled


def _synchronize(device: torch.device) -> None:
    """Wait until the device has finished: on an accelerator, calls return before their work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _summary(rates: np.ndarray) -> dict[str, object]:
    low, q1, median, q3, high = np.quantile(rates, [0, 0.25, 0.5, 0.75, 1]).tolist()
    return {
        "median": median,
        "min": low,
        "max": high,
        "q1": q1,
        "q3": q3,
        "repeats": len(rates),
        "rounds": rates.tolist(),
    }


def _setup(model: PreTrainedModel, *, batch: int, prompt: int, new_tokens: int) -> dict[str, object]:
    return {
        "device": str(model.device),
        "device_name": _device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "prompt_tokens": prompt,
        "new_tokens": new_tokens,
        "mode": "eager",
        "torch": torch.__version__,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty or just "x86_64" there
    if device.type == "cpu" and cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _check(models: Mapping[str, PreTrainedModel], *, warmup: int, **at_least_one: int) -> None:
    if not models:
        raise AmpExploreError("no model to time; give at least one")
    for name, value in {**at_least_one, "warmup": warmup + 1}.items():
        if value < 1:
            raise AmpExploreError(f"{name} must be at least {0 if name == 'warmup' else 1}")
    tokens = at_least_one["prompt"] + at_least_one["new_tokens"]
    for name, model in models.items():
        context = context_of(model)
        if context is not None and tokens > context:
            raise AmpExploreError(
                f"{tokens} tokens do not fit the {name} model's context of {context}; take a shorter prompt"
            )
