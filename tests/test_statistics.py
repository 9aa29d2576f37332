"""Scores against a plain second implementation: one prompt at a time, every product written out in full."""

import numpy as np
import pytest
import torch
from made_up import layer_shape, model_shape
from safetensors.torch import save_file
from tiny import FAMILIES, LAYERS, tiny, tokens
from transformers.pytorch_utils import Conv1D

from amp_explore import statistics
from amp_explore.calibration import TokenWindows
from amp_explore.criteria import CRITERIA, Scores, score
from amp_explore.errors import AmpExploreError
from amp_explore.progress import Cancelled
from amp_explore.statistics import collect
from benchmarks import scoring

LENGTHS = (3, 17, 9, 17, 1, 30)


def prompts(*lengths: int) -> TokenWindows:
    return TokenWindows(tuple(tokens(1, length, seed)[0] for seed, length in enumerate(lengths)), "made up", False)


def inputs_of(loaded, ids, names):
    """{module name: its input (T, width)} for the modules whose name ends like that, on one prompt."""
    seen, handles = {}, []
    for name, module in loaded.model.named_modules():
        if name.endswith(names):
            keep = lambda _, inputs, name=name: seen.__setitem__(name, inputs[0].flatten(0, -2).double())  # noqa: E731
            handles.append(module.register_forward_pre_hook(keep))
    with torch.inference_mode():
        loaded.model(ids[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


ATTENTION_OUTPUTS = ("self_attn.o_proj", "self_attn.dense", "self_attn.out_proj", "attn.c_proj", "attention.dense")
DOWN_PROJECTIONS = ("mlp.down_proj", ".fc2", "mlp.c_proj", "mlp.dense_4h_to_h")


def weight(loaded, name) -> torch.Tensor:
    """(out, in)."""
    module = loaded.model.get_submodule(name)
    return (module.weight.T if isinstance(module, Conv1D) else module.weight).double()


def plain_scores(loaded, windows, criterion):
    """Two lists over prompts of (layers, units): mean over the prompt's tokens."""
    heads_of_prompts, neurons_of_prompts = [], []
    for ids in windows.ids:
        heads, neurons = [], []
        for name, x in inputs_of(loaded, ids, ATTENTION_OUTPUTS).items():
            w_o = weight(loaded, name)  # (hidden, heads * head_dim)
            per_head = (len(w_o), loaded.shape.layers[0].heads, -1)
            products = torch.einsum("thd,ohd->tho", x.view(len(x), *per_head[1:]), w_o.reshape(per_head))
            heads.append(products.abs().sum(2).mean(0))  # products: (T, heads, hidden)
        for name, a in inputs_of(loaded, ids, DOWN_PROJECTIONS).items():
            w_down = weight(loaded, name)  # (hidden, neurons)
            if criterion == "amp":
                neurons.append(a.abs().mean(0))
            else:
                neurons.append((a[:, :, None] * w_down.T[None]).abs().sum(2).mean(0))  # (T, neurons, hidden)
        heads_of_prompts.append(torch.stack(heads))
        neurons_of_prompts.append(torch.stack(neurons))
    return heads_of_prompts, neurons_of_prompts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_means_over_prompts_of_means_over_tokens(family, criterion):
    loaded, windows = tiny(family), prompts(*LENGTHS)
    scores = score(loaded, collect(loaded, windows), criterion)
    for got, of_prompts in zip((scores.heads, scores.neurons), plain_scores(loaded, windows, criterion), strict=True):
        expected = torch.stack(of_prompts).mean(0)
        np.testing.assert_allclose(np.stack(got), expected, rtol=2e-5, atol=1e-7)
        over_all_tokens = np.average(torch.stack(of_prompts), axis=0, weights=LENGTHS)
        assert not np.allclose(np.stack(got), over_all_tokens, rtol=1e-3), "the prompts do not tell the two means apart"


def test_statistics_do_not_depend_on_how_prompts_are_batched():
    loaded, windows = tiny("llama"), prompts(*[250] * 9, 40, 7)
    layers_run = []
    together = collect(loaded, windows, progress=lambda done, *_: layers_run.append(done))
    assert layers_run[-1] > LAYERS, "one batch took all: this compares nothing"
    alone = [collect(loaded, TokenWindows((ids,), "one", False)) for ids in windows.ids]
    for name in ("head_projection", "neuron_magnitude"):
        for layer, got in enumerate(getattr(together, name)):
            expected = torch.stack([getattr(one, name)[layer] for one in alone]).mean(0)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_statistics_do_not_depend_on_how_products_are_chunked(monkeypatch):
    loaded, windows = tiny("qwen3"), prompts(30, 30, 11)
    whole = collect(loaded, windows)
    monkeypatch.setattr(statistics, "_PRODUCT_BYTES", {"cpu": 7 * loaded.shape.layers[0].hidden * 4})  # 7 tokens
    for got, expected in zip(collect(loaded, windows).head_projection, whole.head_projection, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


def test_statistics_in_bfloat16_are_close_to_the_exact_ones():
    exact, rough = (collect(tiny("llama", dtype), prompts(*LENGTHS)) for dtype in ("float32", "bfloat16"))
    for name in ("head_projection", "neuron_magnitude"):
        for got, expected in zip(getattr(rough, name), getattr(exact, name), strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02 * expected.max().item())


def hooks_of(model) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_progress_counts_layers_of_every_batch_and_the_dense_model_is_left_as_it_was():
    loaded, windows, reports = tiny("mistral"), prompts(*[250] * 9), []  # 3 batches: 4, 4 and 1 prompts
    with torch.inference_mode():
        before = loaded.model(tokens(1, 20)).logits
        collect(loaded, windows, progress=lambda done, total, note: reports.append((done, total)))
        assert torch.equal(loaded.model(tokens(1, 20)).logits, before)
    assert reports == [(done, 3 * LAYERS) for done in range(3 * LAYERS + 1)]
    assert hooks_of(loaded.model) == 0


@pytest.mark.parametrize("at", [1, 2, LAYERS + 2])
def test_cancel_passes_and_leaves_no_hook_behind(at):
    loaded, calls = tiny("mistral"), []

    def cancel(*report):
        calls.append(report)
        if len(calls) == at:
            raise Cancelled

    with pytest.raises(Cancelled):
        collect(loaded, prompts(*[250] * 9), progress=cancel)
    assert len(calls) == at
    assert hooks_of(loaded.model) == 0


def test_unknown_criterion_is_refused_with_the_known_ones():
    loaded = tiny("llama")
    with pytest.raises(AmpExploreError, match="'magic' is not known; use one of amp, amp-projection"):
        score(loaded, collect(loaded, prompts(5)), "magic")


# Scores as a file


def random_scores(shape) -> Scores:
    lot = np.random.default_rng(0)
    heads, neurons = (tuple(lot.random(n, np.float32) for n in widths) for widths in (shape.heads, shape.neurons))
    return Scores(heads, neurons)


EVEN = model_shape((layer_shape(hidden=8, heads=4, kv_heads=2, head_dim=4, neurons=9),) * 3)
RAGGED = model_shape((*EVEN.layers[:2], layer_shape(hidden=8, heads=4, kv_heads=2, head_dim=4, neurons=5)))


@pytest.mark.parametrize("shape", [EVEN, RAGGED], ids=["even", "ragged"])
def test_scores_survive_a_file(shape, tmp_path):
    scores = random_scores(shape)
    (tmp_path / "scores.safetensors").write_bytes(scores.to_safetensors(criterion="amp"))
    back = Scores.load(tmp_path / "scores.safetensors", shape)
    for name in ("heads", "neurons"):
        for got, expected in zip(getattr(back, name), getattr(scores, name), strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"heads": torch.zeros(3, 4)},
        {"heads": torch.zeros(3, 4), "neurons": torch.zeros(3, 8)},
        {"heads": torch.zeros(2, 4), "neurons": torch.zeros(3, 9)},
        {"heads": torch.zeros(3, 2, 2), "neurons": torch.zeros(3, 9)},
        {"heads": torch.tensor(1.0), "neurons": torch.zeros(3, 9)},
        {"heads": torch.full((3, 4), torch.nan), "neurons": torch.zeros(3, 9)},
    ],
    ids=["empty", "no neurons", "fewer neurons", "fewer layers", "heads in squares", "a number", "not a number"],
)
def test_scores_that_do_not_fit_are_refused(tensors, tmp_path):
    save_file(tensors, tmp_path / "scores.safetensors")
    with pytest.raises(AmpExploreError, match="scores.safetensors: "):
        Scores.load(tmp_path / "scores.safetensors", EVEN)


@pytest.mark.parametrize("content", [None, b"", b"no tensors", EVEN.fingerprint.encode() * 100])
def test_scores_that_cannot_be_read_are_refused_in_one_line(content, tmp_path):
    path = tmp_path / "scores.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AmpExploreError, match="cannot be read as scores") as raised:
        Scores.load(path, EVEN)
    assert "\n" not in str(raised.value)


def test_cut_off_scores_are_refused(tmp_path):
    data = random_scores(EVEN).to_safetensors()
    (tmp_path / "scores.safetensors").write_bytes(data[:-5])
    with pytest.raises(AmpExploreError, match="cannot be read as scores"):
        Scores.load(tmp_path / "scores.safetensors", EVEN)


# The benchmark


def test_the_benchmark_measures_two_ways_to_the_same_scores(tiny_model):
    result = scoring.run("cpu", prompts=3, tokens=20, repeats=2, model=str(tiny_model), dtype="float32")
    assert result["scoring_speedup_cpu"] > 0
    details = result["details"]
    assert len(details["ours"]["rounds"]) == len(details["straightforward"]["rounds"]) == 2
    assert 0 < details["scores_differ_by"] < 1e-3 and details["model"]["dtype"] == "float32"
