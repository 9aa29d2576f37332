"""What must hold for any plan, or no number means anything: tried on a model, with the libraries that are installed.

A release of a library can break slicing without a word: where it renames an argument, what stands in for a module no
longer gets it, and the model goes on, wrongly. So this is not for tests alone: `check_libraries` is asked before
numbers are shown by versions that nobody has tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from amp_explore.measure.generation import FixedDecoder, cached_logits
from amp_explore.models import tiny
from amp_explore.models.experts import MixtureOfExperts
from amp_explore.models.loading import LoadedModel, from_model
from amp_explore.models.shapes import ModelShape
from amp_explore.models.sharding import is_spread
from amp_explore.plan import PruningPlan
from amp_explore.progress import Progress, no_progress
from amp_explore.surgery.masking import mask
from amp_explore.surgery.slicing import slice_model

VERSION = 1
"""Goes up whenever what is tried changes."""

LIMITS = {"float32": 1e-4, "bfloat16": 0.2, "float16": 0.1}
"""The largest relative error of logits that rounding explains, by the model's dtype: in half precision a mixture of
experts may send a token elsewhere. A wrong position gives 0.3 and more."""

SAYS = "sliced equals masked, cached and decoded equal full, and the empty plan is the dense model to the bit"
"""What `check` proves, in words."""

LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")
"""What the identities depend on."""

_BATCH, _TOKENS, _PROMPT = 2, 20, 7


@dataclass(frozen=True)
class Failure:
    """An identity that does not hold: of which model, under which plan, and how far it is off (relative error)."""

    model: str
    identity: str
    plan: str
    error: float

    def __str__(self) -> str:
        return f"{self.model}: {self.identity} does not hold for {self.plan} (relative error {self.error:.2g})"


def check(loaded: LoadedModel, *, progress: Progress = no_progress) -> list[Failure]:
    """Try every identity on a model; an empty list is a proof that they hold.

    For the empty plan and three others (layers without heads, the lowest too, layers without neurons, KV groups of
    different sizes): sliced equals masked, reading token by token with a KV cache equals reading all at once, decoding
    in fixed memory writes the tokens that a full forward pass gives, and the empty plan is the dense model to the bit.

    Args:
        progress: counts plans, and may cancel before each.
    """
    failures = []
    ids, limit = _tokens_for(loaded), LIMITS[loaded.dtype]
    with torch.inference_mode():
        dense = loaded.model(ids).logits
        plans = {"the empty plan": PruningPlan.empty(loaded.shape)}
        plans |= {f"plan {seed} by lot": plan_by_lot(loaded.shape, seed) for seed in (1, 2, 3)}
        for number, (name, plan) in enumerate(plans.items()):
            progress(number, len(plans), f"checking {loaded.name}")
            for identity, error in _errors(loaded, plan, ids):
                if not error <= limit:  # NaN is none either
                    failures.append(Failure(loaded.name, identity, name, error))
        if not torch.equal(loaded.model(ids).logits, dense):
            failures.append(Failure(loaded.name, "the dense model stays as it was", "any plan", float("nan")))
    return failures


def _errors(loaded: LoadedModel, plan: PruningPlan, ids: torch.Tensor) -> Iterator[tuple[str, float]]:
    model = slice_model(loaded, plan)
    full = model(ids).logits
    if plan.is_empty:
        same = torch.equal(full, loaded.model(ids).logits)
        yield "empty equals dense, bit for bit", 0.0 if same else float("inf")
    yield "sliced equals masked", _relative_error(full, mask(loaded, plan)(ids).logits)
    yield "cached equals full", _relative_error(cached_logits(model, ids, first=_PROMPT)[0], full)
    if not (is_spread(model) or any(isinstance(module, MixtureOfExperts) for module in model.modules())):
        yield "decoded equals full", _worst_token(model, ids[:, :_PROMPT])


def _worst_token(model: PreTrainedModel, prompt: torch.Tensor) -> float:
    """How far below the highest logit the tokens lie that are decoded in fixed memory, relative to the logits' size."""
    decoder = FixedDecoder(model, len(prompt), _TOKENS, "graph")
    written = [prompt, decoder.prefill(prompt).clone()]
    written += [decoder.step().clone() for _ in range(_TOKENS - _PROMPT - 1)]
    ids = torch.cat(written, 1)
    logits = model(ids[:, :-1]).logits[:, _PROMPT - 1 :].float()  # (B, new, V)
    chosen = logits.gather(-1, ids[:, _PROMPT:, None])[..., 0]
    return ((logits.amax(-1) - chosen).max() / logits.abs().max()).item()


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.float(), expected.float()
    return ((found - expected).norm() / expected.norm()).item()


def _tokens_for(loaded: LoadedModel) -> torch.Tensor:
    """(B, T) tokens by lot, none of the first three: some models take one of those for padding."""
    lot = torch.Generator().manual_seed(0)
    vocabulary = loaded.model.get_input_embeddings().num_embeddings
    return torch.randint(3, vocabulary, (_BATCH, _TOKENS), generator=lot).to(loaded.device)


def plan_by_lot(shape: ModelShape, seed: int, *, extreme: bool = True) -> PruningPlan:
    """A plan in which every layer is different; with `extreme`, one layer has no heads (for odd seeds the lowest too)
    and another no neurons."""
    lot = np.random.default_rng(seed)
    plan = PruningPlan.empty(shape)
    for number, layer in enumerate(shape.layers):
        plan = plan.with_units("heads", number, lot.random(layer.heads) < lot.random(), True)
        plan = plan.with_units("neurons", number, lot.random(layer.neurons) < lot.random(), True)
    if extreme:
        bare, empty = lot.permutation(max(len(shape.layers), 2))[:2] % len(shape.layers)
        for number in {0, int(bare)} if seed % 2 else {int(bare)}:
            plan = plan.with_units("heads", number, range(shape.layers[number].heads), True)
        plan = plan.with_units("neurons", int(empty), range(shape.layers[empty].neurons), True)
    return plan


def check_libraries(*, progress: Progress = no_progress) -> list[Failure]:
    """`check` on a tiny random model of every family, in all its variants."""
    failures = []
    for number, name in enumerate(tiny.SPECS):
        progress(number, len(tiny.SPECS), f"checking {name}")
        try:
            failures += check(from_model(tiny.make(name), None, source=name))
        except Exception as error:  # a library that refuses what it took before has failed as well
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            failures.append(Failure(name, f"it runs at all ({said})", "some plan", float("nan")))
    return failures


@cache  # they are asked for on every page, and do not change under a process
def versions() -> dict[str, str]:
    """The installed versions of the libraries that the identities depend on."""
    return {name: version(name) for name in LIBRARIES}


def untried() -> dict[str, str]:
    """Those of the installed versions that `requirements.lock` does not name; the tests passed with what it names.
    `AMP_EXPLORE_LOCK` is another lock, of an installation that the tests passed with too."""
    lock = Path(os.environ.get("AMP_EXPLORE_LOCK") or Path(__file__).resolve().parents[2] / "requirements.lock")
    lines = [line.split()[0] for line in lock.read_text().splitlines() if "==" in line] if lock.is_file() else []
    return {name: found for name, found in versions().items() if f"{name}=={found.split('+')[0]}" not in lines}
