"""What kept numbers depend on besides what is asked: the part that their keys in the `Store` have in common."""

from __future__ import annotations

import torch
import transformers

from amp_explore.keeping.store import Key
from amp_explore.models.loading import LoadedModel
from amp_explore.texts.calibration import TokenWindows

VERSION = 2
"""Part of every cache key; goes up whenever slicing, a repair or a measurement changes its numbers."""


def on_text(loaded: LoadedModel, windows: TokenWindows) -> Key:
    """What numbers depend on that were found with a model on a text."""
    return {"model": loaded.shape.fingerprint, "windows": windows.digest, **numerics(loaded)}


def numerics(loaded: LoadedModel) -> Key:
    """What every number that is kept depends on, besides the model's own."""
    return {
        "code": VERSION,
        "dtype": loaded.dtype,
        "device": loaded.device.type,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
