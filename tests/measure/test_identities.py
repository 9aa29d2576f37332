"""The check that users have too: it passes where all is well, and says what is wrong where it is not."""

import pytest
import torch
from tiny import tiny

from amp_explore.measure import identities
from amp_explore.measure.identities import check, check_libraries, plan_by_lot, untried, versions
from amp_explore.models.loading import load
from amp_explore.models.tiny import SPECS
from amp_explore.progress import Cancelled
from amp_explore.surgery.slicing import NoAttention


def said(failures) -> set[str]:
    return {failure.identity for failure in failures}


@pytest.mark.parametrize("dtype", identities.LIMITS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon-grouped", "mixtral"])
def test_all_is_well(family, dtype):
    assert check(tiny(family, dtype)) == []


@pytest.mark.demo
def test_all_is_well_with_the_demo_model():
    assert check(load("demo", dtype="float32")) == []


def test_a_layer_without_heads_that_does_not_count_its_tokens_is_found(monkeypatch):
    """What transformers 5.24 did by renaming an argument."""

    def uncounted(self, hidden_states, *arguments, **options):
        return torch.zeros_like(hidden_states), None

    monkeypatch.setattr(NoAttention, "forward", uncounted)
    failures = check(tiny("gpt2-scaled"))
    assert "cached equals full" in said(failures)
    assert all("gpt2" in str(failure) for failure in failures)


def test_units_that_are_still_there_are_found(monkeypatch):
    slice_model = identities.slice_model
    monkeypatch.setattr(
        identities, "slice_model", lambda loaded, plan: slice_model(loaded, plan_by_lot(plan.shape, 9, extreme=False))
    )
    assert said(check(tiny("llama"))) >= {"empty equals dense, bit for bit", "sliced equals masked"}


def test_a_dense_model_that_changed_is_found(monkeypatch):
    loaded = tiny("qwen2")
    weight = loaded.model.model.norm.weight
    monkeypatch.setattr(identities, "mask", lambda *_: weight.mul_(1.5) is None or loaded.model)
    kept = weight.clone()
    try:
        assert "the dense model stays as it was" in said(check(loaded))
    finally:
        weight.copy_(kept)


def test_a_library_that_refuses_is_a_failure_and_the_others_are_still_tried(monkeypatch):
    tried = []

    def refuse(name):
        tried.append(name)
        raise TypeError("unexpected keyword argument")

    monkeypatch.setattr(identities.tiny, "make", refuse)
    failures = check_libraries()
    assert tried == list(SPECS) == [failure.model for failure in failures]
    assert "unexpected keyword argument" in str(failures[0])


def test_the_check_can_be_cancelled():
    def cancel(*_):
        raise Cancelled

    with pytest.raises(Cancelled):
        check_libraries(progress=cancel)


def test_only_versions_beside_the_lock_are_untried(tmp_path, monkeypatch):
    lock = tmp_path / "requirements.lock"
    lines = [f"{name}=={found.split('+')[0]} ; python_full_version >= '3.11' \\" for name, found in versions().items()]
    lock.write_text("\n".join(["# a comment", *lines, "    --hash=sha256:00"]))
    monkeypatch.setenv("AMP_EXPLORE_LOCK", str(lock))
    assert untried() == {}
    lock.write_text(lock.read_text().replace("transformers==", "transformers==9."))
    assert untried() == {"transformers": versions()["transformers"]}
