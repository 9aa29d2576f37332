"""Tokens per second of dense and pruned models over batch and context, beside the roofline.

python -m benchmarks.decode --model random:llama-2-7b --device cuda
"""

from __future__ import annotations

import argparse
import itertools
import json

from amp_explore.allocation import allocate, rank
from amp_explore.errors import AmpExploreError, TooLarge
from amp_explore.models.loading import LoadedModel, load
from amp_explore.plan import PruningPlan
from amp_explore.roofline import Machine, decode_work, measure_machine, prefill_work
from amp_explore.slicing import slice_model
from amp_explore.speed import FIGURES, measure, speedup


def run(
    *,
    model: str = "demo",
    device: str = "auto",
    ratios: tuple[float, ...] = (0.2, 0.3),
    multiple: int = 1,
    batches: tuple[int, ...] = (1,),
    prompts: tuple[int, ...] = (128,),
    **options: object,
) -> dict[str, object]:
    """Measure the dense model and AMP's uniform plans at the ratios, in turn, for every batch and length of prompt.

    Which units go does not matter to speed: they are drawn by lot. Returns one entry for each case, and the machine.
    """
    loaded = load(model, device=device, dtype="bfloat16")
    machine = measure_machine(loaded.device, loaded.model.dtype)
    plans = {"dense": PruningPlan.empty(loaded.shape)}
    ranking = rank(loaded.shape, None, "random")
    for ratio in ratios:
        plans[f"amp{ratio:.0%}".rstrip("%")] = allocate(ranking, ratio, multiple=multiple)
    models = {name: slice_model(loaded, plan) for name, plan in plans.items()}
    cases = []
    for batch, prompt in itertools.product(batches, prompts):
        case = {"batch": batch, "prompt": prompt, "multiple_of": multiple}
        try:
            case |= _case(loaded, plans, models, machine, batch=batch, prompt=prompt, **options)
        except TooLarge as error:
            case["too_large"] = str(error)
        except AmpExploreError as error:
            case["refused"] = str(error)
        cases.append(case)
    return {"model": loaded.describe(), "machine": machine.as_dict(), "cases": cases}


def _case(
    loaded: LoadedModel, plans: dict, models: dict, machine: Machine, *, batch: int, prompt: int, **options
) -> dict[str, object]:
    results = measure(models, batch=batch, prompt=prompt, **options)
    new_tokens = results["dense"]["setup"]["new_tokens"]
    case = {"setup": results["dense"]["setup"]}
    for name, result in results.items():
        prefill = prefill_work(plans[name], batch=batch, tokens=prompt)
        decode = decode_work(plans[name], batch=batch, context=prompt + new_tokens // 2)
        most = {
            FIGURES[0]: batch * prompt / prefill.seconds(machine),
            FIGURES[1]: batch / decode.seconds(machine),
            FIGURES[2]: batch / decode.seconds(machine),
        }
        case[name] = {
            figure: summary | {"roofline": most[figure], "roofline_share": summary["median"] / most[figure]}
            for figure, summary in result.items()
            if figure in most
        }
        case[name]["speedup"] = speedup(results["dense"], result)
        case[name]["heads_per_layer"] = sorted({int(len(mask) - mask.sum()) for mask in plans[name].heads})
        case[name]["neurons_per_layer"] = sorted({int(len(mask) - mask.sum()) for mask in plans[name].neurons})
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--ratios", type=_floats, default=(0.2, 0.3))
    parser.add_argument("--multiple", type=int, default=1)
    parser.add_argument("--batches", type=_integers, default=(1,))
    parser.add_argument("--prompts", type=_integers, default=(128,))
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mode")
    print(json.dumps(run(**vars(parser.parse_args())), indent=1))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


if __name__ == "__main__":
    main()
