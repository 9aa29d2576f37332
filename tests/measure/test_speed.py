"""What is timed, and how it is summed up; never how long it takes."""

import copy

import pytest
import torch
from tiny import random_plan, tiny
from torch import nn

from amp_explore.errors import AmpExploreError
from amp_explore.measure import generation
from amp_explore.measure.speed import FIGURES, measure, speedup
from amp_explore.plan import PruningPlan
from amp_explore.progress import Cancelled
from amp_explore.surgery.slicing import slice_model

EAGER = FIGURES[:2]
FEW = dict(prompt=6, new_tokens=3, repeats=3, warmup=1)


class Recorded(list):
    """The token ids of each forward pass of a model, while it is open."""

    def __init__(self, model: nn.Module) -> None:
        self._hook = model.register_forward_pre_hook(lambda _, inputs: self.append(inputs[0].clone()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


def sliced(family: str, seed: int = 1):
    loaded = tiny(family)
    return slice_model(loaded, random_plan(loaded, seed))


def test_each_model_takes_its_turn_and_the_order_swaps():
    models = {"dense": tiny("llama").model, "pruned": sliced("llama")}
    turns = []
    measure(models, **FEW, progress=lambda done, total, note: turns.append((done, total, note)))
    assert [done for done, _, _ in turns] == list(range(9))
    assert {total for _, total, _ in turns} == {8}
    notes = [note for _, _, note in turns]
    assert sorted(notes[:2]) == ["dense, warm-up", "pruned, warm-up"]
    first, second, third = ([note.split(",")[0] for note in notes[i : i + 2]] for i in (2, 4, 6))
    assert first == third == ["dense", "pruned"]
    assert second == ["pruned", "dense"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi"])
@pytest.mark.parametrize("seed", [1, 2])  # with seed 1 the first layer has no attention
@torch.inference_mode()
def test_decoding_is_the_greedy_decoding_of_the_full_forward(family, seed):
    model = sliced(family, seed)
    with Recorded(model) as passes:
        measure({"pruned": model}, batch=2, prompt=12, new_tokens=4, repeats=1, warmup=0)
    assert [tuple(ids.shape) for ids in passes] == [(1, 12), (2, 12)] + [(2, 1)] * 4, "a look at the numbers first"
    so_far = passes[1]
    for token in passes[2:]:
        assert torch.equal(token, model(so_far, use_cache=False).logits[:, -1:].argmax(-1))
        so_far = torch.cat([so_far, token], dim=1)


def test_a_model_without_any_attention_is_timed():
    loaded = tiny("llama")
    everything = PruningPlan.empty(loaded.shape).with_box("heads", (0, 0, len(loaded.shape.layers) - 1, 10**6), True)
    result = measure({"pruned": slice_model(loaded, everything)}, **FEW)["pruned"]
    assert all(rate > 0 for figure in EAGER for rate in result[figure]["rounds"])


def test_the_same_seed_gives_all_models_and_runs_the_same_prompt():
    dense, pruned = tiny("llama").model, sliced("llama")

    def prompts(seed):
        with Recorded(dense) as by_dense, Recorded(pruned) as by_pruned:
            measure({"dense": dense, "pruned": pruned}, **FEW, seed=seed)
        return [ids for ids in [*by_dense, *by_pruned] if ids.shape[1] == 6]

    first, again, other = prompts(3), prompts(3), prompts(4)
    assert len(first) == 2 * (1 + 1 + 3)
    assert all(torch.equal(ids, first[0]) for ids in [*first, *again])
    assert not torch.equal(first[0], other[0])


def test_no_random_state_and_no_weight_changes():
    model = tiny("llama").model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    measure({"dense": model}, **FEW)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()])


def test_the_spread_is_that_of_the_rounds_and_the_setup_says_what_was_measured():
    model = tiny("llama", "bfloat16").model
    result = measure({"dense": model}, batch=2, **FEW)["dense"]
    for figure in EAGER:
        rounds = sorted(result[figure]["rounds"])
        low, middle, high = rounds
        summary = result[figure]
        assert (summary["min"], summary["median"], summary["max"]) == pytest.approx((low, middle, high))
        assert summary["q1"] == pytest.approx((low + middle) / 2)
        assert summary["q3"] == pytest.approx((middle + high) / 2)
        assert summary["repeats"] == 3
    setup = result["setup"]
    assert setup["device"] == "cpu" and setup["device_name"]
    assert setup["dtype"] == "bfloat16"
    assert setup["threads"] == torch.get_num_threads()
    assert (setup["batch"], setup["prompt_tokens"], setup["new_tokens"], setup["mode"]) == (2, 6, 3, "eager")


def test_rates_count_every_sequence_of_the_batch(monkeypatch):
    """On a clock that advances by one second at each reading, a rate is a number of tokens."""
    seconds = iter(range(10**6))
    monkeypatch.setattr("amp_explore.measure.speed.time.perf_counter", lambda: float(next(seconds)))
    result = measure({"dense": tiny("llama").model}, batch=4, **FEW)["dense"]
    assert result["prefill_tokens_per_s"]["rounds"] == [24.0] * 3
    assert result["decode_tokens_per_s"]["rounds"] == [12.0] * 3


def test_eager_decoding_stands_beside_another_mode_unless_unasked(monkeypatch):
    monkeypatch.setattr(generation, "_compiled_step", lambda device, exactly: generation._step)  # compiling takes long
    models = {"dense": tiny("llama").model}
    assert set(measure(models, **FEW, mode="compiled")["dense"]) == {*FIGURES, "setup"}
    assert set(measure(models, **FEW, mode="compiled", eager=False)["dense"]) == {*EAGER, "setup"}


def test_speedup_compares_rounds_and_not_medians():
    """The machine became ten times slower in the last round, for both models."""
    dense = {figure: {"rounds": [100.0, 100.0, 10.0]} for figure in FIGURES}
    pruned = {figure: {"rounds": [120.0, 130.0, 11.0]} for figure in FIGURES}
    expected = {"median": pytest.approx(1.2), "min": pytest.approx(1.1), "max": pytest.approx(1.3)}
    assert speedup(dense, pruned) == {figure: expected for figure in FIGURES}


def test_cancelling_stops_before_the_next_model():
    model = tiny("llama").model

    def cancel(done, total, note):
        if done == 2:
            raise Cancelled

    with Recorded(model) as passes, pytest.raises(Cancelled):
        measure({"dense": model}, **FEW, progress=cancel)
    assert len(passes) == 1 + 2 * (1 + 3)


@pytest.mark.parametrize("name", ["batch", "prompt", "new_tokens", "repeats"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(AmpExploreError, match=f"{name} must be at least 1"):
        measure({"dense": tiny("llama").model}, **{**FEW, name: 0})


def test_negative_warm_up_long_prompts_and_no_model_are_refused():
    models = {"dense": tiny("llama").model}
    with pytest.raises(AmpExploreError, match="warmup must be at least 0"):
        measure(models, warmup=-1)
    with pytest.raises(AmpExploreError, match="1025 tokens do not fit the dense model's context of 1024"):
        measure(models, prompt=1018, new_tokens=7)
    with pytest.raises(AmpExploreError, match="at least one"):
        measure({})
    with pytest.raises(AmpExploreError, match="'graph' is not to be had on cpu; take one of eager, compiled"):
        measure(models, **FEW, mode="graph")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("mode", ["graph", "compiled"])
def test_on_cuda_eager_decoding_stands_beside_the_mode_asked_for(mode):
    model = copy.deepcopy(tiny("llama").model).to("cuda")
    result = measure({"dense": model}, **FEW, mode=mode)["dense"]
    assert result["setup"]["device_name"] == torch.cuda.get_device_name()
    assert result["setup"]["mode"] == mode
    assert set(FIGURES) < set(result)
