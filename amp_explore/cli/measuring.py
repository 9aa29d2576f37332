"""`measure`, `ablate` and `compare`: what a plan, each single unit, and many plans do to the model."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp_explore.cli.options import (
    EVALUATION,
    EVALUATION_WINDOWS,
    add_calibration,
    add_model,
    add_windows,
    calibration,
    names,
    open_model,
    ratios,
    text_of,
)
from amp_explore.cli.terminal import ProgressBar, on, table
from amp_explore.errors import AmpExploreError

if TYPE_CHECKING:
    from amp_explore.plan import PruningPlan


def add_to(commands: argparse._SubParsersAction) -> None:
    measure = commands.add_parser("measure", help="measure the dense model, and a plan beside it")
    add_model(measure, dtype="auto")
    measure.add_argument("--plan", type=Path, metavar="FILE", help="measure this plan beside the dense model")
    measure.add_argument("--perplexity", action="store_true")
    measure.add_argument("--data", choices=EVALUATION, default="wiki", help="text for perplexity")
    measure.add_argument("--text", type=Path, metavar="FILE", help="own text for perplexity")
    measure.add_argument("--windows", type=int, metavar="N", help=f"default {EVALUATION_WINDOWS}; all of --text")
    add_windows(measure)
    measure.add_argument("--tasks", metavar="piqa,...", help="commonsense tasks, or `all` five of AMP's")
    measure.add_argument("--limit", type=int, metavar="N", help="questions per task (default: all)")
    measure.add_argument("--hub", action="store_true", help="take the tasks' official data from the hub")
    measure.add_argument("--speed", action="store_true", help="tokens per second, prefill and decode")
    measure.add_argument("--batch", type=int, default=1, metavar="B", help="for --speed: sequences at once")
    measure.add_argument("--prompt", type=int, default=128, metavar="T", help="for --speed: tokens before decoding")
    measure.add_argument("--new-tokens", type=int, default=32, metavar="N", help="for --speed: tokens decoded")
    measure.add_argument("--repeats", type=int, default=5, metavar="N", help="for --speed: timed rounds")
    measure.add_argument(
        "--mode",
        choices=["eager", "graph", "compiled"],
        help="for --speed: how to decode (default: what shows the model's own speed on the device)",
    )
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    measure.set_defaults(command=_measure)

    ablate = commands.add_parser("ablate", help="measure the loss without each head in turn: the ground truth")
    add_model(ablate, dtype="float32")
    add_calibration(ablate, windows=4)
    ablate.add_argument("--block", type=int, metavar="N", help="blocks of N neighbouring neurons too")
    ablate.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="safetensors: heads (layers, heads), rise of the loss"
    )
    ablate.set_defaults(command=_ablate)

    compare = commands.add_parser("compare", help="perplexity of many plans: criteria by ratios by repairs")
    add_model(compare, dtype="float32")
    compare.add_argument("--ratios", type=ratios, required=True, metavar="R,R", help="shares of all parameters")
    compare.add_argument("--criteria", type=names, default=["amp"], metavar="NAME,NAME", help="see `criteria`")
    compare.add_argument("--allocations", type=names, default=["uniform"], metavar="NAME,NAME")
    compare.add_argument("--repairs", type=names, default=["none"], metavar="NAME,NAME", help="none, bias, ...")
    add_calibration(compare)
    compare.add_argument("--data", choices=EVALUATION, default="wiki", help="text for perplexity")
    compare.add_argument("--evaluation-text", type=Path, metavar="FILE", help="own text for perplexity")
    compare.add_argument("--evaluation-windows", type=int, default=EVALUATION_WINDOWS, metavar="N")
    compare.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, CSV")
    compare.set_defaults(command=_compare)


def _measure(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.folders import write_atomically
    from amp_explore.measure import commonsense
    from amp_explore.plan import PruningPlan
    from amp_explore.surgery.costs import costs_of_model
    from amp_explore.texts.calibration import evaluation_windows

    tasks = [] if not options.tasks else list(commonsense.TASKS) if options.tasks == "all" else options.tasks.split(",")
    if tasks:
        commonsense.check(tasks, options.limit)
    bench, loaded = open_model(options, progress)
    empty = PruningPlan.empty(loaded.shape)
    plan = PruningPlan.load(options.plan, loaded.shape) if options.plan else None
    sides = {"dense": empty} | ({"pruned": plan} if plan else {})
    report: dict[str, Any] = {
        "model": loaded.describe(),
        "plan": _plan_summary(plan),
        "dense": {},
        "pruned": None,
    }
    if failures := bench.known_failures():
        report["failed_checks"] = failures
    for side, which in sides.items():
        progress.side = side
        report[side] = costs_of_model(bench.sliced(loaded, which, progress=progress)).as_dict()
    if options.perplexity:
        usual = None if options.text else EVALUATION_WINDOWS
        count = usual if options.windows is None else options.windows
        windows = evaluation_windows(
            loaded.tokenizer,
            options.data,
            text=options.text,
            window=options.window,
            windows=count,
            bos=options.bos,
        )
        for side, which in sides.items():
            progress.side = side
            report[side]["perplexity"] = bench.perplexity(loaded, which, windows, progress=progress)
    if tasks:
        data = "hub" if options.hub else "offline"
        for side, which in sides.items():
            progress.side = side
            report[side]["tasks"] = bench.tasks(loaded, which, tasks, limit=options.limit, data=data, progress=progress)
    if options.speed:
        progress.side = ""
        options_of_speed = {
            name: getattr(options, name) for name in ("batch", "prompt", "new_tokens", "repeats", "mode")
        }
        measured = bench.speed(loaded, plan or empty, progress=progress, **options_of_speed)
        for side in sides:
            report[side]["speed"] = measured[side] | {"machine": measured["machine"]}
    progress.clear()
    if options.json:
        write_atomically(options.json, json.dumps(report, indent=1).encode())
    print(table(report))


def _ablate(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.folders import write_atomically
    from amp_explore.studies.ablation import ablate

    bench, loaded = open_model(options, progress)
    windows = calibration(loaded, options)
    found = ablate(bench, loaded, windows, block=options.block, progress=progress)
    described = {"dense_loss": found.dense_loss, **loaded.describe(), **windows.describe()}
    write_atomically(options.out, found.to_safetensors(**{key: str(value) for key, value in described.items()}))
    progress.clear()
    print(f"{options.out}: {found.measured} ablations of {loaded.name} on {on(windows.describe())}")


def _compare(options: argparse.Namespace, progress: ProgressBar) -> None:
    import pandas as pd

    from amp_explore.folders import write_atomically
    from amp_explore.plan import REPAIRS
    from amp_explore.studies import comparison
    from amp_explore.texts.calibration import evaluation_windows

    wanted = comparison.recipes(options.ratios, options.criteria, options.allocations)
    if unknown := set(options.repairs) - {"none", *REPAIRS}:
        raise AmpExploreError(f"repair {unknown.pop()!r} is not known; use some of none, {', '.join(REPAIRS)}")
    bench, loaded = open_model(options, progress)
    repairs = [
        None if method == "none" else bench.repair_by(loaded, method, **text_of(options)) for method in options.repairs
    ]
    text = evaluation_windows(
        loaded.tokenizer,
        options.data,
        text=options.evaluation_text,
        window=options.window,
        windows=options.evaluation_windows,
        bos=options.bos,
    )
    rows = comparison.compare(bench, loaded, calibration(loaded, options), text, wanted, repairs, progress=progress)
    table = pd.DataFrame([row.as_dict() for row in rows])
    write_atomically(options.out, table.to_csv(index=False).encode())
    progress.clear()
    print(table[["criterion", "allocation", "ratio", "repair", "removed", "perplexity"]].to_string(index=False))
    print(f"{options.out}: perplexity on {on(text.describe())}")


def _plan_summary(plan: PruningPlan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    from amp_explore.surgery.costs import removed_parameters

    return {
        "digest": plan.digest,
        "removed_heads": int(plan.removed_per_layer("heads").sum()),
        "removed_neurons": int(plan.removed_per_layer("neurons").sum()),
        "ratio": removed_parameters(plan) / plan.shape.parameters,
        "repair": asdict(plan.repair) if plan.repair else None,
        "made_by": dict(plan.made_by),
    }
