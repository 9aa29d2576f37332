"""Timings of the product, as ratios of two things run in turn in one process: `make bench`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any


def in_turn(ways: Mapping[str, Callable[[], Mapping[str, Any]]], number: int) -> dict[str, float]:
    """Seconds of each way to the same `loss`, the order swapped every other `number`.

    Raises `ValueError` where the losses differ.
    """
    seconds, losses = {}, {}
    for name in list(ways)[:: 1 if number % 2 else -1]:
        start = time.perf_counter()
        losses[name] = ways[name]()["loss"]
        seconds[name] = time.perf_counter() - start
    if len({*losses.values()}) > 1:
        raise ValueError(f"the ways differ: {losses}")
    return seconds
