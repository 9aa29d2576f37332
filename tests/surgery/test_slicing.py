"""The identities that everything else rests on, for every family:

sliced equals masked, cached equals full, empty equals dense.
"""

import pytest
import torch
from tiny import FAMILIES, as_published, everything_removed, random_plan, relative_error, tiny, tokens

from amp_explore.measure.generation import cached_logits
from amp_explore.models.loading import from_model
from amp_explore.plan import PruningPlan
from amp_explore.surgery.costs import costs_of_model, costs_of_plan
from amp_explore.surgery.masking import mask
from amp_explore.surgery.slicing import slice_model

SEEDS = range(4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", SEEDS)
@torch.inference_mode()
def test_sliced_equals_masked(family, seed):
    loaded = tiny(family)
    plan = random_plan(loaded, seed)
    ids = tokens(2, 20, seed)
    assert relative_error(slice_model(loaded, plan)(ids).logits, mask(loaded, plan)(ids).logits) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_sliced_equals_masked_with_eager_attention(family):
    loaded = from_model(as_published(family, attention="eager"), None)
    for seed in (1, 2):
        plan, ids = random_plan(loaded, seed), tokens(2, 20, seed)
        assert relative_error(slice_model(loaded, plan)(ids).logits, mask(loaded, plan)(ids).logits) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.inference_mode()
def test_sliced_equals_masked_in_a_padded_batch(family, padding_side):
    loaded = tiny(family)
    plan = random_plan(loaded, 5)
    ids, attended = tokens(3, 16), torch.ones(3, 16, dtype=torch.long)
    for row, length in enumerate((16, 11, 4)):
        padded = slice(0, 16 - length) if padding_side == "left" else slice(length, 16)
        ids[row, padded], attended[row, padded] = 0, 0
    sliced = slice_model(loaded, plan)(ids, attention_mask=attended).logits
    masked = mask(loaded, plan)(ids, attention_mask=attended).logits
    assert relative_error(sliced[attended.bool()], masked[attended.bool()]) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_sliced_is_as_close_to_masked_in_bfloat16_as_rounding_allows(family):
    loaded, exact = tiny(family, "bfloat16"), tiny(family)
    plan = random_plan(loaded, 1)
    ids = tokens(2, 20)
    sliced, masked = slice_model(loaded, plan)(ids).logits.float(), mask(loaded, plan)(ids).logits.float()
    true = mask(exact, random_plan(exact, 1))(ids).logits
    assert relative_error(sliced, true) < max(0.05, 2 * relative_error(masked, true))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", SEEDS)
@torch.inference_mode()
def test_steps_on_the_cache_equal_the_full_forward(family, seed):
    model = slice_model(tiny(family), random_plan(tiny(family), seed))
    ids = tokens(2, 24, seed)
    full = model(ids).logits
    steps, _ = cached_logits(model, ids, first=10)
    assert relative_error(steps, full) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_generation_equals_the_masked_model_in_a_left_padded_batch(family):
    loaded = tiny(family)
    plan = random_plan(loaded, 3)
    ids, attended = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    ids[1, :5], attended[1, :5] = 0, 0
    options = dict(attention_mask=attended, max_new_tokens=12, do_sample=False, eos_token_id=None)
    sliced = slice_model(loaded, plan).generate(ids, **options)
    assert torch.equal(sliced, mask(loaded, plan).generate(ids, use_cache=False, **options))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_the_empty_plan_is_the_dense_model_bit_for_bit_on_the_same_tensors(family):
    loaded = tiny(family)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    ids = tokens(2, 20)
    dense = loaded.model(ids).logits
    sliced = slice_model(loaded, PruningPlan.empty(loaded.shape))
    assert torch.equal(sliced(ids).logits, dense)
    assert {p.data_ptr() for p in sliced.parameters()} == {p.data_ptr() for p in loaded.model.parameters()}
    slice_model(loaded, random_plan(loaded, 2))(ids)
    assert torch.equal(loaded.model(ids).logits, dense)
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", SEEDS)
@torch.inference_mode()
def test_costs_of_a_plan_are_those_of_the_tensors_that_are_there(family, seed):
    loaded = tiny(family)
    plan = random_plan(loaded, seed)
    model = slice_model(loaded, plan)
    costs = costs_of_plan(plan)
    assert costs == costs_of_model(model)
    _, cache = cached_logits(model, tokens(1, 5))
    assert costs.kv_bytes_per_token * 5 == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_model_without_any_unit_still_runs(family):
    loaded = tiny(family)
    plan = everything_removed(loaded)
    sliced, ids = slice_model(loaded, plan), tokens(2, 9)
    assert relative_error(sliced(ids).logits, mask(loaded, plan)(ids).logits) < 1e-4
    removed = loaded.shape.parameters - costs_of_model(sliced).parameters
    assert removed == loaded.shape.prunable_parameters


@torch.inference_mode()
def test_untouched_layers_share_their_tensors():
    loaded = tiny("llama")
    sliced = slice_model(loaded, PruningPlan.empty(loaded.shape).with_units("heads", 2, [1], True))
    shared = {p.data_ptr() for p in loaded.model.parameters()}
    own = [name for name, p in sliced.named_parameters() if p.data_ptr() not in shared]
    assert own == ["model.layers.2.self_attn.q_proj.weight", "model.layers.2.self_attn.o_proj.weight"]
