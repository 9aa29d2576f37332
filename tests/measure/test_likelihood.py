"""The harness's own class is the reference: the same likelihoods for every family, dense and sliced, for less work."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from made_up import save_tiny, tokenizer
from tiny import FAMILIES, HEADS, LAYERS, VOCABULARY, random_plan, tiny

from amp_explore.errors import AmpExploreError
from amp_explore.measure import likelihood
from amp_explore.measure.likelihood import Scorer, covers
from amp_explore.models.families import decoder_layers
from amp_explore.models.loading import LoadedModel, from_model, load
from amp_explore.plan import PruningPlan
from amp_explore.progress import Cancelled, no_progress
from amp_explore.surgery.slicing import slice_model

LONG = 256  # more than any sequence here
COVERED = [family for family in FAMILIES if covers(tiny(family).model)]


def random_tokens(count: int, seed: int) -> list[int]:
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def questions() -> list[tuple[list[int], list[int]]]:
    """Pairs as the tasks have them, in no order: answers after one context, contexts that differ inside, answers of one
    token, the same pair twice, a pair that goes on where another ends, and one that shares nothing."""
    context, other = random_tokens(20, 0), random_tokens(25, 1)
    pairs = [(context, random_tokens(count, count)) for count in (1, 3, 9)]
    pairs += [(context[:12] + [option] + context[12:], [5, 6, 7]) for option in (3, 4)]
    pairs += [(other, [token]) for token in (8, 9, 10)]
    pairs += [pairs[1], (pairs[2][0] + pairs[2][1], [11, 12]), (random_tokens(3, 2), random_tokens(30, 3))]
    return pairs


def sliced(loaded: LoadedModel, how: str):
    """By any plan, with a layer without heads; or with KV groups of different sizes in every layer."""
    plan = random_plan(loaded, 3)
    if how == "ragged":
        plan = PruningPlan.empty(loaded.shape)
        for layer in range(len(loaded.shape.layers)):
            plan = plan.with_units("heads", layer, [layer], True).with_units("neurons", layer, range(9), True)
    return slice_model(loaded, plan)


def scored(model, pairs, *, progress=no_progress, **limits) -> list[tuple[float, bool]]:
    return Scorer(model, **limits).log_likelihoods(pairs, progress=progress)


def by_stock(model, pairs, **options) -> list[tuple[float, bool]]:
    """By the harness's own class, which may change what it is given."""
    stock = HFLM(pretrained=copy.deepcopy(model), tokenizer=tokenizer(), batch_size=3, **options)
    return stock._loglikelihood_tokens([(None, *pair) for pair in pairs], disable_tqdm=True)


def assert_same(ours, reference, within: float = 1e-3) -> None:
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in reference], abs=within)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in reference]


@pytest.fixture(params=["apart", "padded"])
def trees(request, monkeypatch):
    """Attention on one tree after the other, as on a CPU, and on all at once, as on a GPU."""
    monkeypatch.setitem(likelihood._PADDED, "cpu", request.param == "padded")


@pytest.mark.usefixtures("trees")
@pytest.mark.parametrize("side", ["dense", "sliced", "ragged"])
@pytest.mark.parametrize("family", COVERED)
def test_likelihoods_are_those_of_the_harness(family, side):
    """Sequences here are longer than the sliding windows of `tiny`, which are 8 tokens."""
    loaded = tiny(family)
    model = loaded.model if side == "dense" else sliced(loaded, side)
    reference = by_stock(model, questions())
    for batch_tokens in (1, 64, 10_000):
        assert_same(scored(model, questions(), max_length=LONG, batch_tokens=batch_tokens), reference)


