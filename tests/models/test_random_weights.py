"""Models by shape name: the published sizes, reproducible, refused where they do not fit."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from amp_explore.errors import ModelError
from amp_explore.models import random_weights
from amp_explore.models.families import FAMILIES
from amp_explore.models.loading import load
from amp_explore.models.random_weights import SHAPES, make


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("smollm2-135m", 0.134515),
        ("smollm2-1.7b", 1.711376),
        ("llama-2-7b", 6.738415),
        ("llama-2-13b", 13.015864),
        ("llama-3.1-8b", 8.030261),
        ("mistral-7b", 7.248024),
        ("qwen2.5-7b", 7.615617),
        ("qwen3-0.6b", 0.596050),
        ("phi-2", 2.779684),
    ],
)
def test_shapes_have_the_published_number_of_parameters(name, billions):
    described = dict(SHAPES[name])
    config = AutoConfig.for_model(described.pop("model_type"), **described)
    assert config.model_type in FAMILIES
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(config).num_parameters() == pytest.approx(billions * 1e9, abs=1000)


def test_every_shape_is_checked():
    marks = test_shapes_have_the_published_number_of_parameters.pytestmark[0]
    assert {name for name, _ in marks.args[1]} == set(SHAPES)


@pytest.fixture
def small(monkeypatch):
    described = SHAPES["llama-2-7b"] | {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    monkeypatch.setitem(SHAPES, "small", described | {"num_attention_heads": 4, "num_key_value_heads": 4})


def test_the_same_name_gives_the_same_weights_and_says_that_they_are_random(small):
    state = torch.get_rng_state()
    one, other = load("random:small", dtype="float32"), load("random:small", dtype="float32")
    assert torch.equal(state, torch.get_rng_state())
    assert one.random and one.name == "small (random weights)"
    assert one.shape == other.shape
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad


def test_any_text_can_be_tokenised_and_comes_back(small):
    tokenizer = load("random:small").tokenizer
    ids = tokenizer("Grüße, 世界!\n").input_ids
    assert max(ids) < 256
    assert tokenizer.decode(ids) == "Grüße, 世界!\n"


def test_unknown_shapes_are_refused_with_the_known_ones():
    with pytest.raises(ModelError, match="no shape 'llama-9'; random: takes one of smollm2-135m, "):
        load("random:llama-9")


def test_a_shape_that_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(random_weights, "memory", lambda device: (2**30, 2**34))
    with pytest.raises(ModelError, match="llama-2-7b needs 12.6 GiB in bfloat16, and cpu has 1.0 GiB left"):
        make("llama-2-7b", torch.device("cpu"), torch.bfloat16)
