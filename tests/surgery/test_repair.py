"""Repaired models: still plainly sliced, closer to the dense one, reproducible, safe where nothing can be fitted."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import FAMILIES, LAYERS, random_plan, tiny, tokens

from amp_explore.criteria.layer import Evidence
from amp_explore.errors import AmpExploreError, PlanError
from amp_explore.keeping.store import Store
from amp_explore.measure.boundaries import Boundaries
from amp_explore.measure.generation import cached_logits
from amp_explore.measure.perplexity import perplexity
from amp_explore.models.families import decoder_layers, layer_parts, weight_of
from amp_explore.observe.statistics import collect_with_grams
from amp_explore.plan import REPAIRS, PruningPlan, Repair
from amp_explore.progress import Cancelled
from amp_explore.surgery.costs import costs_of_model, costs_of_plan
from amp_explore.surgery.repair import METHODS, RIDGES, caveat, fit_sequentially, repair_layer, ridge_fit
from amp_explore.texts.calibration import TokenWindows
from amp_explore.workbench import Workbench

WINDOWS = TokenWindows(tuple(tokens(24, 40)), "made up", False)


class Bench(Workbench):
    """A workbench whose repairs are fitted on `WINDOWS`."""

    def __init__(self, folder):
        super().__init__(Store(folder))

    def repair_windows(self, loaded, repair):
        assert repair.digest == WINDOWS.digest
        return WINDOWS


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def repaired(loaded, method, seed=1, **options) -> PruningPlan:
    return random_plan(loaded, seed, **options).repaired(Repair(method, WINDOWS.digest))


def logits(model, ids):
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


def test_every_method_is_described():
    assert tuple(METHODS) == REPAIRS


EXPERTS = ("mixtral", "qwen3_moe")
EACH = pytest.mark.parametrize(
    ("family", "method"),
    [(family, method) for family in FAMILIES for method in REPAIRS if not (family in EXPERTS and method == "bias")],
)


@EACH
def test_a_repaired_model_is_a_plain_smaller_model(family, method, bench):
    """The parameters are the ones that are said, generation equals the full forward, the dense model stays as it is."""
    loaded, ids = tiny(family), tokens(2, 12)
    before = logits(loaded.model, ids)
    plan = repaired(loaded, method)
    model = bench.sliced(loaded, plan)
    assert costs_of_model(model) == costs_of_plan(plan)
    expected = logits(model, ids)
    with torch.inference_mode():
        torch.testing.assert_close(cached_logits(model, ids)[0], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(loaded.model, ids), before)
    assert not torch.equal(expected, logits(bench.sliced(loaded, plan.repaired(None)), ids))


@EACH
def test_perplexity_from_known_states_is_that_from_scratch(family, method, bench, tmp_path):
    loaded, text = tiny(family), TokenWindows(tuple(tokens(3, 20, seed=5)), "other", False)
    plan, kept = repaired(loaded, method), Boundaries()
    for edited in (plan, plan.with_units("neurons", 2, [0, 1], not plan.neurons[2][0])):
        known = kept.of(edited, text, 4)
        got = perplexity(bench.sliced(loaded, edited), text, boundaries=known)["loss"]
        assert got == perplexity(Bench(tmp_path / "new").sliced(loaded, edited), text)["loss"]


@pytest.mark.parametrize("family", ["llama", "llama-biases", "phi"])
def test_least_squares_is_the_best_that_the_kept_inputs_can_do(family):
    """Against numpy's least squares, on the normal equations written out with the ridge that was chosen."""
    loaded = tiny(family)
    activations, grams = collect_with_grams(loaded, WINDOWS)
    plan = repaired(loaded, "least-squares", seed=3, extreme=False)
    for number in range(LAYERS):
        layer = repair_layer(loaded, plan, number, Evidence(activations, (), grams))
        removed = plan.neurons[number]
        if plan.heads[number].all() or not removed.any() or removed.all():
            continue
        dense = weight_of(layer_parts(decoder_layers(loaded.model)[number], loaded.family).down).double().numpy()
        gram = grams[number].mlp.double().numpy()
        lost, kept = gram[~removed][:, ~removed], gram[removed][:, ~removed]
        got = weight_of(layer_parts(layer, loaded.family).down).double().numpy()
        errors = []
        for ridge in RIDGES:
            scale = ridge * lost.diagonal().mean() * np.eye(len(lost))
            expected = dense[:, ~removed] + np.linalg.solve(lost + scale, (dense[:, removed] @ kept).T).T
            errors.append(np.abs(got - expected).max() / np.abs(expected).max())
        errors.append(np.abs(got - dense[:, ~removed]).max())  # or nothing fitted better than leaving it
        assert min(errors) < 1e-5


def test_bias_puts_the_mean_of_what_went_into_a_bias(bench):
    loaded, activations = tiny("phi"), collect_with_grams(tiny("phi"), WINDOWS)[0]
    plan = repaired(loaded, "bias", seed=2)
    for number, layer in enumerate(decoder_layers(bench.sliced(loaded, plan))):
        removed = torch.from_numpy(plan.neurons[number].copy())
        dense = layer_parts(decoder_layers(loaded.model)[number], loaded.family).down
        expected = dense.bias + dense.weight[:, removed] @ activations[number].neuron_mean[removed]
        torch.testing.assert_close(layer.mlp.fc2.bias, expected, rtol=1e-4, atol=1e-5)


