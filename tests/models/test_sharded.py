"""A model spread over several devices is the same model: whatever is done with it gives the numbers of the whole one.

Two shards in CPU memory and on disk stand for any two devices. Where there are GPUs, those are tried too.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from made_up import save_tiny
from tiny import (
    FAMILIES,
    LAYERS,
    LENGTHS,
    everything_removed,
    prompts,
    random_plan,
    relative_error,
    tiny,
    tokens,
    windows_of,
)

from amp_explore.errors import ModelError
from amp_explore.measure.boundaries import Boundaries
from amp_explore.measure.perplexity import perplexity
from amp_explore.models import sharding
from amp_explore.models.families import share
from amp_explore.models.loading import LoadedModel, from_model, load
from amp_explore.observe.statistics import collect
from amp_explore.plan import PruningPlan
from amp_explore.progress import Cancelled
from amp_explore.surgery.costs import costs_of_plan
from amp_explore.surgery.masking import mask
from amp_explore.surgery.slicing import slice_model

SHARDS = {  # where the lower layers and the vocabulary are, and where the upper layers
    "upper half on disk": ("cpu", "disk"),
    "lower half on disk": ("disk", "cpu"),
    "two GPUs": (0, 1),
    "GPU and CPU": (0, "cpu"),
    "GPU and disk": (0, "disk"),
}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
MARKS = {"two GPUs": TWO_GPUS, "GPU and CPU": GPU, "GPU and disk": GPU}
EACH_FAMILY = pytest.mark.parametrize(
    "family",
    ["llama", "llama-biases", "qwen2", "gemma2", "phi", "phi3", "opt-projected", "gpt2", "gpt_neox", "falcon-grouped"]
    + ["olmo2", "cohere-normed", "stablelm-normed", "granite", "smollm3"],
)
EACH_WAY = pytest.mark.parametrize("shards", [pytest.param(name, marks=MARKS.get(name, ())) for name in SHARDS])
PLANS = pytest.mark.parametrize(
    "plan_of", [lambda loaded: random_plan(loaded, 1), everything_removed], ids=["ragged", "all"]
)


def device_map(family: str, shards: str) -> dict[str, int | str]:
    lower, upper = SHARDS[shards]
    layers = tiny(family).family.layers
    parent, _, name = layers.rpartition(".")
    others = [other for other, _ in tiny(family).model.get_submodule(parent).named_children() if other != name]
    ends = dict.fromkeys(("lm_head", *(f"{parent}.{other}" for other in others)), lower)
    return ends | {f"{layers}.{number}": lower if number < LAYERS // 2 else upper for number in range(LAYERS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(family): where a tiny model of the family is saved."""
    root = tmp_path_factory.mktemp("models")

    def saved(family: str) -> Path:
        return root / family if (root / family).exists() else save_tiny(root / family, family)

    return saved


@pytest.fixture
def whole(folder, family, shards) -> LoadedModel:
    """The model in one piece."""
    return load(str(folder(family)), device="cuda:0" if "GPU" in shards else "cpu", dtype="float32")


@pytest.fixture
def sharded(folder, family, shards) -> LoadedModel:
    """The same in shards."""
    return load(str(folder(family)), device=device_map(family, shards), dtype="float32")


def logits(model, device: torch.device) -> torch.Tensor:
    with torch.inference_mode():
        return model(tokens(2, 20).to(device)).logits.cpu()


def loss(*arguments, **options) -> float:
    return perplexity(*arguments, **options)["loss"]


@EACH_FAMILY
@EACH_WAY
def test_a_sharded_model_is_the_same_model(whole, sharded):
    places = {parameter.device for parameter in sharded.model.parameters()}
    assert len(places) == 2, "nothing is sharded"
    assert relative_error(logits(sharded.model, sharded.device), logits(whole.model, whole.device)) < 1e-6
    assert sharded.shape == whole.shape
    assert from_model(sharded.model, None).shape == from_model(whole.model, None).shape


@EACH_FAMILY
@EACH_WAY
def test_scores_are_those_of_the_whole_model(whole, sharded):
    windows = prompts(*LENGTHS)
    expected, got = collect(whole, windows), collect(sharded, windows)
    for name in vars(expected[0]):
        for one, other in zip(expected, got, strict=True):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-4, atol=1e-7)


@EACH_FAMILY
@EACH_WAY
def test_perplexity_is_that_of_the_whole_model_also_from_known_states(whole, sharded):
    windows, known = windows_of(3, 12), Boundaries()
    plan = PruningPlan.empty(whole.shape)
    for layer in (3, 1, 2):
        plan = plan.with_units("heads", layer, [layer], True)
        expected = pytest.approx(loss(slice_model(whole, plan), windows), rel=1e-6)
        model = slice_model(sharded, plan)
        assert loss(model, windows) == expected
        boundaries = known.of(plan, windows, itemsize=4)
        assert loss(model, windows, boundaries=boundaries) == expected
    assert boundaries.start == 2, "nothing was known"


@EACH_FAMILY
@EACH_WAY
@PLANS
def test_sliced_is_what_the_whole_model_becomes_and_the_dense_one_stays(whole, sharded, plan_of):
    before = logits(sharded.model, sharded.device)
    plan = plan_of(sharded)
    sliced = slice_model(sharded, plan)
    assert relative_error(logits(sliced, sharded.device), logits(slice_model(whole, plan), whole.device)) < 1e-5
    assert relative_error(logits(sliced, sharded.device), logits(mask(sharded, plan), sharded.device)) < 1e-4
    assert sum(parameter.numel() for parameter in sharding.parameters(sliced)) == costs_of_plan(plan).parameters
    assert torch.equal(logits(sharded.model, sharded.device), before)


