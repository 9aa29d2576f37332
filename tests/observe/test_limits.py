"""Nothing that is not a number becomes one, and no window is longer than the model's positions."""

from __future__ import annotations

import pytest
import torch
from tiny import as_published, random_plan, tokens

from amp_explore.budgets.allocation import rank
from amp_explore.budgets.least_error import errors_per_parameter
from amp_explore.criteria.layer import Evidence
from amp_explore.criteria.registry import score
from amp_explore.errors import AmpExploreError
from amp_explore.measure.generation import side_by_side
from amp_explore.measure.likelihood import Scorer
from amp_explore.measure.perplexity import perplexity
from amp_explore.measure.speed import measure
from amp_explore.models.families import decoder_layers
from amp_explore.models.loading import LoadedModel, from_model
from amp_explore.observe import gradients, statistics
from amp_explore.observe.limits import NotFinite, first_not_finite
from amp_explore.plan import Repair
from amp_explore.studies.blocks import influences
from amp_explore.surgery.repair import fit_sequentially
from amp_explore.surgery.slicing import slice_model
from amp_explore.texts.calibration import TokenWindows

WINDOWS = TokenWindows(tuple(tokens(3, 12)), "tokens", False)


def with_overflow(layer: int, dtype: str = "float32", family: str = "llama") -> LoadedModel:
    """A tiny model whose layer writes what no number can hold."""
    loaded = from_model(as_published(family, dtype), None)
    largest = torch.finfo(loaded.model.dtype).max
    for name, parameter in decoder_layers(loaded.model)[layer].named_parameters():
        if parameter.ndim == 2 and ("down" in name or "fc2" in name or "mlp.c_proj" in name):
            parameter.data.fill_(largest)
    return loaded


def repaired(loaded: LoadedModel):
    plan = random_plan(loaded, 1, extreme=False).repaired(Repair("sequential", WINDOWS.digest))
    return fit_sequentially(loaded, plan, WINDOWS)


RUNS = {
    "perplexity": lambda loaded: perplexity(loaded.model, WINDOWS),
    "a sliced model": lambda loaded: perplexity(slice_model(loaded, random_plan(loaded, 1, extreme=False)), WINDOWS),
    "answers": lambda loaded: Scorer(loaded.model, max_length=64, batch_tokens=64).log_likelihoods([([5, 6], [7, 8])]),
    "statistics": lambda loaded: statistics.collect(loaded, WINDOWS),
    "Gram matrices": lambda loaded: statistics.collect_with_grams(loaded, WINDOWS),
    "gradients": lambda loaded: gradients.collect(loaded, WINDOWS),
    "blocks": lambda loaded: influences(loaded, WINDOWS),
    "a repair": repaired,
    "speed": lambda loaded: measure({"dense": loaded.model}, prompt=4, new_tokens=2, repeats=1),
    "writing": lambda loaded: side_by_side({"dense": loaded.model}, tokens(1, 4)[0], 2, mode="eager"),
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_no_measurement_makes_a_number_of_what_is_none(run):
    loaded = with_overflow(2)
    with pytest.raises(NotFinite, match="^layer 2 gives NaN or infinity in float32: the weights or the conf"):
        run(loaded)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_windows_and_numbers_in_order_are_measured(run):
    assert run(from_model(as_published("llama"), None)) is not None


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "falcon"])
def test_every_family_says_in_which_layer_it_began(family):
    loaded = with_overflow(1, family=family)
    for module in decoder_layers(loaded.model)[1].modules():  # a norm behind the projection would hide infinity
        if (weight := getattr(module, "weight", None)) is not None:
            weight.data.fill_(float("nan"))
    assert first_not_finite(loaded.model, tokens(1, 6)) == "layer 1"


def test_where_all_is_in_order_nothing_is_found():
    assert first_not_finite(as_published("llama"), tokens(2, 6)) is None


def test_damage_below_and_above_the_layers_is_told_apart():
    model = as_published("llama-biases")
    model.get_output_embeddings().weight.data[3, 3] = float("nan")
    assert first_not_finite(model, tokens(1, 6)) == "the vocabulary projection"
    model.get_input_embeddings().weight.data.fill_(float("inf"))
    assert first_not_finite(model, tokens(1, 6)) == "the embedding"


def test_only_float16_is_told_to_take_another_precision():
    with pytest.raises(NotFinite, match="layer 1 gives NaN or infinity in float16: take float32 or bfloat16"):
        perplexity(with_overflow(1, "float16").model, WINDOWS)


def test_a_ruined_model_whose_logits_are_numbers_stays_one():
    model = as_published("llama-biases")
    model.get_output_embeddings().weight.data *= 1e37
    found = perplexity(model, WINDOWS)
    assert found["value"] > 1e300 and found["loss"] > 0


def test_a_criterion_without_a_finite_score_names_the_layer():
    loaded = from_model(as_published("llama"), None)
    decoder_layers(loaded.model)[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    for criterion in ("magnitude", "spectrum"):
        with pytest.raises(AmpExploreError, match="layer 2 have no finite score in float32; take another criterion"):
            score(loaded, Evidence(), criterion, heads="magnitude")


def test_a_gram_matrix_that_cannot_be_solved_for_is_told_in_one_line():
    loaded = from_model(as_published("llama"), None)
    activations, grams = statistics.collect_with_grams(loaded, WINDOWS)
    grams[1].mlp.fill_(float("nan"))
    evidence = Evidence(activations=activations, grams=grams)
    with pytest.raises(AmpExploreError, match="layer 1 have no finite score"):
        score(loaded, evidence, "obs")
    with pytest.raises(AmpExploreError, match="Gram matrices"):
        errors_per_parameter(loaded, evidence, rank(loaded.shape, None, "random"))


# Positions


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
@pytest.mark.parametrize("run", [name for name in RUNS if name not in ("answers", "speed", "writing")])
def test_windows_longer_than_the_context_are_refused_wherever_windows_run(monkeypatch, family, run):
    model = as_published(family)
    model.config.max_position_embeddings = 8
    with pytest.raises(AmpExploreError, match="windows of 12 tokens do not fit the model's context of 8"):
        RUNS[run](from_model(model, None))
