"""The command line: `python -m amp_explore fetch | score | plan | measure | ablate | compare | run` and so on.

Results go to files and to standard output, progress and errors to standard error. The exit code is 0 only on success;
an error is one line that says what to do next.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from amp_explore.cli.terminal import ProgressBar, on, table
from amp_explore.errors import AmpExploreError
from amp_explore.progress import Cancelled

if TYPE_CHECKING:  # the engine takes seconds to import, which --help and a wrong option need not wait for
    from amp_explore.models.loading import LoadedModel
    from amp_explore.plan import PruningPlan
    from amp_explore.texts.calibration import TokenWindows
    from amp_explore.workbench import Workbench

ROOT = Path(__file__).resolve().parents[2]
EVALUATION_WINDOWS = 64  # of the bundled text, unless asked otherwise
_EVALUATION = ("wiki", "c4", "code", "wikitext2")
_RECIPE = ("criterion", "heads_criterion", "allocation", "order", "seed", "multiple", "whole_groups")
_RECIPE += ("first", "last", "steps", "generations")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with ProgressBar() as progress:
            options.command(options, progress)
    except AmpExploreError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except sqlite3.Error as error:
        print(
            f"error: the cache's runs.sqlite cannot be used ({error}); move it away, or set AMP_EXPLORE_CACHE",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Cancelled):
        print("error: cancelled; nothing half-made was left", file=sys.stderr)
        return 130
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m amp_explore", description="Explore structured pruning of language models.")
    commands = parser.add_subparsers(required=True, metavar="command")

    fetch = commands.add_parser("fetch", help="fetch the demo model and the offline data into cache/")
    fetch.set_defaults(command=_fetch)

    score = commands.add_parser("score", help="score every head and neuron")
    _model_options(score, dtype="float32")
    _score_options(score)
    score.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="safetensors: heads and neurons, (layers, units)",
    )
    score.set_defaults(command=_score)

    plan = commands.add_parser("plan", help="decide which heads and neurons go")
    _model_options(plan, dtype="float32")
    size = plan.add_argument_group("how much goes (one of)")
    size.add_argument("--ratio", type=float, metavar="R", help="share of all the model's parameters")
    size.add_argument("--flops", type=float, metavar="R", help="share of the FLOPs of a token")
    size.add_argument("--parameters", type=float, metavar="N", help="so many parameters stay, e.g. 100e6")
    size.add_argument("--megabytes", type=float, metavar="M", help="so many MiB of weights stay, in --dtype")
    size.add_argument(
        "--layers-worth",
        type=float,
        metavar="K",
        help="as many parameters as K whole layers (the AMP authors' unit)",
    )
    size.add_argument(
        "--heads-ratio",
        type=_ratios,
        metavar="R",
        help="share of heads; one number, or one per layer: 0.1,0.2,...",
    )
    size.add_argument("--neurons-ratio", type=_ratios, metavar="R", help="share of neurons, likewise")
    plan.add_argument(
        "--allocation", default="uniform", metavar="NAME", help="how layers share the ratio; see `allocations`"
    )
    plan.add_argument("--first", type=int, default=1, metavar="N", help="with protect: lowest layers left whole")
    plan.add_argument("--last", type=int, default=1, metavar="N", help="with protect: highest layers left whole")
    plan.add_argument("--steps", type=int, default=5, metavar="N", help="with iterative: steps")
    plan.add_argument("--generations", type=int, default=30, metavar="N", help="with search: generations")
    plan.add_argument(
        "--repair",
        choices=["none", "bias", "least-squares", "sequential"],
        default="none",
        help="fit what remains on the calibration text, whenever the plan is run",
    )
    plan.add_argument(
        "--multiple-of",
        dest="multiple",
        type=int,
        default=1,
        metavar="N",
        help="with uniform, protect or angular: layers keep a multiple of N neurons (GPUs like 64 or 128)",
    )
    plan.add_argument(
        "--whole-groups",
        action="store_true",
        help="with uniform, protect or angular: heads go with their whole KV group, neurons with their whole expert",
    )
    plan.add_argument(
        "--order", choices=["standard", "reversed", "random"], default="standard", help="which units go first"
    )
    plan.add_argument("--scores", type=Path, metavar="FILE", help="scores made by `score`, instead of scoring now")
    _score_options(plan)
    plan.add_argument("--out", type=Path, required=True, metavar="FILE", help="the plan, JSON")
    plan.set_defaults(command=_plan)

    measure = commands.add_parser("measure", help="measure the dense model, and a plan beside it")
    _model_options(measure, dtype="auto")
    measure.add_argument("--plan", type=Path, metavar="FILE", help="measure this plan beside the dense model")
    measure.add_argument("--perplexity", action="store_true")
    measure.add_argument("--data", choices=_EVALUATION, default="wiki", help="text for perplexity")
    measure.add_argument("--text", type=Path, metavar="FILE", help="own text for perplexity")
    measure.add_argument("--windows", type=int, metavar="N", help=f"default {EVALUATION_WINDOWS}; all of --text")
    _window_options(measure)
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
    _model_options(ablate, dtype="float32")
    _calibration_options(ablate, windows=4)
    ablate.add_argument("--block", type=int, metavar="N", help="blocks of N neighbouring neurons too")
    ablate.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="safetensors: heads (layers, heads), rise of the loss"
    )
    ablate.set_defaults(command=_ablate)

    compare = commands.add_parser("compare", help="perplexity of many plans: criteria by ratios by repairs")
    _model_options(compare, dtype="float32")
    compare.add_argument("--ratios", type=_ratios, required=True, metavar="R,R", help="shares of all parameters")
    compare.add_argument("--criteria", type=_names, default=["amp"], metavar="NAME,NAME", help="see `criteria`")
    compare.add_argument("--allocations", type=_names, default=["uniform"], metavar="NAME,NAME")
    compare.add_argument("--repairs", type=_names, default=["none"], metavar="NAME,NAME", help="none, bias, ...")
    _calibration_options(compare)
    compare.add_argument("--data", choices=_EVALUATION, default="wiki", help="text for perplexity")
    compare.add_argument("--evaluation-text", type=Path, metavar="FILE", help="own text for perplexity")
    compare.add_argument("--evaluation-windows", type=int, default=EVALUATION_WINDOWS, metavar="N")
    compare.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, CSV")
    compare.set_defaults(command=_compare)

    for name, what in (("criteria", "the criteria"), ("allocations", "the ways to share a budget between layers")):
        listing = commands.add_parser(name, help=f"list {what}: what each covers, its formula and source")
        listing.set_defaults(command=_list, what=name)

    run = commands.add_parser("run", help="open the dashboard on 127.0.0.1")
    run.add_argument("--port", type=int, default=8501)
    run.add_argument("--no-browser", action="store_true", help="only serve")
    run.set_defaults(command=_run)
    return parser


def _model_options(parser: argparse.ArgumentParser, *, dtype: str) -> None:
    parser.add_argument(
        "--model", required=True, metavar="M", help="demo, a hub id, a folder, a .gguf file, or random:SHAPE"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:1, ...; balanced or sequential spread over several devices",
    )
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default=dtype)


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--criterion", default="amp", metavar="NAME", help="default amp; see `criteria`")
    parser.add_argument(
        "--heads-criterion", metavar="NAME", help="another criterion for heads (default: the same, or amp)"
    )
    _calibration_options(parser)


def _calibration_options(parser: argparse.ArgumentParser, *, windows: int = 64) -> None:
    parser.add_argument(
        "--calibration",
        choices=["wiki", "c4", "code", "alpaca"],
        default="wiki",
        help="bundled text, or alpaca (hub)",
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="own calibration text")
    parser.add_argument("--windows", type=int, default=windows, metavar="N")
    _window_options(parser)
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the calibration windows, and the units of --order random"
    )


def _window_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--window", type=int, default=512, metavar="T", help="tokens per window")
    parser.add_argument(
        "--bos", choices=["auto", "always", "never"], default="auto", help="a BOS in front of each window"
    )


def _ratios(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor numbers with commas between them") from None


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _fetch(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.models.loading import load
    from amp_explore.texts import assets

    assets.fetch(progress=progress)
    _quiet()
    load("demo", dtype="float32", progress=progress)  # converts the GGUF, once
    progress.clear()
    print(f"the demo model and the offline data are in {assets.cache_root()}")


def _score(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.keeping.store import write_atomically

    bench, loaded = _open(options, progress)
    windows = _calibration(loaded, options)
    scores = bench.scores(loaded, windows, options.criterion, options.heads_criterion, progress=progress)
    described = {"criterion": options.criterion, **loaded.describe(), **windows.describe()}
    write_atomically(options.out, scores.to_safetensors(**{key: str(value) for key, value in described.items()}))
    progress.clear()
    print(f"{options.out}: {options.criterion} scores of {loaded.name} on {on(windows.describe())}")


def _plan(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.budgets import allocation
    from amp_explore.criteria.scores import Scores
    from amp_explore.keeping.store import write_atomically
    from amp_explore.studies.recipe import TAKE_THEIR_TIME, Recipe, make_plan
    from amp_explore.surgery import costs
    from amp_explore.surgery.repair import caveat

    units = options.heads_ratio is not None or options.neurons_ratio is not None
    sizes = ("ratio", "flops", "parameters", "megabytes", "layers_worth")
    asked = [name for name in sizes if getattr(options, name) is not None]
    if len(asked) + units != 1:
        raise AmpExploreError(
            "say how much goes by one of --ratio, --flops, --parameters, --megabytes, --layers-worth, or "
            "--heads-ratio with --neurons-ratio"
        )
    if options.scores and options.allocation == "iterative":
        raise AmpExploreError("small steps score anew before each step; leave out --scores")
    bench, loaded = _open(options, progress)
    scores = Scores.load(options.scores, loaded.shape) if options.scores else None
    scored = scores is None and options.order != "random"
    measured = options.allocation in {"angular", *TAKE_THEIR_TIME}
    windows = _calibration(loaded, options) if scored or measured else None
    repair = None if options.repair == "none" else bench.repair_by(loaded, options.repair, **_text_of(options))
    if units:
        if scored:
            scores = bench.scores(loaded, windows, options.criterion, options.heads_criterion, progress=progress)
        ranking = allocation.rank(loaded.shape, scores, options.order, options.seed)
        layers = len(loaded.shape.layers)
        spread = [
            ratios * layers if len(ratios) == 1 else ratios
            for ratios in (options.heads_ratio or [0.0], options.neurons_ratio or [0.0])
        ]
        plan = allocation.allocate_by_layer(ranking, *spread)
        made_by = {"criterion": options.criterion, "order": options.order, "seed": options.seed}
        made_by |= {"heads_ratio": options.heads_ratio, "neurons_ratio": options.neurons_ratio}
    else:
        shape, size = loaded.shape, getattr(options, asked[0])
        ratio = {
            "parameters": lambda: allocation.ratio_that_leaves(shape, size),
            "megabytes": lambda: allocation.ratio_that_leaves(shape, size * 2**20 / shape.bytes_per_parameter),
            "layers_worth": lambda: allocation.ratio_of_layers(shape, size),
        }.get(asked[0], lambda: size)()
        counted = "flops" if asked == ["flops"] else "parameters"
        recipe = Recipe(ratio, counted=counted, **{name: getattr(options, name) for name in _RECIPE})
        plan = make_plan(bench, loaded, windows, recipe, scores=scores, repair=repair, progress=progress)
        made_by = dict(plan.made_by)
    if options.scores:
        made_by["scores"] = options.scores.name
    elif scored:
        made_by |= {"dtype": loaded.dtype, "calibration": windows.describe()}
    plan = plan.repaired(repair)
    write_atomically(options.out, plan.described(**made_by).to_json().encode())
    progress.clear()
    share = costs.removed_parameters(plan) / loaded.shape.parameters
    heads, neurons = plan.removed_per_layer("heads").sum(), plan.removed_per_layer("neurons").sum()
    print(f"{options.out}: {heads} heads and {neurons} neurons go, {share:.2%} of all parameters")
    if repair and (said := caveat(repair.method, loaded.shape, bench.repair_windows(loaded, repair))):
        print(f"note: {said}", file=sys.stderr)


def _measure(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.keeping.store import write_atomically
    from amp_explore.measure import commonsense
    from amp_explore.plan import PruningPlan
    from amp_explore.surgery.costs import costs_of_model
    from amp_explore.texts.calibration import evaluation_windows

    tasks = [] if not options.tasks else list(commonsense.TASKS) if options.tasks == "all" else options.tasks.split(",")
    if tasks:
        commonsense.check(tasks, options.limit)
    bench, loaded = _open(options, progress)
    empty = PruningPlan.empty(loaded.shape)
    plan = PruningPlan.load(options.plan, loaded.shape) if options.plan else None
    sides = {"dense": empty} | ({"pruned": plan} if plan else {})
    report: dict[str, Any] = {
        "model": loaded.describe(),
        "plan": _plan_summary(plan),
        "dense": {},
        "pruned": None,
    }
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
    from amp_explore.keeping.store import write_atomically
    from amp_explore.studies.ablation import ablate

    bench, loaded = _open(options, progress)
    windows = _calibration(loaded, options)
    found = ablate(bench, loaded, windows, block=options.block, progress=progress)
    described = {"dense_loss": found.dense_loss, **loaded.describe(), **windows.describe()}
    write_atomically(options.out, found.to_safetensors(**{key: str(value) for key, value in described.items()}))
    progress.clear()
    print(f"{options.out}: {found.measured} ablations of {loaded.name} on {on(windows.describe())}")


def _compare(options: argparse.Namespace, progress: ProgressBar) -> None:
    import pandas as pd

    from amp_explore.keeping.store import write_atomically
    from amp_explore.plan import REPAIRS
    from amp_explore.studies import comparison
    from amp_explore.texts.calibration import evaluation_windows

    wanted = comparison.recipes(options.ratios, options.criteria, options.allocations)
    if unknown := set(options.repairs) - {"none", *REPAIRS}:
        raise AmpExploreError(f"repair {unknown.pop()!r} is not known; use some of none, {', '.join(REPAIRS)}")
    bench, loaded = _open(options, progress)
    repairs = [
        None if method == "none" else bench.repair_by(loaded, method, **_text_of(options)) for method in options.repairs
    ]
    text = evaluation_windows(
        loaded.tokenizer,
        options.data,
        text=options.evaluation_text,
        window=options.window,
        windows=options.evaluation_windows,
        bos=options.bos,
    )
    rows = comparison.compare(bench, loaded, _calibration(loaded, options), text, wanted, repairs, progress=progress)
    table = pd.DataFrame([row.as_dict() for row in rows])
    write_atomically(options.out, table.to_csv(index=False).encode())
    progress.clear()
    print(table[["criterion", "allocation", "ratio", "repair", "removed", "perplexity"]].to_string(index=False))
    print(f"{options.out}: perplexity on {on(text.describe())}")


def _list(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.criteria.registry import CRITERIA
    from amp_explore.studies.recipe import ALLOCATIONS

    for name, each in (CRITERIA if options.what == "criteria" else ALLOCATIONS).items():
        covers = f" ({each.covers})" if options.what == "criteria" else ""
        print(f"{name}{covers}: {each.says}\n    {each.formula}\n    {each.source}")


def _run(options: argparse.Namespace, progress: ProgressBar) -> None:
    from amp_explore.workbench import prepare_demo

    _quiet()
    prepare_demo(progress)
    progress.clear()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(options.port)]
    command += ["--server.headless", "true" if options.no_browser or not _can_open_browser() else "false"]
    print(f"AMP Explore is opening on http://127.0.0.1:{options.port} (Ctrl+C ends it)", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server must not outlive this process
    server = subprocess.Popen(command, cwd=ROOT)
    try:
        code = server.wait()
    finally:
        server.terminate()
    if code:
        raise AmpExploreError(
            f"the dashboard ended with code {code}; see its message above (is port {options.port} taken?)"
        )


def _can_open_browser() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(options: argparse.Namespace, progress: ProgressBar) -> tuple[Workbench, LoadedModel]:
    from amp_explore.workbench import Workbench

    _quiet()
    bench = Workbench()
    return bench, bench.pool.get(options.model, device=options.device, dtype=options.dtype, progress=progress)


def _quiet() -> None:
    """Keep the libraries' own progress bars and warnings off a terminal that has ours."""
    from logging import ERROR, getLogger

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    getLogger("accelerate").setLevel(ERROR)


def _text_of(options: argparse.Namespace) -> dict[str, Any]:
    """The options that name the calibration text, as `calibration_windows` takes them."""
    named = {name: getattr(options, name) for name in ("text", "window", "windows", "bos", "seed")}
    return {"source": options.calibration, **named}


def _calibration(loaded: LoadedModel, options: argparse.Namespace) -> TokenWindows:
    from amp_explore.texts.calibration import calibration_windows

    return calibration_windows(loaded.tokenizer, **_text_of(options))


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
