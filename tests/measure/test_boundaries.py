"""Going on from known hidden states gives the numbers of the whole forward pass, and costs only the layers above."""

import importlib

import numpy as np
import pytest
import torch
from tiny import FAMILIES, HIDDEN, LAYERS, random_plan, tiny, windows_of

from amp_explore.measure.boundaries import Boundaries
from amp_explore.measure.perplexity import perplexity
from amp_explore.plan import PruningPlan
from amp_explore.surgery.slicing import slice_model

WINDOWS, LENGTH = 5, 12
BOUNDARY = WINDOWS * LENGTH * HIDDEN * 4  # bytes of one boundary in float32


def layers_run(loaded, plan, windows, boundaries) -> tuple[dict, int]:
    """The measurement, and how many layers were run for it."""
    reports = []
    result = perplexity(
        slice_model(loaded, plan),
        windows,
        boundaries=boundaries.of(plan, windows, loaded.model.dtype.itemsize),
        progress=lambda done, total, note: reports.append(done),
    )
    return result, reports[-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_edits_measure_as_if_from_scratch(family, dtype):
    loaded, windows, boundaries = tiny(family, dtype), windows_of(WINDOWS, LENGTH), Boundaries()
    generator = np.random.default_rng(0)
    plan = random_plan(loaded, 1)
    layers_run(loaded, plan, windows, boundaries)
    for _ in range(8):
        layer = int(generator.integers(LAYERS))
        unit = ("heads", "neurons")[generator.integers(2)]
        which = int(generator.integers(getattr(loaded.shape, unit)[layer]))
        plan = plan.with_units(unit, layer, [which], not getattr(plan, unit)[layer][which])
        result, run = layers_run(loaded, plan, windows, boundaries)
        assert run <= LAYERS - layer
        assert result == perplexity(slice_model(loaded, plan), windows)


@pytest.mark.parametrize("windows_at_once", [1, 2, 5])
def test_any_split_into_batches_goes_on_from_the_same_states(monkeypatch, windows_at_once):
    loaded, windows, boundaries = tiny("gemma3_text"), windows_of(WINDOWS, LENGTH), Boundaries()
    layers_run(loaded, PruningPlan.empty(loaded.shape), windows, boundaries)
    module = importlib.import_module("amp_explore.measure.perplexity")
    monkeypatch.setitem(module._TOKENS, "cpu", windows_at_once * LENGTH)
    plan = PruningPlan.empty(loaded.shape).with_units("heads", 2, [0], True)
    assert layers_run(loaded, plan, windows, boundaries)[0]["loss"] == pytest.approx(
        perplexity(slice_model(loaded, plan), windows)["loss"], rel=1e-6
    )


def test_states_belong_to_what_lies_below_them_and_to_the_text():
    loaded, boundaries = tiny("llama"), Boundaries()
    dense = PruningPlan.empty(loaded.shape)
    one, other = windows_of(2, 12, seed=0), windows_of(2, 12, seed=1)
    low, high = dense.with_units("neurons", 0, [3], True), dense.with_units("neurons", 3, [3], True)
    assert layers_run(loaded, dense, one, boundaries)[1] == LAYERS
    assert layers_run(loaded, high, one, boundaries)[1] == 1
    assert layers_run(loaded, low, one, boundaries)[1] == LAYERS
    assert layers_run(loaded, high.with_units("neurons", 0, [3], True), one, boundaries)[1] == 1
    assert layers_run(loaded, high, other, boundaries)[1] == LAYERS


@torch.inference_mode()
def test_memory_stays_bounded_and_keeps_what_is_used():
    loaded, windows = tiny("llama"), windows_of(WINDOWS, LENGTH)
    boundaries = Boundaries(2 * LAYERS * BOUNDARY)
    dense = PruningPlan.empty(loaded.shape)
    layers_run(loaded, dense, windows, boundaries)
    for neuron in range(20):  # each brings new states above layer 1; the dense ones below stay in use
        assert layers_run(loaded, dense.with_units("neurons", 1, [neuron], True), windows, boundaries)[1] == LAYERS - 1
    assert sum(states.nbytes for states in boundaries._kept.values()) == boundaries._bytes <= 2 * LAYERS * BOUNDARY


def test_a_long_text_keeps_fewer_boundaries_rather_than_only_the_last_ones():
    loaded, windows = tiny("llama"), windows_of(WINDOWS, LENGTH)
    boundaries = Boundaries(LAYERS * BOUNDARY)  # half of that for one text: every second boundary
    dense = PruningPlan.empty(loaded.shape)
    layers_run(loaded, dense, windows, boundaries)
    assert layers_run(loaded, dense.with_units("heads", 3, [1], True), windows, boundaries)[1] == LAYERS - 2
