"""What needs a GPU, in one run: decoding LLaMA-2-7B's shape, what aligned widths give, scoring, commonsense.

    python -m benchmarks.gpu benchmarks/gpu-h100.json

The file is written after each part, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import commonsense, decode, scoring

SHAPE = "random:llama-2-7b"
CURVES = {8: (128, 512, 2048), 32: (128, 512, 2048), 1: (128, 512, 2048, 4000)}  # prompts for each batch


def main() -> None:
    out = Path(sys.argv[1])
    results: dict[str, object] = {}

    def part(name: str, measured: object) -> None:
        results[name] = measured
        out.write_text(json.dumps(results, indent=1) + "\n")
        print(name, "done", flush=True)

    common = {"model": SHAPE, "device": "cuda", "new_tokens": 64}
    curves = decode.run(**common, multiple=128, repeats=7)
    part("decode", curves)
    part("scoring", scoring.run("cuda", model=SHAPE))
    for batch, prompts in CURVES.items():
        rest = [prompt for prompt in prompts if (batch, prompt) != (1, 128)]
        curves["cases"] += decode.run(**common, multiple=128, batches=(batch,), prompts=rest, repeats=3)["cases"]
        part("decode", curves)
    widths = {f"{multiple}": decode.run(**common, multiple=multiple, repeats=3)["cases"][0] for multiple in (1, 16)}
    part("decode_by_multiple", widths)
    if (arguments := sys.argv[2:]) != ["--without-commonsense"]:
        part("commonsense", commonsense.run(device="cuda", questions=int(arguments[0]) if arguments else 200))


if __name__ == "__main__":
    main()
