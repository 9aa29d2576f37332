"""What needs a GPU: decoding LLaMA-2-7B's shape, what aligned widths give, scoring, commonsense.

    python -m benchmarks.gpu benchmarks/gpu-h100.json                  everything
    python -m benchmarks.gpu benchmarks/gpu-h100.json decode scoring   some; the rest of the file stays as it was

The file is written after each case, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from amp_explore.models.loading import load
from benchmarks import commonsense, decode, scoring

SHAPE = "random:llama-2-7b"
CURVES = [(32, 128), (32, 512), (8, 128), (8, 2048), (1, 4000), (1, 2048), (1, 512), (32, 2048)]  # batch, prompt
NEW_TOKENS = 64

Keep = Callable[[object], None]


def _decode(keep: Keep) -> None:
    setting = decode.prepare(load(SHAPE, device="cuda", dtype="bfloat16"), multiple=128)
    curves = {"model": setting.loaded.describe(), "machine": setting.machine.as_dict(), "cases": []}
    curves["cases"].append(decode.measure_case(setting, batch=1, prompt=128, new_tokens=NEW_TOKENS, repeats=5))
    keep(curves)
    for batch, prompt in CURVES:
        case = decode.measure_case(setting, batch=batch, prompt=prompt, new_tokens=NEW_TOKENS, repeats=3, eager=False)
        curves["cases"].append(case)
        keep(curves)


def _widths(keep: Keep) -> None:
    loaded = load(SHAPE, device="cuda", dtype="bfloat16")
    widths = {}
    for multiple in (1, 16):
        setting = decode.prepare(loaded, multiple=multiple)
        case = decode.measure_case(setting, batch=1, prompt=128, new_tokens=NEW_TOKENS, repeats=3, eager=False)
        widths[f"{multiple}"] = case
        keep(widths)


PARTS: dict[str, Callable[[Keep], None]] = {
    "decode": _decode,
    "decode_by_multiple": _widths,
    "scoring": lambda keep: keep(scoring.run("cuda", model=SHAPE)),
    "commonsense": lambda keep: keep(commonsense.run(device="cuda", questions=200)),
    "commonsense_60_questions": lambda keep: keep(commonsense.run(device="cuda", questions=60)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], metavar="part", help=", ".join(PARTS))
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def keep(part: str, measured: object) -> None:
        results[part] = measured
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        print(part, flush=True)

    for part in arguments.parts or PARTS:
        PARTS[part](lambda measured, part=part: keep(part, measured))


if __name__ == "__main__":
    main()
