"""What a pass asks of a machine, counted on real models; what the machine can do, measured."""

import pytest
import torch
from tiny import FAMILIES, random_plan, tiny, tokens
from torch.utils.flop_counter import FlopCounterMode

from amp_explore.measure.generation import cached_logits
from amp_explore.measure.roofline import Machine, Work, decode_work, measure_machine, prefill_work
from amp_explore.models.families import cache_argument
from amp_explore.plan import PruningPlan
from amp_explore.surgery.costs import costs_of_model
from amp_explore.surgery.slicing import slice_model

MACHINE = Machine("cpu", "float32", 1, bytes_per_s=100.0, flops_per_s=1000.0)


@torch.inference_mode()
def counted(run) -> int:
    """Floating-point operations of matrix products and attention, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def whole_groups(loaded) -> PruningPlan:
    """A different number of neurons from every layer, and one KV group from every second."""
    plan = PruningPlan.empty(loaded.shape)
    for number, layer in enumerate(loaded.shape.layers):
        plan = plan.with_units("neurons", number, range(number, 3 * number + 2), True)
        if number % 2:
            plan = plan.with_units("heads", number, [h for h in range(layer.heads) if layer.kv_of_head[h] == 0], True)
    return plan


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi"])
@pytest.mark.parametrize("plan_of", [lambda loaded: PruningPlan.empty(loaded.shape), whole_groups])
def test_the_arithmetic_of_a_decode_step_is_what_torch_counts(family, plan_of):
    loaded = tiny(family)
    plan = plan_of(loaded)
    model = slice_model(loaded, plan)
    for module in model.modules():  # eager attention's products are counted one by one
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    batch, context = 3, 11
    with torch.inference_mode():
        _, past = cached_logits(model, tokens(batch, context))
    flops = counted(lambda: model(tokens(batch, 1), **{cache_argument(type(model)): past}))
    assert decode_work(plan, batch=batch, context=context).flops == pytest.approx(flops, rel=0.02)


def test_bytes_are_those_of_the_tensors():
    loaded = tiny("llama")
    plan = whole_groups(loaded)
    model = slice_model(loaded, plan)
    linear = sum(m.weight.nbytes for m in model.modules() if isinstance(m, torch.nn.Linear))
    work = decode_work(plan, batch=2, context=7)
    assert work.weight_bytes == linear
    assert work.kv_bytes == 2 * 8 * costs_of_model(model).kv_bytes_per_token  # the new token is read too


def test_the_prompt_is_multiplied_with_everything_but_the_vocabulary():
    loaded = tiny("llama")
    plan = PruningPlan.empty(loaded.shape)
    one, two = (prefill_work(plan, batch=1, tokens=count) for count in (1, 2))
    body = loaded.shape.matmul_parameters - loaded.shape.vocabulary_weights
    attention = sum(4 * layer.heads * layer.head_dim for layer in loaded.shape.layers)
    assert two.flops - one.flops == 2 * body + 2 * attention  # the second token sees two
    assert one.flops == decode_work(plan, batch=1, context=0).flops
    assert prefill_work(plan, batch=5, tokens=2).flops == 5 * two.flops


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_never_asks_for_more(family):
    loaded = tiny(family)
    dense, pruned = PruningPlan.empty(loaded.shape), random_plan(loaded, 1)
    for batch, context in ((1, 4), (8, 64)):
        before, after = (decode_work(plan, batch=batch, context=context) for plan in (dense, pruned))
        assert after.flops < before.flops
        assert after.weight_bytes < before.weight_bytes
        assert after.kv_bytes < before.kv_bytes


def test_a_sliding_window_bounds_what_is_read():
    loaded = tiny("mistral")  # a window of 8
    plan = PruningPlan.empty(loaded.shape)
    assert decode_work(plan, batch=1, context=7).kv_bytes == decode_work(plan, batch=1, context=200).kv_bytes


@pytest.mark.parametrize(
    ("work", "seconds", "words"),
    [
        (Work(90, 10, 100), 1.1, "reading the weights"),
        (Work(10, 90, 100), 1.1, "reading the KV cache"),
        (Work(50, 50, 5000), 5.5, "arithmetic"),
        (Work(90, 10, 100), 2.0, "overhead"),
    ],
)
def test_the_limit_is_named(work, seconds, words):
    assert work.limit(MACHINE, seconds).startswith(words)


def test_the_roofline_is_the_larger_of_memory_and_arithmetic():
    assert Work(50, 50, 500).seconds(MACHINE) == 1.0
    assert Work(50, 50, 5000).seconds(MACHINE) == 5.0


def test_a_machine_is_measured():
    machine = measure_machine(torch.device("cpu"), torch.float32)
    assert 1e8 < machine.bytes_per_s < 1e13
    assert 1e8 < machine.flops_per_s < 1e15
