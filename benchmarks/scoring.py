"""How much faster scores are collected than the straightforward way, and what memory that takes.

The straightforward way is the one of AMP's published code: two passes over the calibration prompts, one for heads and
one for neurons, one prompt at a time through the whole model, and in each layer the products of all heads written out
at once in float32 (tokens, heads, hidden). Both ways are measured in turn in one process, and give the same scores.

    python -m benchmarks.scoring --device cpu
    python -m benchmarks.scoring --device cuda --model random:llama-2-7b
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from amp_explore.models.families import decoder_layers, head_slices, layer_parts
from amp_explore.models.loading import LoadedModel, load
from amp_explore.models.placement import Dtype
from amp_explore.observe.statistics import collect
from amp_explore.texts.calibration import TokenWindows

TOLERANCE = 1e-3
"""How far a score of the two ways may differ, relative to it; ours multiplies in the model's precision."""


@torch.inference_mode()
def straightforward(loaded: LoadedModel, windows: TokenWindows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """AMP's scores of heads and of neurons, layer by layer, with nothing saved."""
    layers = [layer_parts(layer, loaded.family) for layer in decoder_layers(loaded.model)]
    heads = [torch.zeros(layer.heads, device=loaded.device) for layer in loaded.shape.layers]
    neurons = [torch.zeros(layer.neurons, device=loaded.device) for layer in loaded.shape.layers]

    def add_heads(number: int, x: torch.Tensor) -> None:
        weight = head_slices(layers[number].o, layers[number].head_dim).float()  # (heads, head_dim, hidden)
        x = x[0].float().unflatten(1, weight.shape[:2])  # (T, heads, head_dim)
        products = torch.einsum("thd,hdo->tho", x, weight)  # (T, heads, hidden)
        heads[number] += products.abs().sum(2).mean(0)

    def add_neurons(number: int, a: torch.Tensor) -> None:
        neurons[number] += a.flatten(0, -2).float().abs().mean(0)

    for add, modules in ((add_heads, [parts.o for parts in layers]), (add_neurons, [parts.down for parts in layers])):
        hooks = [
            module.register_forward_pre_hook(lambda _, inputs, number=number, add=add: add(number, inputs[0]))
            for number, module in enumerate(modules)
        ]
        for ids in windows.ids:
            loaded.model(ids[None].to(loaded.device), use_cache=False)
        for hook in hooks:
            hook.remove()
    return [tuple((total / len(windows.ids)).cpu() for total in layer) for layer in zip(heads, neurons, strict=True)]


def ours(loaded: LoadedModel, windows: TokenWindows) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same from `statistics.collect`, which takes the sums for all forward-only criteria along the way."""
    return [(layer.head_projection, layer.neuron_magnitude) for layer in collect(loaded, windows)]


def run(
    device: str,
    *,
    prompts: int = 50,
    tokens: int = 128,
    repeats: int = 5,
    model: str = "demo",
    dtype: Dtype = "auto",
    seed: int = 0,
) -> dict[str, object]:
    """Measure both ways in turn, `repeats` times, on prompts of random tokens; one round of each before is not counted.

    Returns:
        `scoring_speedup_cpu` or `scoring_speedup_gpu`, the ratio of the median seconds, and `details`: the seconds of
        each way (`median`, `min`, `max`, `rounds`), its `peak_bytes` above the weights (on a GPU), the ratio of each
        round, the largest relative difference of the scores, and what it was measured on.

    Raises:
        ValueError: the two ways do not give the same scores.
    """
    loaded = load(model, device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(loaded.model.config.vocab_size, (prompts, tokens), generator=generator)
    windows = TokenWindows(tuple(ids), "random tokens", False)
    ways: dict[str, Callable] = {"straightforward": straightforward, "ours": ours}
    results = {name: way(loaded, windows) for name, way in ways.items()}
    difference = _difference(*results.values())
    if difference > TOLERANCE:
        raise ValueError(f"the scores differ by {difference:.1e}, relative to them")

    rounds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    for number in range(repeats):
        for name in (list(ways), list(ways)[::-1])[number % 2]:
            seconds, peak = _measure(lambda name=name: ways[name](loaded, windows), loaded.device)
            rounds[name].append(seconds)
            peaks[name] = max(peaks[name], peak)
    median = {name: statistics.median(seconds) for name, seconds in rounds.items()}
    on_gpu = loaded.device.type == "cuda"
    details = {
        name: {"median": median[name], "min": min(seconds), "max": max(seconds), "rounds": seconds}
        | ({"peak_bytes": peaks[name]} if on_gpu else {})
        for name, seconds in rounds.items()
    }
    return {
        f"scoring_speedup_{'gpu' if on_gpu else 'cpu'}": median["straightforward"] / median["ours"],
        "details": details
        | {
            "speedup_rounds": [slow / fast for slow, fast in zip(*rounds.values(), strict=True)],
            "scores_differ_by": difference,
            "model": loaded.describe(),
            "device_name": torch.cuda.get_device_name(loaded.device) if on_gpu else None,
            "threads": torch.get_num_threads(),
            "prompts": prompts,
            "tokens": tokens,
            "torch": torch.__version__,
        },
    }


def _measure(way: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds, and the most bytes that were in use on the GPU above what was before."""
    if device.type != "cuda":
        start = time.perf_counter()
        way()
        return time.perf_counter() - start, 0
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    way()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) - before


def _difference(one: list, other: list) -> float:
    pairs = [pair for layers in zip(one, other, strict=True) for pair in zip(*layers, strict=True)]
    return max(((a - b).abs() / a.abs().clamp_min(1e-12)).max().item() for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default="demo", help="demo, a folder, a hub id or random:SHAPE")
    parser.add_argument("--shape", help="a known shape with random weights: the same as --model random:SHAPE")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = vars(parser.parse_args())
    if shape := options.pop("shape"):
        options["model"] = f"random:{shape}"
    print(json.dumps(run(options.pop("device"), **options), indent=2))


if __name__ == "__main__":
    main()