def test_what_repeats_itself_is_repaired_without_loss(bench):
    """Twins of units that stay can go: the others take over exactly, layer by layer and one after the other."""
    loaded = tiny("llama")
    twins = replace(loaded, model=copy.deepcopy(loaded.model))
    plan = PruningPlan.empty(loaded.shape)
    for number, layer in enumerate(decoder_layers(twins.model)):
        parts = layer_parts(layer, loaded.family)
        with torch.no_grad():
            for up in parts.up:
                up.module.weight[10:20] = up.module.weight[:10]
        plan = plan.with_units("neurons", number, range(10, 20), True)
    ids = tokens(2, 30, seed=9)
    dense = logits(twins.model, ids)
    for method in ("least-squares", "sequential"):
        got = logits(bench.sliced(twins, plan.repaired(Repair(method, WINDOWS.digest))), ids)
        unrepaired = logits(bench.sliced(twins, plan), ids)
        assert (got - dense).norm() < 0.02 * (unrepaired - dense).norm(), method


def test_a_singular_gram_matrix_and_one_of_nothing_are_handled():
    lot = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=lot) @ torch.randn(3, 12, generator=lot)  # rank 3 of 12
    wanted = torch.randn(5, 12, generator=lot)
    gram, cross = x.T @ x / 200, wanted @ (x.T @ x / 200)
    change, ridge, error = ridge_fit(cross, gram, cross, gram)
    assert change.isfinite().all() and ridge in RIDGES and error < 0
    torch.testing.assert_close(x @ change.T.float(), x @ wanted.T, rtol=0.05, atol=0.05)
    change, ridge, error = ridge_fit(cross * 0, gram * 0, cross * 0, gram * 0)
    assert (change == 0).all() and ridge is None and error == 0


def test_a_fit_that_is_worse_on_what_was_held_out_is_not_taken():
    lot = torch.Generator().manual_seed(0)
    x = torch.randn(50, 8, generator=lot)
    gram, cross = x.T @ x / 50, torch.randn(4, 8, generator=lot)
    change, ridge, _ = ridge_fit(cross, gram, -cross, gram)
    assert ridge is None and (change == 0).all()


def test_a_sequential_repair_is_done_once_and_can_be_cancelled(tmp_path):
    loaded, seen = tiny("qwen2"), []
    plan = repaired(loaded, "sequential")

    def cancel(done, total, note):
        seen.append((done, total, note))
        if done == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_sequentially(loaded, plan, WINDOWS, progress=cancel)
    assert [done for done, *_ in seen] == [0, 1, 2, 3, 4, 5]
    ids = tokens(1, 9)
    first = logits(Bench(tmp_path).sliced(loaded, plan), ids)

    def refuse(*_):
        raise AssertionError("fitted again, though it was kept")

    assert torch.equal(logits(Bench(tmp_path).sliced(loaded, plan, progress=refuse), ids), first)


def test_a_sequential_repair_leaves_the_layers_below_the_lowest_cut_alone(bench):
    loaded = tiny("llama")
    plan = PruningPlan.empty(loaded.shape).with_units("heads", 2, [1], True)
    plan = plan.repaired(Repair("sequential", WINDOWS.digest))
    model = bench.sliced(loaded, plan)
    pairs = zip(decoder_layers(model), decoder_layers(loaded.model), strict=True)
    same = [a.mlp.down_proj.weight is b.mlp.down_proj.weight for a, b in pairs]
    assert same == [True, True, False, False] and plan.changed_layers == [2, 3]


def test_one_window_is_too_little_for_all_but_a_bias():
    loaded, one = tiny("llama"), TokenWindows(WINDOWS.ids[:1], "made up", False)
    with pytest.raises(AmpExploreError, match="one calibration window cannot be split"):
        fit_sequentially(loaded, repaired(loaded, "sequential"), one)
    said = {method: caveat(method, loaded.shape, one) for method in REPAIRS}
    assert said.pop("bias") is None and all("take more" in why for why in said.values())
    few = TokenWindows(WINDOWS.ids[:2], "made up", False)
    assert "40 tokens to fit on are fewer than the 48 inputs" in caveat("sequential", loaded.shape, few)
    assert caveat("sequential", loaded.shape, WINDOWS) is None


def test_other_text_than_the_plan_names_is_refused(tmp_path, monkeypatch):
    bench, loaded = Workbench(Store(tmp_path)), tiny("llama")
    monkeypatch.setattr("amp_explore.surgery.repair_texts.calibration_windows", lambda *_, **__: WINDOWS)
    plan = random_plan(loaded, 1).repaired(Repair("bias", "0" * 16))
    with pytest.raises(PlanError, match="repaired on other text"):
        bench.sliced(loaded, plan)


@pytest.mark.parametrize("family", EXPERTS)
def test_experts_have_no_bias_to_repair(family, bench):
    with pytest.raises(AmpExploreError, match="repair by least squares"):
        bench.sliced(tiny(family), repaired(tiny(family), "bias"))


def test_models_in_pieces_are_not_repaired():
    loaded = tiny("llama")
    sharded = replace(loaded, model=copy.copy(loaded.model))
    sharded.model.hf_device_map = {"": "cpu"}
    with pytest.raises(AmpExploreError, match="whole model on one device"):
        fit_sequentially(sharded, repaired(loaded, "sequential"), WINDOWS)
