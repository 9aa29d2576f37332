"""Mixtures of experts: the same numbers as transformers', and experts that go with their last neuron."""

import pytest
import torch
from tiny import HIDDEN, LENGTHS, NEURONS, as_published, prompts, relative_error, tiny, tokens

from amp_explore.budgets.allocation import allocate, rank
from amp_explore.criteria.scores import scores_by_lot
from amp_explore.models.shapes import matmul_parameters
from amp_explore.observe.statistics import collect
from amp_explore.plan import PruningPlan
from amp_explore.surgery.costs import costs_of_model, costs_of_plan, removed_parameters
from amp_explore.surgery.masking import mask
from amp_explore.surgery.slicing import slice_model

EACH_FAMILY = pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])


def stock(family):
    """As transformers has it; its faster kernels want widths in multiples of 4."""
    model = as_published(family)
    model.set_experts_implementation("eager")
    return model


@EACH_FAMILY
@torch.inference_mode()
def test_the_dense_model_is_the_published_one(family):
    published, ids = stock(family), tokens(2, 20)
    loaded = tiny(family)
    assert relative_error(loaded.model(ids).logits, published(ids).logits) < 1e-5
    assert loaded.shape.parameters == sum(parameter.numel() for parameter in published.parameters())


@EACH_FAMILY
@torch.inference_mode()
def test_neurons_count_what_experts_pass_on_with_the_weight_of_their_routing(family):
    """Against transformers' own router and the experts' formula, written out for each token."""
    published, windows, means = stock(family), prompts(*LENGTHS), []
    block, inputs = published.model.layers[2].mlp, []
    block.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
    for ids in windows.ids:
        published(ids[None])
        states = inputs.pop()  # (T, d)
        gate, up = block.experts.gate_up_proj.chunk(2, 1)  # (E, I, d) each
        activations = torch.zeros(len(states), *gate.shape[:2])
        _, weights, chosen = block.gate(states)  # (T, top_k) each
        for token, state in enumerate(states):
            for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
                activations[token, expert] = block.experts.act_fn(gate[expert] @ state) * (up[expert] @ state) * weight
        means.append(activations.abs().mean(0).flatten())
    got = collect(tiny(family), windows)[2].neuron_magnitude
    torch.testing.assert_close(got, torch.stack(means).mean(0), rtol=1e-4, atol=1e-6)


@EACH_FAMILY
@pytest.mark.parametrize("experts", [1, 2, 3])
@torch.inference_mode()
def test_experts_go_with_their_last_neuron_and_tokens_to_those_that_are_left(family, experts):
    """Fewer than a token is sent to, as many, and more; one of them loses neurons only."""
    loaded, ids = tiny(family), tokens(2, 20)
    shape = loaded.shape.layers[2]
    width = NEURONS // shape.experts
    gone = range(experts * width, NEURONS)
    plan = PruningPlan.empty(loaded.shape).with_units("neurons", 2, [*gone, 1, 3], True)
    sliced = slice_model(loaded, plan)
    assert relative_error(sliced(ids).logits, mask(loaded, plan)(ids).logits) < 1e-4
    mixture = sliced.model.layers[2].mlp
    assert mixture.widths == (width - 2, *[width] * (experts - 1))
    assert mixture.router.weight.shape == (experts, HIDDEN)
    costs = costs_of_model(sliced)
    assert costs == costs_of_plan(plan)
    rows = (shape.experts - experts) * HIDDEN
    assert loaded.shape.parameters - costs.parameters == (len(gone) + 2) * shape.neuron_parameters + rows


def test_a_token_is_multiplied_with_the_experts_that_it_is_sent_to():
    loaded = tiny("mixtral")
    assert {(layer.experts, layer.top_k) for layer in loaded.shape.layers} == {(4, 2)}
    attention = sum(
        layer.heads * layer.head_weights + layer.kv_heads * layer.kv_weights for layer in loaded.shape.layers
    )
    mixtures = len(loaded.shape.layers) * (4 * HIDDEN + 2 * (NEURONS // 4) * 3 * HIDDEN)
    assert matmul_parameters(loaded.model) == attention + mixtures + loaded.shape.vocabulary_weights


@EACH_FAMILY
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
def test_a_ratio_is_met_within_a_head_and_a_neuron_per_layer_and_the_rows_of_routers(family, ratio):
    shape = tiny(family).shape
    plan = allocate(rank(shape, scores_by_lot(shape)), ratio)
    unit = sum(layer.head_parameters + layer.kv_parameters + layer.neuron_parameters for layer in shape.layers)
    routers = sum(layer.experts * layer.expert_parameters for layer in shape.layers)
    assert abs(removed_parameters(plan) - ratio * shape.parameters) <= unit + routers