@EACH_FAMILY
@EACH_WAY
@torch.inference_mode()
def test_generation_on_the_cache_is_that_of_the_whole_model(whole, sharded):
    plan = random_plan(whole, 3)
    ids, attended = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    ids[1, :5], attended[1, :5] = 0, 0
    expected, got = (
        slice_model(loaded, plan).generate(
            ids.to(loaded.device),
            attention_mask=attended.to(loaded.device),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
        )
        for loaded in (whole, sharded)
    )
    assert torch.equal(got.cpu(), expected.cpu())


@pytest.mark.parametrize("family", ["llama"])
@EACH_WAY
def test_a_copy_runs_its_own_layers_on_the_same_weights(sharded):
    expected = logits(sharded.model, sharded.device)
    copied = share(sharded.model)
    run = []
    for model in (sharded.model, copied):
        for module in model.modules():
            module.register_forward_pre_hook(lambda *_, model=model: run.append(model))
    assert torch.equal(logits(copied, sharded.device), expected)
    assert run and all(model is copied for model in run)
    kept = [{id(store) for store in sharding.kept_elsewhere(model)} for model in (sharded.model, copied)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("family", ["llama"])
@EACH_WAY
def test_cancelled_work_leaves_the_model_as_it_was(sharded):
    before = logits(sharded.model, sharded.device)

    def cancel(done, *_):
        if done == LAYERS - 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        collect(sharded, prompts(*LENGTHS), progress=cancel)
    with pytest.raises(Cancelled):
        perplexity(sharded.model, windows_of(2, 12), progress=cancel)
    assert torch.equal(logits(sharded.model, sharded.device), before)


@pytest.mark.parametrize("family", ["llama"])
@EACH_WAY
def test_a_sharded_model_says_where_it_is(sharded, shards):
    names = {"cpu": "cpu", "disk": "disk", 0: "cuda:0", 1: "cuda:1"}
    said = ", ".join(names[place] for place in SHARDS[shards])
    assert sharded.describe()["device"] == said
    assert perplexity(slice_model(sharded, random_plan(sharded, 1)), windows_of(1, 8))["device"] == said


@pytest.mark.parametrize("family", FAMILIES)
@PLANS
def test_where_there_is_no_room_sliced_layers_take_no_memory(family, plan_of, monkeypatch):
    loaded = tiny(family)
    monkeypatch.setattr(sharding, "room", lambda device: 0)
    plan, cpu = plan_of(loaded), torch.device("cpu")
    before = logits(loaded.model, cpu)
    sliced = slice_model(loaded, plan)
    assert relative_error(logits(sliced, cpu), logits(mask(loaded, plan), cpu)) < 1e-4
    assert torch.equal(logits(share(sliced), cpu), logits(sliced, cpu))
    dense = {parameter.data_ptr() for parameter in loaded.model.parameters()}
    kept = (parameter for parameter in sliced.parameters() if not parameter.is_meta and parameter.numel())
    assert {parameter.data_ptr() for parameter in kept} <= dense
    assert torch.equal(logits(loaded.model, cpu), before)


# How a model comes to be sharded


@pytest.mark.skipif(torch.cuda.is_available(), reason="the model would have to be larger than the GPU")
def test_a_model_that_does_not_fit_is_sharded_by_itself(folder, monkeypatch):
    source = str(folder("qwen2"))
    whole = load(source, dtype="float32")
    assert whole.describe()["device"] == "cpu"
    half = sum(parameter.nbytes for parameter in whole.model.parameters()) // 2
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=half, total=half))
    sharded = load(source, dtype="float32")
    assert sharded.describe()["device"] == "cpu, disk"
    assert relative_error(logits(sharded.model, sharded.device), logits(whole.model, whole.device)) < 1e-6


@TWO_GPUS
@pytest.mark.parametrize("strategy", ["balanced", "sequential"])
def test_strategies_place_a_whole_model(folder, strategy):
    sharded = load(str(folder("qwen2")), device=strategy, dtype="float32")
    assert sharded.describe()["device"] == {"balanced": "cuda:0, cuda:1", "sequential": "cuda:0"}[strategy]
    assert relative_error(logits(sharded.model, sharded.device), logits(tiny("qwen2").model, "cpu")) < 1e-4


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_mixtures_of_experts_are_refused_in_shards(folder, family):
    with pytest.raises(ModelError, match="a mixture of experts must be on one device"):
        load(str(folder(family)), device=device_map(family, "upper half on disk"), dtype="float32")


def test_offloaded_weights_take_the_dtype_that_was_asked_for(folder):
    source = str(folder("qwen2"))
    whole = load(source, device="cpu", dtype="bfloat16")
    sharded = load(source, device=device_map("qwen2", "upper half on disk"), dtype="bfloat16")
    plan = random_plan(whole, 1)
    assert torch.equal(logits(slice_model(sharded, plan), "cpu"), logits(slice_model(whole, plan), "cpu"))


@pytest.mark.parametrize(
    "places",
    [{"model.layers.0": "cpu", "model.layers.1": "disk"}, {"": "nowhere"}, {"model": "cpu", "lm_head": 99}],
    ids=str,
)
def test_device_maps_that_cannot_be_are_refused_in_one_line(folder, places):
    with pytest.raises(ModelError) as raised:
        load(str(folder("qwen2")), device=places)
    assert "\n" not in str(raised.value)
