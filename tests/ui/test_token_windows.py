"""The dashboard's windows are those of the model's own tokenizer."""

from dataclasses import replace

import pytest
from made_up import made_up_text, tokenizer
from tiny import tiny
from tokenizers import normalizers

from amp_explore.ui.token_windows import Calibration, Evaluation, windows_of

pytestmark = pytest.mark.usefixtures("shared")


def folders() -> list:
    """Two loaded models with the same weights, whose tokenizers differ."""
    other = tokenizer()
    other.backend_tokenizer.normalizer = normalizers.Lowercase()
    return [replace(tiny("llama"), tokenizer=made) for made in (tokenizer(), other)]


@pytest.mark.parametrize("purpose", ["calibration", "evaluation"])
def test_models_with_the_same_weights_and_other_tokenizers_have_other_windows(purpose, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(made_up_text(2000))
    chosen = Calibration(text=str(text), windows=2, window=100)
    first, second = (
        windows_of(loaded, chosen if purpose == "calibration" else Evaluation(1, text=str(text)))
        for loaded in folders()
    )
    assert first.digest != second.digest