@pytest.mark.usefixtures("trees")
@pytest.mark.parametrize("side", ["dense", "ragged"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "phi3", "gpt2", "gpt_neox", "olmo2"])
def test_attention_without_sdpa_takes_the_masks_too(family, side):
    model = copy.deepcopy(tiny(family).model)
    model.set_attn_implementation("eager")
    if side == "ragged":
        loaded = from_model(model, None)
        model = sliced(loaded, side)
        if max(loaded.shape.kv_heads) < HEADS:
            attention = getattr(decoder_layers(model)[0], loaded.family.attention)
            assert attention.config._attn_implementation == "ragged_eager"
    assert_same(scored(model, questions(), max_length=LONG, batch_tokens=100), by_stock(model, questions()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi"])
def test_long_sequences_lose_their_first_tokens(family):
    model, pairs = tiny(family).model, questions()
    for max_length in (30, 31):  # the longest answer fills the first
        reference = by_stock(model, pairs, max_length=max_length)
        assert_same(scored(model, pairs, max_length=max_length, batch_tokens=100), reference)
    assert_same(reference[:3], by_stock(model, pairs)[:3])  # what is short enough is whole
    assert reference[-1] != by_stock(model, pairs)[-1]


def test_an_answer_that_the_model_cannot_read_is_refused():
    with pytest.raises(AmpExploreError, match="an answer has 30 tokens, but the model reads at most 29"):
        scored(tiny("llama").model, questions(), max_length=29, batch_tokens=100)


@pytest.mark.parametrize("pair", [([], [3]), ([3], [])])
def test_nothing_is_made_up_for_an_empty_context_or_answer(pair):
    with pytest.raises(ValueError, match="must have a token"):
        scored(tiny("llama").model, [pair], max_length=29, batch_tokens=100)


def test_greedy_is_what_the_model_would_write():
    model, context = tiny("llama").model, random_tokens(10, 0)
    written = model.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False)[0, 10:].tolist()
    pairs = [(context, written), (context, [*written[:3], written[3] % 90 + 3]), (context, written[1:])]
    assert [greedy for _, greedy in scored(model, pairs, max_length=LONG, batch_tokens=64)] == [1, 0, 0]


def test_bfloat16_is_normalised_in_float32():
    model = tiny("llama", "bfloat16").model
    every_token = [(random_tokens(10, 0), [token]) for token in range(VOCABULARY)]
    values = [value for value, _ in scored(model, every_token, max_length=LONG, batch_tokens=100)]
    assert torch.tensor(values).logsumexp(0).item() == pytest.approx(0, abs=1e-4)


token = st.integers(3, 5)  # so few that most sequences share a prefix, or are one
pair = st.tuples(st.lists(token, min_size=1, max_size=12), st.lists(token, min_size=1, max_size=6))


@settings(max_examples=40, deadline=None)
@given(st.lists(pair, min_size=1, max_size=12), st.sampled_from((1, 20, 1000)), st.integers(6, 18))
@torch.inference_mode()
def test_any_pairs_in_any_order(pairs, batch_tokens, max_length):
    model = tiny("mistral").model  # with a sliding window
    ours = scored(model, pairs, max_length=max_length, batch_tokens=batch_tokens)
    for (context, answer), (value, _) in zip(pairs, ours, strict=True):
        tokens = torch.tensor([(context + answer)[-max_length - 1 :]])
        log_probs = model(tokens[:, :-1]).logits[0, -len(answer) :].log_softmax(-1)
        assert value == pytest.approx(log_probs[range(len(answer)), answer].sum().item(), abs=1e-3)


def test_every_prefix_is_computed_once_and_projected_only_where_an_answer_is():
    model, pairs = copy.deepcopy(tiny("llama").model), questions()
    read, projected = [], []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape))
    model.lm_head.register_forward_hook(lambda _, inputs, __: projected.append(inputs[0].shape[:-1].numel()))
    scored(model, pairs, max_length=LONG, batch_tokens=1000)
    prefixes = {tuple((context + answer)[:end]) for context, answer in pairs for end in range(1, len(context + answer))}
    ends = {tuple((context + answer)[: len(context) + i]) for context, answer in pairs for i in range(len(answer))}
    assert read == [(1, len(prefixes))]
    assert projected == [len(ends)]


def test_a_model_in_shards_gives_the_same(tmp_path):
    folder = str(save_tiny(tmp_path / "gemma2", "gemma2"))
    whole = load(folder, device="cpu", dtype="float32")
    places = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu")
    places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(LAYERS)}
    sharded = load(folder, device=places, dtype="float32")
    ours = (scored(loaded.model, questions(), max_length=LONG, batch_tokens=100) for loaded in (whole, sharded))
    assert_same(*ours, within=1e-5)


def test_a_long_context_is_not_repeated_for_each_answer():
    model, read = copy.deepcopy(tiny("llama").model), []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    context = random_tokens(180, 0)
    scored(model, [(context, random_tokens(20, seed)) for seed in range(4)], max_length=LONG, batch_tokens=512)
    assert read == [180 + 4 * 19]


def test_batches_hold_as_many_tokens_as_allowed_and_no_padding():
    model, read = copy.deepcopy(tiny("llama").model), []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].numel()))
    pairs = [([3 + seed, *random_tokens(29 + seed, seed)], [3]) for seed in range(40)]
    tokens = sum(len(context) for context, _ in pairs)
    for batch_tokens in (70, 400, 1000):
        read.clear()
        scored(model, pairs, max_length=LONG, batch_tokens=batch_tokens)
        assert max(read) <= batch_tokens and sum(read) == tokens
        assert len(read) <= 1 + tokens / batch_tokens * 1.3
    read.clear()
    scored(model, pairs, max_length=LONG, batch_tokens=1)
    assert len(read) == len(pairs)


def test_progress_counts_answers_and_may_cancel():
    calls, passes = [], []
    model = copy.deepcopy(tiny("llama").model)
    model.register_forward_hook(lambda *_: passes.append(1))

    def progress(done, total, note):
        calls.append((done, total))
        if len(calls) == 3 and len(passes) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        scored(model, questions(), max_length=LONG, batch_tokens=30, progress=progress)
    assert len(passes) == 2
    scored(model, questions(), max_length=LONG, batch_tokens=30, progress=progress)
    done = [done for done, _ in calls[3:]]
    assert done[0] == 0 and done[-1] == len(questions()) and done == sorted(set(done))
    assert {total for _, total in calls} == {len(questions())}


def test_nothing_to_do_is_nothing_done():
    assert scored(tiny("llama").model, [], max_length=LONG, batch_tokens=100) == []


def test_what_attention_it_covers():
    model = copy.deepcopy(tiny("llama").model)
    assert covers(model) and covers(tiny("gemma2").model)
    assert covers(sliced(tiny("llama"), "ragged")) and covers(sliced(tiny("gemma2"), "ragged"))
    model.config._attn_implementation = "flex_attention"
    assert not covers(model)
    assert {family.split("-")[0] for family in set(FAMILIES) - set(COVERED)} == {"falcon"}  # has its own attention
