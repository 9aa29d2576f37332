"""The command line as people and scripts use it: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from made_up import ids_of, made_up_text, save_tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import HEADS, LAYERS, NEURONS, tiny

from amp_explore import cli
from amp_explore.criteria.layer import Evidence
from amp_explore.criteria.registry import CRITERIA, score
from amp_explore.measure.perplexity import perplexity
from amp_explore.observe.statistics import collect
from amp_explore.plan import REPAIRS, PruningPlan
from amp_explore.studies.recipe import ALLOCATIONS
from amp_explore.surgery.costs import costs_of_plan
from amp_explore.surgery.masking import mask
from amp_explore.texts.calibration import TokenWindows

ROOT = Path(__file__).resolve().parents[2]
TEXT = made_up_text(1003)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with everything that commands need; nothing in it is changed."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny(folder / "model")
    (folder / "text.txt").write_text(TEXT)
    return folder


@pytest.fixture(autouse=True)
def place(request, tmp_path, monkeypatch, saved) -> Path:
    """Each test runs in a folder of its own, with `model` and `text.txt` in it. Demo tests have the real cache, others
    an empty one."""
    monkeypatch.chdir(tmp_path)
    for name in ("model", "text.txt"):
        (tmp_path / name).symlink_to(saved / name)
    if not request.node.get_closest_marker("demo"):
        monkeypatch.setenv("AMP_EXPLORE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def run(capsys):
    """run("score --model model ...") -> (exit code, standard output, standard error)."""

    def command(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main(line.split())
        except SystemExit as end:  # argparse ends the process for --help and for wrong options
            code = end.code
        return code, *capsys.readouterr()

    return command


@pytest.fixture
def good(run):
    """As `run`, for commands that must succeed without a word on standard error; gives standard output."""

    def command(line: str) -> str:
        code, output, errors = run(line)
        assert (code, errors) == (0, "")
        return output

    return command


SCORE = "score --model model --device cpu --text text.txt --window 16 --windows 4"
PLAN = "plan --model model --device cpu --text text.txt --window 16 --windows 4"
MEASURE = "measure --model model --device cpu --dtype float32 --text text.txt --window 16"


def windows(count: int | None) -> TokenWindows:
    """The windows that TEXT has to be cut into."""
    ids = torch.tensor(ids_of(TEXT[: 16 * (count or len(TEXT) // 16)])).view(-1, 16)
    return TokenWindows(tuple(ids), "text.txt", False)


def load_plan(name: str) -> PruningPlan:
    """A plan file, fitted to the model in memory, which has another fingerprint than the folder."""
    document = json.loads(Path(name).read_text())
    document["model"]["fingerprint"] = None
    return PruningPlan.from_json(json.dumps(document), tiny("llama").shape)


# score


@pytest.mark.parametrize("criterion", ["amp", "amp-projection"])
def test_score_writes_heads_and_neurons_of_every_layer(good, criterion):
    output = good(f"{SCORE} --criterion {criterion} --out scores.safetensors")
    assert "scores.safetensors" in output and "4 windows of 16 tokens" in output
    tensors = load_file("scores.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        "heads": ((LAYERS, HEADS), torch.float32),
        "neurons": ((LAYERS, NEURONS), torch.float32),
    }
    loaded = tiny("llama")
    expected = score(loaded, Evidence(collect(loaded, windows(4))), criterion)
    np.testing.assert_allclose(tensors["heads"], np.stack(expected.heads), rtol=1e-6)
    np.testing.assert_allclose(tensors["neurons"], np.stack(expected.neurons), rtol=1e-6)


def test_scores_say_what_they_were_measured_on(good):
    good(f"{SCORE} --out scores.safetensors")
    with safe_open("scores.safetensors", "np") as file:
        said = file.metadata()
    wanted = ("criterion", "architecture", "dtype", "data", "windows", "window", "bos")
    assert [said[key] for key in wanted] == ["amp", "llama", "float32", "text.txt", "4", "16", "False"]


def test_scoring_twice_gives_the_same_scores_and_uses_the_cache(good, place):
    good(f"{SCORE} --out one.safetensors")
    kept = {path: path.stat().st_mtime_ns for path in (place / "cache" / "statistics").glob("*.safetensors")}
    good(f"{SCORE} --out two.safetensors")
    one, two = load_file("one.safetensors"), load_file("two.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in ("heads", "neurons"))
    assert (
        {path: path.stat().st_mtime_ns for path in (place / "cache" / "statistics").glob("*.safetensors")} == kept != {}
    )


def test_bos_goes_in_front_of_each_window(good):
    for bos in ("auto", "always", "never"):
        good(f"{SCORE} --bos {bos} --out {bos}.safetensors")
    auto, always, never = (load_file(f"{bos}.safetensors")["heads"] for bos in ("auto", "always", "never"))
    assert torch.equal(auto, never) and not torch.allclose(always, never)


# plan


def test_plan_writes_the_contract(good):
    output = good(f"{PLAN} --ratio 0.2 --out plan.json")
    document = json.loads(Path("plan.json").read_text())
    assert list(document) == ["format", "version", "model", "layers", "made_by"]
    assert (document["format"], document["version"]) == ("amp-explore/plan", 1)
    assert document["model"] | {"fingerprint": "?"} == {
        "fingerprint": "?",
        "layers": LAYERS,
        "heads": [HEADS] * LAYERS,
        "kv_heads": [2] * LAYERS,
        "neurons": [NEURONS] * LAYERS,
    }
    assert [sorted(layer) for layer in document["layers"]] == [["heads", "neurons"]] * LAYERS
    said = document["made_by"]
    assert (said["criterion"], said["ratio"], said["order"]) == ("amp", 0.2, "standard")
    heads, neurons = (sum(len(layer[unit]) for layer in document["layers"]) for unit in ("heads", "neurons"))
    assert f"plan.json: {heads} heads and {neurons} neurons go" in output


def test_the_lowest_scores_go_and_reversed_the_highest(good):
    good(f"{SCORE} --out scores.safetensors")
    scores = load_file("scores.safetensors")
    for order, sign in (("standard", 1), ("reversed", -1)):
        good(f"{PLAN} --ratio 0.3 --order {order} --out {order}.json")
        plan = load_plan(f"{order}.json")
        for unit in ("heads", "neurons"):
            for gone, of_layer in zip(getattr(plan, unit), sign * scores[unit].numpy(), strict=True):
                assert gone.any() and of_layer[gone].max() < of_layer[~gone].min()


def test_a_plan_from_a_scores_file_is_that_of_scoring_now(good):
    good(f"{SCORE} --out scores.safetensors")
    good("plan --model model --device cpu --scores scores.safetensors --ratio 0.3 --out one.json")
    good(f"{PLAN} --ratio 0.3 --out two.json")
    assert load_plan("one.json") == load_plan("two.json")


def test_random_plans_need_no_text_and_follow_the_seed(good):
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        good(f"plan --model model --device cpu --ratio 0.3 --order random --seed {seed} --out {name}.json")
    one, same, other = (load_plan(f"{name}.json") for name in ("one", "same", "other"))
    assert one == same != other and json.loads(Path("other.json").read_text())["made_by"]["seed"] == 2


@pytest.mark.parametrize(
    ("options", "heads", "neurons"),
    [
        ("--heads-ratio 0.5", [3] * 4, [0] * 4),
        ("--neurons-ratio 0.25", [0] * 4, [10] * 4),
        ("--heads-ratio 0.5 --neurons-ratio 0.25", [3] * 4, [10] * 4),
        ("--heads-ratio 0,0.5,1,0 --neurons-ratio 1,0,0,0.1", [0, 3, 6, 0], [40, 0, 0, 4]),
        ("--ratio 0", [0] * 4, [0] * 4),
        ("--heads-ratio 0 --neurons-ratio 0", [0] * 4, [0] * 4),
    ],
)
def test_how_much_goes(good, options, heads, neurons):
    good(f"{PLAN} {options} --out plan.json")
    plan = load_plan("plan.json")
    assert list(plan.removed_per_layer("heads")) == heads
    assert list(plan.removed_per_layer("neurons")) == neurons


def test_layers_worth_is_the_authors_unit(good):
    good(f"{PLAN} --layers-worth 1 --out plan.json")
    shape = tiny("llama").shape
    said = json.loads(Path("plan.json").read_text())["made_by"]["ratio"]
    assert said == pytest.approx(shape.layers[0].prunable_parameters / shape.parameters)


@pytest.mark.parametrize("option", ["--parameters {parameters}", "--megabytes {megabytes}", "--flops 0.25"])
def test_how_much_stays(good, option):
    shape = tiny("llama").shape
    parameters = 0.75 * shape.parameters
    good(f"{PLAN} {option.format(parameters=parameters, megabytes=parameters * 4 / 2**20)} --out plan.json")
    left, dense = costs_of_plan(load_plan("plan.json")), costs_of_plan(PruningPlan.empty(shape))
    if option.startswith("--flops"):
        assert 0.65 <= left.flops_per_token / dense.flops_per_token <= 0.75  # within one head a layer
    else:
        assert abs(left.parameters - parameters) <= 4 * shape.layers[0].neuron_parameters


def test_heads_may_go_with_their_whole_group(good):
    good(f"{PLAN} --ratio 0.2 --whole-groups --out plan.json")
    plan = load_plan("plan.json")
    for number, layer in enumerate(plan.shape.layers):
        groups = np.array(layer.kv_of_head)
        assert all(len({*plan.heads[number][groups == group]}) == 1 for group in range(layer.kv_heads))


def test_a_repair_on_too_little_text_says_so(run):
    code, _, errors = run(f"{PLAN} --ratio 0.2 --windows 2 --repair least-squares --out plan.json")
    assert code == 0 and "its Gram matrix is singular" in errors


# measure


def report_of(good, line: str) -> dict:
    good(f"{line} --json report.json")
    return json.loads(Path("report.json").read_text())


def test_measure_writes_the_contract(good):
    good(f"{PLAN} --ratio 0.3 --out plan.json")
    report = report_of(good, f"{MEASURE} --plan plan.json --perplexity --windows 5 --speed")
    assert list(report) == ["model", "plan", "dense", "pruned"]
    assert report["model"]["architecture"] == "llama" and report["model"]["dtype"] == "float32"
    for side in ("dense", "pruned"):
        assert {"parameters", "perplexity", "speed"} <= set(report[side])
        assert report[side]["perplexity"]["windows"] == 5
        for figure in ("prefill_tokens_per_s", "decode_tokens_per_s"):
            assert report[side]["speed"][figure]["median"] > 0
        assert report[side]["speed"]["machine"]["bytes_per_s"] > 0

    loaded, plan = tiny("llama"), load_plan("plan.json")
    assert report["dense"]["parameters"] == sum(parameter.numel() for parameter in loaded.model.parameters())
    removed = report["dense"]["parameters"] - report["pruned"]["parameters"]
    assert report["plan"]["ratio"] == pytest.approx(removed / report["dense"]["parameters"])
    assert report["plan"]["ratio"] == pytest.approx(0.3, abs=0.05)
    for side, model in (("dense", loaded.model), ("pruned", mask(loaded, plan))):
        value = report[side]["perplexity"]["value"]
        assert value == pytest.approx(perplexity(model, windows(5))["value"], rel=1e-4)
        assert value == pytest.approx(math.exp(report[side]["perplexity"]["loss"]))


def test_measure_without_a_plan_has_no_pruned_side(good):
    report = report_of(good, f"{MEASURE} --perplexity")
    assert report["plan"] is None and report["pruned"] is None
    assert report["dense"]["perplexity"]["windows"] == len(TEXT) // 16, "a text of one's own is taken whole"


def test_the_empty_plan_measures_as_the_dense_model(good):
    good(f"{PLAN} --ratio 0 --out plan.json")
    report = report_of(good, f"{MEASURE} --plan plan.json --perplexity")
    assert report["pruned"] == report["dense"]
    assert report["plan"]["removed_heads"] == report["plan"]["removed_neurons"] == 0


def test_measure_prints_dense_beside_pruned(good):
    good(f"{PLAN} --ratio 0.3 --out plan.json")
    output = good(f"{MEASURE} --plan plan.json --perplexity")
    report = report_of(good, f"{MEASURE} --plan plan.json --perplexity")
    (row,) = [line.split() for line in output.splitlines() if line.startswith("perplexity")]
    assert row[1:] == [f"{report[side]['perplexity']['value']:.4f}" for side in ("dense", "pruned")]
    (row,) = [line.split() for line in output.splitlines() if line.startswith("parameters")]
    assert row[1:] == [f"{report[side]['parameters']:,}" for side in ("dense", "pruned")]


def test_results_are_files_that_others_may_read(good):
    Path("ordinary").touch()
    good(f"{PLAN} --ratio 0.3 --out plan.json")
    assert stat.S_IMODE(os.stat("plan.json").st_mode) == stat.S_IMODE(os.stat("ordinary").st_mode)


# What goes wrong: one line that says what to do, exit code 1; for a wrong option 2


@pytest.fixture
def bad_files(place):
    """Files that are not what a command wants."""
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes(b"caf\xe9" * 999)
    Path("broken.json").write_text("{")
    shape = tiny("qwen3").shape
    Path("other.json").write_text(PruningPlan.empty(shape).to_json())
    Path("narrow.json").write_text(PruningPlan.empty(shape).to_json().replace("[40, 40, 40, 40]", "[40, 40, 41, 40]"))
    save_file({"heads": torch.zeros(4, 6), "neurons": torch.zeros(4, 41)}, "wide.safetensors")
    Path("bloom").mkdir()
    Path("bloom/config.json").write_text('{"model_type": "bloom"}')
    Path("bloom/model.safetensors").touch()
    Path("pickled").mkdir()
    Path("pickled/config.json").write_text('{"model_type": "llama"}')
    Path("pickled/pytorch_model.bin").touch()
    Path("nonsense.gguf").write_bytes(b"nonsense" * 9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("score --model ./none --out x", "there is no such folder"),
        ("score --model bloom --out x", "'bloom' is not supported; use a model of one of"),
        ("score --model pickled --out x", "only pickled weights"),
        ("score --model nonsense.gguf --out x", "is not a GGUF file"),
        ("score --model demo --out x", "run `python -m amp_explore fetch`"),
        ("score --model model --device none --out x", "device 'none' is not usable here"),
        ("score --model model --out x", "run `python -m amp_explore fetch`"),
        (f"{SCORE} --text none.txt --out x", "cannot read the text none.txt"),
        (f"{SCORE} --text empty.txt --out x", "0 tokens, fewer than one window"),
        (f"{SCORE} --text latin.txt --out x", "not UTF-8"),
        (f"{SCORE} --window 2000 --out x", "use a longer text or shorter windows"),
        (f"{SCORE} --window 1 --out x", "window must be at least 2"),
        (f"{SCORE} --windows 0 --out x", "windows must be at least 1"),
        (f"{SCORE} --criterion magic --out x", "'magic' is not known; use one of amp"),
        (f"{SCORE} --out none/x.safetensors", "none/x.safetensors: No such file or directory"),
        (f"{SCORE} --out bloom", "bloom: Is a directory"),
        (f"{PLAN} --out x", "say how much goes by one of --ratio"),
        (f"{PLAN} --ratio 0.2 --heads-ratio 0.2 --out x", "say how much goes by one of --ratio"),
        (f"{PLAN} --ratio 2 --out x", "ratio must be between 0 and 1, not 2"),
        (f"{PLAN} --ratio nan --out x", "ratio must be between 0 and 1, not nan"),
        (f"{PLAN} --ratio -0.1 --out x", "ratio must be between 0 and 1, not -0.1"),
        (f"{PLAN} --ratio 0.99 --out x", "at most"),
        (f"{PLAN} --layers-worth -1 --out x", "must be between 0 and 1"),
        (f"{PLAN} --parameters 1e12 --out x", "1,000,000,000,000 cannot be left"),
        (f"{PLAN} --flops 0.99 --out x", "of the FLOPs are in heads and neurons that may go"),
        (f"{PLAN} --ratio 0.1 --whole-groups --multiple-of 8 --out x", "do not go together"),
        (f"{PLAN} --heads-ratio 1.5 --out x", "heads ratio must be between 0 and 1"),
        (f"{PLAN} --neurons-ratio 0.1,0.2 --out x", "2 neurons ratios for 4 layers"),
        (f"{PLAN} --ratio 0.2 --scores none.safetensors --out x", "none.safetensors: cannot be read as scores"),
        (f"{PLAN} --ratio 0.2 --scores text.txt --out x", "text.txt: cannot be read as scores"),
        (f"{PLAN} --ratio 0.2 --scores wide.safetensors --out x", "the neurons do not fit this model"),
        (f"{MEASURE} --plan none.json", "cannot read the plan none.json"),
        (f"{MEASURE} --plan broken.json", "broken.json: not a plan"),
        (f"{MEASURE} --plan other.json", "made for other weights"),
        (f"{MEASURE} --plan narrow.json", "layer 2 has 40 neurons, the plan says 41"),
        (f"{MEASURE} --perplexity --text none.txt", "cannot read the text none.txt"),
        (f"{MEASURE} --perplexity --windows 0", "windows must be at least 1, not 0"),
        (f"{MEASURE} --perplexity --bos always --window 0", "window must be at least 2"),
        (f"{MEASURE} --tasks trivia", "unknown task 'trivia'; choose from piqa"),
        (f"{MEASURE} --tasks piqa --limit 0", "give at least 1"),
        (f"{MEASURE} --tasks piqa", "run `python -m amp_explore fetch`"),
    ],
)
def test_a_mistake_is_told_in_one_line_and_leaves_no_file(run, bad_files, line, message):
    before = set(os.listdir())
    code, output, errors = run(line)
    assert (code, output) == (1, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert set(os.listdir()) - before <= {"cache"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "command"),
        ("prune", "invalid choice: 'prune'"),
        ("score --out x", "--model"),
        ("score --model model", "--out"),
        ("plan --model model --ratio much --out x", "--ratio"),
        ("plan --model model --heads-ratio 0.1,much --out x", "--heads-ratio"),
        ("plan --model model --ratio 0.1 --order sideways --out x", "--order"),
        ("measure --model model --dtype int4", "--dtype"),
        ("measure --model model --bos sometimes", "--bos"),
        ("measure --model model --unheard-of", "--unheard-of"),
        ("run --port web", "--port"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(run, line, message):
    code, output, errors = run(line)
    assert (code, output) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    assert message in errors and "--help" in errors and "_" not in errors.replace("amp_explore", "")


def test_an_unknown_criterion_is_refused_before_the_work(run, place):
    run(f"{SCORE} --criterion magic --out x")
    assert not list((place / "cache" / "statistics").glob("*"))


@pytest.mark.parametrize("command", ["", "fetch", "score", "plan", "measure", "run"])
def test_help_describes_every_option(run, command):
    code, output, errors = run(f"{command} --help")
    assert (code, errors) == (0, "")
    if command:
        assert command in output
    else:
        assert all(name in output for name in ("fetch", "score", "plan", "measure", "run"))


# As a process of its own


def process(line: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "amp_explore", *line.split()],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_process_says_nothing_but_its_result():
    done = process(f"{SCORE} --out scores.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and Path("scores.safetensors").exists()


def test_a_process_that_fails_says_nothing_but_its_error():
    done = process(f"{SCORE} --window 5000 --out scores.safetensors")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not Path("scores.safetensors").exists()


# The demo model


@pytest.mark.demo
def test_the_demo_model_goes_the_whole_way(good):
    good("score --model demo --device cpu --windows 2 --window 128 --out scores.safetensors")
    tensors = load_file("scores.safetensors")
    assert tensors["heads"].shape == (30, 9) and tensors["neurons"].shape == (30, 1536)
    assert all(tensor.isfinite().all() and (tensor > 0).all() for tensor in tensors.values())

    good("plan --model demo --device cpu --ratio 0.2 --scores scores.safetensors --out plan.json")
    measure = "measure --model demo --device cpu --dtype float32 --plan plan.json --perplexity --windows 1"
    report = report_of(good, f"{measure} --tasks piqa --limit 4")
    dense, pruned = report["dense"], report["pruned"]
    assert dense["parameters"] == 134_515_008
    assert pruned["parameters"] / dense["parameters"] == pytest.approx(0.8, abs=0.005)
    assert 5 < dense["perplexity"]["value"] < pruned["perplexity"]["value"] < 1000
    for side in (dense, pruned):
        assert side["tasks"]["piqa"]["n"] == 4
        assert {side["tasks"]["piqa"][metric] * 4 for metric in ("acc", "acc_norm")} <= {0, 1, 2, 3, 4}


@pytest.mark.demo
def test_a_single_question_has_no_standard_error_and_can_be_printed(good):
    output = good("measure --model demo --device cpu --dtype float32 --tasks winogrande --limit 1")
    assert "winogrande acc (1 questions)" in output


# Criteria, budgets, repairs, the measured truth


@pytest.mark.parametrize(("command", "names"), [("criteria", CRITERIA), ("allocations", ALLOCATIONS)])
def test_lists_name_everything_with_its_formula_and_source(good, command, names):
    output = good(command)
    for name, each in names.items():
        assert f"\n{name}" in f"\n{output}" and each.formula in output and each.source in output
    if command == "criteria":
        assert "cfsp (neurons)" in output and "amp (heads and neurons)" in output


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_plans_can_be_made_with_every_budget(good, allocation):
    good(f"{PLAN} --ratio 0.2 --allocation {allocation} --criterion wanda-sp --out plan.json")
    document = json.loads(Path("plan.json").read_text())
    assert document["made_by"]["allocation"] == allocation and document["made_by"]["criterion"] == "wanda-sp"
    assert not load_plan("plan.json").is_empty


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--allocation magic", "allocation 'magic' is not known; use one of uniform"),
        ("--criterion magic", "criterion 'magic' is not known"),
        ("--criterion cfsp --heads-criterion cfsp", "scores neurons alone"),
        ("--allocation protect --first 9", "leave at least one"),
        ("--allocation iterative --scores none", "leave out --scores"),
    ],
)
def test_plans_that_cannot_be_made_say_why(run, options, says):
    code, _, errors = run(f"{PLAN} --ratio 0.2 {options} --out plan.json")
    assert code == 1 and says in errors and not Path("plan.json").exists()


@pytest.mark.parametrize("method", REPAIRS)
def test_a_repaired_plan_measures_the_same_in_another_process_with_another_cache(good, monkeypatch, method, place):
    good(f"{PLAN} --ratio 0.3 --repair {method} --out plan.json")
    said = json.loads(Path("plan.json").read_text())["repair"]
    assert said["method"] == method and said["digest"] == windows(4).digest
    found = []
    for cache in ("one", "two"):
        monkeypatch.setenv("AMP_EXPLORE_CACHE", str(place / cache))
        good(f"{MEASURE} --plan plan.json --perplexity --json {cache}.json")
        found.append(json.loads(Path(f"{cache}.json").read_text()))
    values = [each["pruned"]["perplexity"]["value"] for each in found]
    assert values[0] == values[1] and found[0]["plan"]["repair"]["method"] == method
    document = json.loads(Path("plan.json").read_text())
    Path("plain.json").write_text(json.dumps(document | {"repair": None}))
    good(f"{MEASURE} --plan plain.json --perplexity --json plain.json")
    assert json.loads(Path("plain.json").read_text())["pruned"]["perplexity"]["value"] != values[0]


def test_a_repair_on_text_that_is_not_here_is_refused(good, run, place):
    good(f"{PLAN} --ratio 0.3 --repair bias --out plan.json")
    document = json.loads(Path("plan.json").read_text())
    (place / "other.txt").write_text(TEXT[::-1])
    document["repair"]["text"] = str(place / "other.txt")
    Path("plan.json").write_text(json.dumps(document))
    code, _, errors = run(f"{MEASURE} --plan plan.json --perplexity")
    assert code == 1 and "was repaired on other text" in errors


def test_ablate_writes_the_rise_of_the_loss_of_every_head(good):
    good("ablate --model model --device cpu --text text.txt --window 16 --windows 2 --block 20 --out map.safetensors")
    tensors = load_file("map.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "heads": (LAYERS, HEADS),
        "neurons": (LAYERS, NEURONS // 20),
    }
    loaded, text = tiny("llama"), windows(2)
    plan = PruningPlan.empty(loaded.shape).with_units("heads", 1, [3], True)
    rise = perplexity(mask(loaded, plan), text)["loss"] - perplexity(loaded.model, text)["loss"]
    assert float(tensors["heads"][1, 3]) == pytest.approx(rise, abs=1e-4)


def test_compare_writes_a_table_of_all_plans(good):
    output = good(
        "compare --model model --device cpu --ratios 0.1,0.3 --criteria amp,cfsp --repairs none,bias --text text.txt "
        "--window 16 --windows 4 --evaluation-text text.txt --evaluation-windows 2 --out table.csv"
    )
    table = pd.read_csv("table.csv")
    assert len(table) == 1 + 2 * 2 * 2 and set(table.repair) == {"none", "bias"}
    assert table.perplexity[0] == pytest.approx(perplexity(tiny("llama").model, windows(2))["value"], rel=1e-5)
    assert "text.txt, 2 windows of 16 tokens" in output


@pytest.mark.parametrize(
    ("options", "says"),
    [("--criteria magic", "criterion 'magic'"), ("--repairs magic", "repair 'magic'"), ("--allocations x", "'x'")],
)
def test_comparisons_that_cannot_be_made_say_why(run, options, says):
    code, _, errors = run(f"compare --model model --ratios 0.1 {options} --text text.txt --out table.csv")
    assert code == 1 and says in errors
