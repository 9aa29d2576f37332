"""Tokens per second of dense and pruned models over batch and context, beside the roofline.

python -m benchmarks.decode --model random:llama-2-7b --device cuda
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import dataclass

from transformers import PreTrainedModel

from amp_explore.budgets.allocation import allocate, rank
from amp_explore.errors import AmpExploreError, TooLarge
from amp_explore.measure.roofline import Machine, decode_work, measure_machine, prefill_work
from amp_explore.measure.speed import FIGURES, measure, speedup
from amp_explore.models.loading import LoadedModel, load
from amp_explore.plan import PruningPlan
from amp_explore.surgery.slicing import slice_model


@dataclass(frozen=True)
class Setting:
    """A dense model, plans by name ("dense" is empty), the models sliced by them, and the machine they run on."""

    loaded: LoadedModel
    machine: Machine
    multiple: int
    plans: dict[str, PruningPlan]
    models: dict[str, PreTrainedModel]


def prepare(loaded: LoadedModel, *, ratios: tuple[float, ...] = (0.2, 0.3), multiple: int = 1) -> Setting:
    """AMP's uniform plans at the ratios. Which units go does not matter to speed: they are drawn by lot."""
    ranking = rank(loaded.shape, None, "random")
    plans = {"dense": PruningPlan.empty(loaded.shape)}
    for ratio in ratios:
        plans[f"amp{ratio:.0%}".rstrip("%")] = allocate(ranking, ratio, multiple=multiple)
    models = {name: slice_model(loaded, plan) for name, plan in plans.items()}
    return Setting(loaded, measure_machine(loaded.device, loaded.model.dtype), multiple, plans, models)


def measure_case(setting: Setting, *, batch: int, prompt: int, **options: object) -> dict[str, object]:
    """All models of the setting, in turn, with what the roofline allows; or why they cannot run so."""
    case: dict[str, object] = {"batch": batch, "prompt": prompt, "multiple_of": setting.multiple}
    try:
        results = measure(setting.models, batch=batch, prompt=prompt, **options)
    except TooLarge as error:
        return case | {"too_large": str(error)}
    except AmpExploreError as error:
        return case | {"refused": str(error)}
    case["setup"] = results["dense"]["setup"]
    new_tokens = results["dense"]["setup"]["new_tokens"]
    for name, result in results.items():
        plan = setting.plans[name]
        prefill = prefill_work(plan, batch=batch, tokens=prompt)
        decode = decode_work(plan, batch=batch, context=prompt + new_tokens // 2)
        most = {
            FIGURES[0]: batch * prompt / prefill.seconds(setting.machine),
            FIGURES[1]: batch / decode.seconds(setting.machine),
            FIGURES[2]: batch / decode.seconds(setting.machine),
        }
        figures = {
            figure: summary | {"roofline": most[figure], "roofline_share": summary["median"] / most[figure]}
            for figure, summary in result.items()
            if figure in most
        }
        case[name] = figures | {
            "speedup": speedup(results["dense"], result),
            "heads_per_layer": sorted({int(len(mask) - mask.sum()) for mask in plan.heads}),
            "neurons_per_layer": sorted({int(len(mask) - mask.sum()) for mask in plan.neurons}),
        }
    return case


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
    """Every batch with every length of prompt: the model, the machine, and one entry for each case."""
    setting = prepare(load(model, device=device, dtype="bfloat16"), ratios=ratios, multiple=multiple)
    cases = [
        measure_case(setting, batch=batch, prompt=prompt, **options)
        for batch, prompt in itertools.product(batches, prompts)
    ]
    return {"model": setting.loaded.describe(), "machine": setting.machine.as_dict(), "cases": cases}


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
