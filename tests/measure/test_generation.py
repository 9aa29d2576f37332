"""Every decoder writes what the full forward pass would."""

import copy
import shutil

import pytest
import torch
from tiny import FAMILIES, LAYERS, random_plan, tiny, tokens

from amp_explore.measure import generation
from amp_explore.measure.generation import EagerDecoder, FixedDecoder, decoder, modes_on, side_by_side
from amp_explore.models.families import decoder_layers
from amp_explore.models.loading import from_model
from amp_explore.plan import PruningPlan
from amp_explore.progress import Cancelled
from amp_explore.surgery.slicing import slice_model

MIXTURES = ["mixtral", "qwen3_moe"]
NEW = 25  # past the tiny models' sliding windows of 8


@torch.inference_mode()
def written(decoder, ids, count=NEW) -> torch.Tensor:
    """(B, count) tokens."""
    return torch.cat([decoder.prefill(ids).clone(), *(decoder.step().clone() for _ in range(count - 1))], 1)


@torch.inference_mode()
def expected(model, ids, count=NEW) -> torch.Tensor:
    so_far = ids
    for _ in range(count):
        so_far = torch.cat((so_far, model(so_far, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    return so_far[:, ids.shape[1] :]


def models(family):
    loaded = tiny(family)
    plans = [PruningPlan.empty(loaded.shape), *(random_plan(loaded, seed) for seed in (1, 2))]
    return [slice_model(loaded, plan) for plan in plans]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 10])
def test_both_decoders_write_what_the_full_forward_does(family, length):
    ids = tokens(2, length)
    for model in models(family):
        want = expected(model, ids)
        assert torch.equal(written(EagerDecoder(model), ids), want)
        with torch.inference_mode():
            fixed = FixedDecoder(model, 2, length + NEW, "graph")
        assert torch.equal(written(fixed, ids), want)
        other = tokens(2, max(length - 1, 1), seed=1)
        assert torch.equal(written(fixed, other), expected(model, other))  # nothing is left of the prompt before


def test_the_compiler_knows_the_options_for_a_gpu():
    assert callable(generation._compiled_step("cuda", exactly=True))  # it refuses unknown ones


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_decoder_writes_the_same():
    model, ids = models("qwen2")[1], tokens(1, 10)
    with torch.inference_mode():
        compiled = decoder(model, batch=1, length=10 + NEW, mode="compiled")
    assert compiled.mode == "compiled"
    assert torch.equal(written(compiled, ids), expected(model, ids))


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_of_experts_decode_eagerly_and_say_so(family):
    model, ids = models(family)[1], tokens(1, 10)
    fallen = decoder(model, batch=1, length=10 + NEW, mode="compiled")
    assert fallen.mode == "eager"
    assert torch.equal(written(fallen, ids), expected(model, ids))


def test_where_compiling_fails_decoding_goes_on_and_says_so(monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(generation, "_compiled_step", broken)
    model, ids = models("llama")[1], tokens(1, 10)
    with torch.inference_mode():
        fallen = decoder(model, batch=1, length=10 + NEW, mode="compiled")
    assert fallen.mode == "eager"
    assert "no compiler here" in caplog.text
    assert torch.equal(written(fallen, ids), expected(model, ids))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["graph", "compiled"])
def test_on_cuda_graphs_write_the_same(family, mode):
    loaded = tiny(family)
    loaded = from_model(copy.deepcopy(loaded.model).to("cuda"), None, source=family)
    assert modes_on(torch.device("cuda"))[0] == "compiled"
    for batch in (1, 2):
        ids = tokens(batch, 10).cuda()
        model = slice_model(loaded, random_plan(loaded, seed=batch))
        with torch.inference_mode():
            fixed = decoder(model, batch=batch, length=10 + NEW, mode=mode)
        unrecorded = family in MIXTURES
        if mode == "graph" and family in ("falcon", "falcon-grouped"):
            # Where groups are alike, transformers' Falcon picks keys and values by a list of numbers, which a graph
            # cannot record; where they are ragged, or there is no attention, it does not.
            attentions = [layer.self_attention for layer in decoder_layers(model)]
            unrecorded = any(hasattr(each, "config") and "_split_heads" not in vars(each) for each in attentions)
        assert fixed.mode == ("eager" if unrecorded else mode)
        assert torch.equal(written(fixed, ids), expected(model, ids))


def test_two_models_write_side_by_side_each_on_its_own_clock(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(generation.time, "perf_counter", lambda: float(next(clock)))
    dense, pruned, _ = models("llama")
    ids, shown = tokens(1, 10)[0], []
    streams = side_by_side(
        {"dense": dense, "pruned": pruned},
        ids,
        20,
        mode="eager",
        turn=8,
        show=lambda now: shown.append([len(stream.tokens) for stream in now.values()]),
    )
    assert shown == [[8, 0], [8, 8], [16, 8], [16, 16], [20, 16], [20, 20]]
    for name, model in (("dense", dense), ("pruned", pruned)):
        assert streams[name].tokens == expected(model, ids[None], 20)[0].tolist()
        assert streams[name].tokens_per_s == 1.0  # the clock goes on by one second at each reading
        assert streams[name].prefill_seconds == 1.0


def test_a_model_that_writes_a_stop_token_has_finished_and_the_other_goes_on():
    dense, pruned, _ = models("llama")
    ids = tokens(1, 10)[0]
    want = expected(dense, ids[None], 20)[0].tolist()
    stop = want[5]
    streams = side_by_side({"dense": dense, "pruned": pruned}, ids, 20, mode="eager", stop=[stop])
    assert streams["dense"].tokens == want[: want.index(stop) + 1]
    assert len(streams["pruned"].tokens) == 20 or streams["pruned"].tokens[-1] == stop


def test_streaming_can_be_cancelled_between_turns():
    reports = []

    def cancel(done, total, note):
        reports.append(done)
        if done == 8:
            raise Cancelled

    with pytest.raises(Cancelled):
        side_by_side({"dense": tiny("llama").model}, tokens(1, 10)[0], 20, mode="eager", turn=8, progress=cancel)
    assert reports == [0, 0, 8]


def test_the_dense_model_is_not_changed_by_decoding():
    model = tiny("llama").model
    with torch.inference_mode():
        written(FixedDecoder(model, 1, 40, "graph"), tokens(1, 10))
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(LAYERS))
