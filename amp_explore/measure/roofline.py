"""What a machine can do at best, what a forward pass asks of it, and so how fast it could run.

The roofline model (Williams, Waterman and Patterson 2009): a pass takes at least as long as its bytes take at the
machine's memory bandwidth, and at least as long as its floating-point operations take at its arithmetic peak. Both are
measured here, on the machine at hand: the bandwidth with a large copy, the peak with a large matrix product.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from amp_explore.models.sharding import suited
from amp_explore.plan import PruningPlan
from amp_explore.progress import Progress, no_progress
from amp_explore.surgery.costs import remaining_cached_heads, remaining_weights, removed_units

_COPY_BYTES = {"cuda": 2**31, "else": 2**28}  # well above any cache
_MATMUL_SIZE = {"cuda": 8192, "else": 2048}
_ROUNDS = 5
_CLOSE = 1.5  # a measurement this many times the roofline's is still put down to the roofline


@dataclass(frozen=True)
class Machine:
    """Bytes per second of a copy, counting those read and those written; floating-point operations per second of a
    matrix product in `dtype`."""

    device: str
    dtype: str
    threads: int
    bytes_per_s: float
    flops_per_s: float

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Work:
    """What one forward pass reads and computes: bytes of weights, bytes of KV cache, floating-point operations."""

    weight_bytes: int
    kv_bytes: int
    flops: int

    def seconds(self, machine: Machine) -> float:
        """The roofline: the least time that the pass takes."""
        return max((self.weight_bytes + self.kv_bytes) / machine.bytes_per_s, self.flops / machine.flops_per_s)

    def limit(self, machine: Machine, seconds: float) -> str:
        """What a pass that took so long was waiting for, in words."""
        memory = (self.weight_bytes + self.kv_bytes) / machine.bytes_per_s
        compute = self.flops / machine.flops_per_s
        if seconds > _CLOSE * max(memory, compute):
            return "overhead: starting operations takes longer than memory and arithmetic need"
        if compute > memory:
            return "arithmetic"
        return "reading the KV cache" if self.kv_bytes > self.weight_bytes else "reading the weights"


def decode_work(plan: PruningPlan, *, batch: int, context: int) -> Work:
    """One decode step of the sliced model: a token for each of `batch` sequences, with `context` tokens before it."""
    kv_numbers = sum(
        2 * remaining_cached_heads(plan, number) * layer.head_dim * _seen(1, context, layer.sliding_window)
        for number, layer in enumerate(plan.shape.layers)
    )
    return _work(plan, batch=batch, tokens=1, context=context, kv_numbers=kv_numbers)


def prefill_work(plan: PruningPlan, *, batch: int, tokens: int) -> Work:
    """Reading `batch` prompts of `tokens` tokens; the vocabulary projection runs for the last one of each only."""
    return _work(plan, batch=batch, tokens=tokens, context=0, kv_numbers=0)


def _work(plan: PruningPlan, *, batch: int, tokens: int, context: int, kv_numbers: int) -> Work:
    shape = plan.shape
    weights = remaining_weights(plan)
    attention = sum(
        4
        * (layer.heads - removed_units(plan, number)[0])
        * layer.head_dim
        * _seen(tokens, context, layer.sliding_window)
        for number, layer in enumerate(shape.layers)
    )
    multiplied = tokens * weights - (tokens - 1) * shape.vocabulary_weights
    return Work(
        weight_bytes=weights * shape.bytes_per_parameter,
        kv_bytes=batch * kv_numbers * shape.bytes_per_parameter,
        flops=batch * (2 * multiplied + attention),
    )


def _seen(tokens: int, context: int, window: int | None) -> int:
    """How many pairs of a token and one that it sees, itself among them, there are in a layer."""
    if window is None or context + tokens <= window:
        return tokens * context + tokens * (tokens + 1) // 2
    return sum(min(context + number, window) for number in range(1, tokens + 1))


def measure_machine(device: torch.device, dtype: torch.dtype, *, progress: Progress = no_progress) -> Machine:
    """Measure the device, with as many threads as torch uses; the best of a few rounds counts. Takes about a second."""
    progress(0, 2, "measuring the memory's speed")
    copied = suited(_COPY_BYTES, device)
    copy_seconds = _best_copy(copied, device)
    progress(1, 2, "measuring matrix products")
    size = suited(_MATMUL_SIZE, device)
    matrix = torch.randn(size, size, device=device).to(dtype)
    product_seconds = _best(lambda: matrix @ matrix, device)
    return Machine(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        bytes_per_s=2 * copied / copy_seconds,
        flops_per_s=2 * size**3 / product_seconds,
    )


def _best_copy(size: int, device: torch.device) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return _best(lambda: target.copy_(source), device)


def _best(run: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(_ROUNDS + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished: on an accelerator, calls return before their work is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
