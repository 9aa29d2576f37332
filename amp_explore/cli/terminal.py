"""What commands print: the report of a measurement, and progress."""

from __future__ import annotations

from typing import Any


def on(windows: dict[str, Any]) -> str:
    return f"{windows['data']}, {windows['windows']} windows of {windows['window']} tokens"


def table(report: dict[str, Any]) -> str:
    """The report for people: one row per figure, pruned beside dense."""
    rows = [("", "dense", "pruned")]
    dense, pruned = report["dense"], report["pruned"] or {}

    def row(name: str, text) -> None:
        rows.append((name, text(dense), text(pruned) if pruned else ""))

    row("parameters", lambda side: f"{side['parameters']:,}")
    row("weight bytes", lambda side: f"{side['weight_bytes']:,}")
    row("KV-cache bytes per token", lambda side: f"{side['kv_bytes_per_token']:,}")
    row(f"FLOPs per token, context {dense['flops_context']}", lambda side: f"{side['flops_per_token']:,}")
    if "perplexity" in dense:
        row("perplexity", lambda side: f"{side['perplexity']['value']:.4f}")
        rows.append((f"  {on(dense['perplexity'])}", "", ""))
    for task in dense.get("tasks", {}):
        for metric in ("acc", "acc_norm"):
            if dense["tasks"][task][metric] is not None:
                row(
                    f"{task} {metric} ({dense['tasks'][task]['n']} questions)",
                    lambda side, t=task, m=metric: _accuracy(side["tasks"][t], m),
                )
    for figure in dense.get("speed", ()):
        if figure.endswith("_tokens_per_s"):
            phase = figure.removesuffix("_tokens_per_s").replace("_", " ")
            row(f"{phase} tokens/s (median, quartiles)", lambda side, f=figure: _speed(side["speed"][f]))
    if "speed" in dense:
        rows.append((f"  {dense['speed']['setup']}", "", ""))
    width = max(len(name) for name, *values in rows if any(values))
    return "\n".join(f"{name:<{width}}  {a:>26}  {b:>26}".rstrip() for name, a, b in rows)


def _accuracy(result: dict[str, Any], metric: str) -> str:
    error = result[f"{metric}_stderr"]  # None for a single question
    return f"{result[metric]:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _speed(figures: dict[str, float]) -> str:
    return f"{figures['median']:.1f} ({figures['q1']:.1f} to {figures['q3']:.1f})"


class ProgressBar:
    """Progress on standard error, where that is a terminal."""

    def __init__(self) -> None:
        self.side = ""
        self._bar: Any = None
        self._showing: tuple[str, int] | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, done: int, total: int, note: str) -> None:
        from tqdm import tqdm

        label = f"{self.side} {note}".strip()
        if self._showing != (label, total):
            self.clear()
            self._showing = (label, total)
            scaled = total > 10**6  # bytes
            self._bar = tqdm(
                total=total,
                desc=label,
                disable=None,
                leave=False,
                unit="B" if scaled else "",
                unit_scale=scaled,
            )
        self._bar.update(done - self._bar.n)

    def clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = self._showing = None


def quiet() -> None:
    """Keep the libraries' own progress bars and warnings off a terminal that has ours."""
    from logging import ERROR, getLogger

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    getLogger("accelerate").setLevel(ERROR)
