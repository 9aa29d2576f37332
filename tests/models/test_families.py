"""The few names that everything is written against mean the same in every architecture."""

import pytest
import torch
from tiny import FAMILIES, HEADS, HIDDEN, NEURONS, random_plan, tiny, tokens

from amp_explore.models.families import (
    bias_of,
    decoder_layers,
    head_slices,
    inputs_of,
    kv_groups,
    layer_parts,
    outputs_of,
    rows_of,
    weight_of,
)
from amp_explore.surgery.slicing import NoAttention, slice_layer

EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)


@EACH_FAMILY
def test_projections_have_a_row_for_each_output(family):
    loaded = tiny(family)
    for layer, shape in zip(decoder_layers(loaded.model), loaded.shape.layers, strict=True):
        parts = layer_parts(layer, loaded.family)
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        assert (shape.heads, shape.hidden, shape.neurons) == (HEADS, HIDDEN, NEURONS)
        expected = [(parts.q, queries), (parts.k, keys), (parts.v, keys), *((up, NEURONS) for up in parts.up)]
        for part, outputs in expected:
            assert weight_of(part).shape == (outputs_of(part), inputs_of(part)) == (outputs, HIDDEN)
            assert bias_of(part) is None or bias_of(part).shape == (outputs,)
        for part, inputs in ((parts.o, queries), (parts.down, NEURONS)):
            assert weight_of(part).shape == (outputs_of(part), inputs_of(part)) == (HIDDEN, inputs)
            assert bias_of(part) is None or bias_of(part).shape == (HIDDEN,)
        assert head_slices(parts.o, shape.head_dim).shape == (HEADS, shape.head_dim, HIDDEN)


@EACH_FAMILY
def test_projections_share_no_row_and_leave_none(family):
    loaded = tiny(family)
    parts = layer_parts(decoder_layers(loaded.model)[0], loaded.family)
    rows: dict = {}
    for part in (parts.q, parts.k, parts.v, *parts.up):
        numbers = range(outputs_of(part)) if part.rows is None else part.rows.tolist()
        rows.setdefault(part.module, []).extend(numbers)
    assert all(sorted(numbers) == list(range(outputs_of(module))) for module, numbers in rows.items())


@EACH_FAMILY
@torch.inference_mode()
def test_of_a_single_token_each_head_passes_on_what_v_makes_of_it(family):
    """Attention has nothing to choose from then; so this checks v, its order, and which KV head a head reads."""
    loaded = tiny(family)
    parts, seen = layer_parts(decoder_layers(loaded.model)[1], loaded.family), {}

    def note(module, inputs, options):
        seen[module] = (inputs[0] if inputs else options["hidden_states"])[0, 0]

    hooks = [each.register_forward_pre_hook(note, with_kwargs=True) for each in (parts.attention, parts.o)]
    loaded.model(tokens(1, 1))
    for hook in hooks:
        hook.remove()
    values = weight_of(parts.v) @ seen[parts.attention]
    if bias_of(parts.v) is not None:
        values = values + bias_of(parts.v)
    of_heads = values.unflatten(0, (-1, parts.head_dim))[list(loaded.shape.layers[1].kv_of_head)]
    torch.testing.assert_close(seen[parts.o], of_heads.flatten(), rtol=1e-4, atol=1e-5)


@EACH_FAMILY
@pytest.mark.parametrize("seed", range(3))
def test_a_sliced_layer_has_the_dense_rows_and_columns_of_what_is_kept(family, seed):
    loaded = tiny(family)
    plan = random_plan(loaded, seed)
    for number, layer in enumerate(decoder_layers(loaded.model)):
        sliced = slice_layer(loaded, plan, number)
        if isinstance(getattr(sliced, loaded.family.attention), NoAttention):
            continue
        dense, left = layer_parts(layer, loaded.family), layer_parts(sliced, loaded.family)
        heads, kv_heads, neurons = (
            torch.from_numpy(~gone).nonzero()[:, 0]
            for gone in (plan.heads[number], plan.removed_kv_heads(number), plan.neurons[number])
        )
        kept = {
            name: rows_of(units, dense.head_dim) for name, units in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        }
        if loaded.family.normed == "together":
            del kept["q"], kept["k"]  # they stay whole
        for name, rows in kept.items():
            for numbers in (weight_of, bias_of):
                assert_equal(numbers(getattr(left, name)), numbers(getattr(dense, name)), rows)
        if len(neurons):
            for one, other in zip(left.up, dense.up, strict=True):
                assert_equal(weight_of(one), weight_of(other), neurons)
                assert_equal(bias_of(one), bias_of(other), neurons)
        assert_equal(weight_of(left.o).T, weight_of(dense.o).T, rows_of(heads, dense.head_dim))
        assert_equal(weight_of(left.down).T, weight_of(dense.down).T, neurons)
        for name in ("o", "down"):
            assert_equal(bias_of(getattr(left, name)), bias_of(getattr(dense, name)), slice(None))
        of_kv = torch.tensor(loaded.shape.layers[number].kv_of_head)[heads]
        assert kv_groups(left.attention, loaded.family) == tuple((of_kv == kv).sum() for kv in kv_heads)


def assert_equal(left: torch.Tensor | None, dense: torch.Tensor | None, rows) -> None:
    assert (left is None) == (dense is None)
    assert left is None or torch.equal(left, dense[rows])
