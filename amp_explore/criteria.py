"""Which units matter: what is known of a layer in, one score per head and per neuron out.

A criterion is two small pure functions of one layer's weights, statistics, gradients or Gram matrices; the lowest
scores go first. `CRITERIA` is the one list that the dashboard, the command line and the documentation read.

Notation: x_h (head_dim,) is head h's input to the output projection and W_h its columns there; a_j is neuron j's input
to the down projection and w_j (hidden,) its column there. The coupled weights of a unit are everything that goes with
it: the rows of q, k and v and the columns of o; the rows of up (and gate) and the column of down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save

from amp_explore.errors import AmpExploreError
from amp_explore.gradients import LayerGradients
from amp_explore.models.families import LayerParts, decoder_layers, inputs_of, layer_parts, weight_of
from amp_explore.models.loading import LoadedModel
from amp_explore.models.shapes import ModelShape
from amp_explore.models.sharding import is_spread
from amp_explore.progress import Progress, no_progress
from amp_explore.statistics import ActivationStatistics, LayerGrams, LayerStatistics

VERSION = 1
"""Part of the key of every kept score; goes up whenever a formula below changes."""

HEADS_BY_DEFAULT = "amp"
"""The criterion for heads where the chosen one scores neurons alone."""

RIDGE = 1e-2
"""Of the mean diagonal of a Gram matrix, what the `obs` scores add to it."""


@dataclass(frozen=True, eq=False)
class Scores:
    """One float32 array per layer: `heads[l]` (heads,), `neurons[l]` (neurons,)."""

    heads: tuple[np.ndarray, ...]
    neurons: tuple[np.ndarray, ...]

    def to_safetensors(self, **metadata: str) -> bytes:
        """Tensors `heads` and `neurons` (layers, units); where layers differ in width, `heads.0`, `heads.1`, ...
        instead."""
        return save(tensors_of(heads=self.heads, neurons=self.neurons), metadata)

    @classmethod
    def load(cls, path: str | Path, shape: ModelShape) -> Scores:
        """Read scores for the model of this shape. Raises `AmpExploreError` where they do not fit."""
        try:
            with safe_open(path, "pt") as file:
                tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except Exception as error:  # a missing file, a truncated one, another format
            raise AmpExploreError(f"{path}: cannot be read as scores ({error}); make it with `score`") from None
        made_for = metadata.get("fingerprint", shape.fingerprint)
        if made_for != shape.fingerprint:
            raise AmpExploreError(f"{path}: scores of another model (fingerprint {made_for}); score this model first")
        fields = []
        for name, widths in (("heads", shape.heads), ("neurons", shape.neurons)):
            if name in tensors:
                layers = list(torch.atleast_2d(tensors[name]))
            else:
                layers = [tensors.get(f"{name}.{number}") for number in range(len(widths))]
            found = [None if layer is None else tuple(layer.shape) for layer in layers]
            if found != [(width,) for width in widths]:
                raise AmpExploreError(f"{path}: the {name} do not fit this model; score this model first")
            if not all(layer.isfinite().all() for layer in layers):
                raise AmpExploreError(f"{path}: some {name} have no finite score; score this model again")
            fields.append(tuple(layer.float().numpy() for layer in layers))
        return cls(*fields)


def tensors_of(**units: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    """One tensor (layers, units) by name; where layers differ in width, one for each: `name.0`, `name.1`, ..."""
    tensors: dict[str, torch.Tensor] = {}
    for name, layers in units.items():
        if len({len(layer) for layer in layers}) == 1:
            tensors[name] = torch.from_numpy(np.stack(layers))
        else:
            tensors |= {f"{name}.{number}": torch.from_numpy(layer) for number, layer in enumerate(layers)}
    return tensors


def scores_by_lot(shape: ModelShape, seed: int = 0) -> Scores:
    """Scores that mean nothing, for models that know nothing."""
    lot = np.random.default_rng(seed)
    drawn = (tuple(lot.random(width, np.float32) for width in widths) for widths in (shape.heads, shape.neurons))
    return Scores(*drawn)


@dataclass(frozen=True)
class Evidence:
    """What was collected for a model, one entry per layer; criteria say which of it they need."""

    activations: ActivationStatistics = ()
    gradients: Sequence[LayerGradients] = ()
    grams: Sequence[LayerGrams] = ()


@dataclass(frozen=True)
class Method:
    """How one budget or one repair works; the words are shown to people. `needs` names fields of `Evidence`."""

    title: str
    says: str
    formula: str
    source: str
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layer:
    """All that a criterion may look at in one layer. What the criterion does not need may be None."""

    number: int
    parts: LayerParts
    activations: LayerStatistics | None
    gradients: LayerGradients | None
    grams: LayerGrams | None


Function = Callable[[Layer], torch.Tensor]


@dataclass(frozen=True)
class Criterion:
    """How one method scores a layer's units. `formula`, `source` and `says` are shown to people.

    `heads` is None where the method scores neurons alone. `needs` names fields of `Evidence`. `slow` criteria take
    seconds even when that is there.
    """

    title: str
    says: str
    formula: str
    source: str
    neurons: Function
    heads: Function | None
    needs: frozenset[str] = frozenset({"activations"})
    slow: bool = False

    @property
    def covers(self) -> str:
        return "heads and neurons" if self.heads else "neurons"


# AMP


def amp_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `mean || x_h W_h ||_1`: how much head h writes to the residual stream (AMP, arXiv 2504.21174)."""
    return layer.activations.head_projection


def amp_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean |a_j|` (AMP, arXiv 2504.21174)."""
    return layer.activations.neuron_magnitude


def projected_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean |a_j| ||w_j||_1`: AMP's head score carried over to neurons, as `||a_j w_j||_1` is just that."""
    return layer.activations.neuron_magnitude * _norm(_down(layer), 1, 0)


# Weights alone


def magnitude_heads(order: int) -> Function:
    """(heads,) L1 or L2 norm of the coupled weights (Han et al. 2015; Zhu and Gupta 2017); a KV head's count for every
    head of its group."""

    def norms(layer: Layer) -> torch.Tensor:
        parts, size = layer.parts, layer.parts.head_dim
        columns = _norm(_out(layer).unflatten(1, (-1, size)), order, (0, 2))  # (heads,)
        coupled = (*parts.with_head, *parts.with_kv_head)
        rows = [_norm(_numbers(each).unflatten(0, (-1, size)), order, (1, 2)) for each in coupled]
        return _whole([columns, *(units.repeat_interleave(len(columns) // len(units)) for units in rows)], order)

    return norms


def magnitude_neurons(order: int) -> Function:
    """(neurons,) L1 or L2 norm of the coupled weights (Han et al. 2015; Zhu and Gupta 2017)."""
    return lambda layer: _whole(
        [_norm(_down(layer), order, 0), *(_norm(_numbers(up), order, 1) for up in layer.parts.up)], order
    )


def spectrum_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `sum_i (s_i - s_i')`: how far the singular values s of the up (and gate) and the down projection fall
    when the neuron's row or column goes, after PruneNet (Sengupta et al. 2025, arXiv 2501.15296).

    Without w, the eigenvalues of `W W^T - w w^T` are `s_i^2 - (u_i . w)^2` to first order, u_i the singular vectors.
    """
    total = torch.zeros(())
    for units in (*(_numbers(up) for up in layer.parts.up), _down(layer).T):  # (neurons, n)
        values, vectors = torch.linalg.eigh((units.T @ units).double())  # (n,), columns of (n, n)
        rank = min(units.shape)
        values, vectors = values[-rank:].clamp(min=0), vectors[:, -rank:]
        lost = (units.double() @ vectors).square()  # (neurons, rank)
        total = total + (values.sqrt() - (values - lost).clamp(min=0).sqrt()).sum(1)
    return total


# Activations


def wanda_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `mean_i |W_ij| ||X_j||_2`, summed over the head's columns j (structured Wanda, Sun et al. 2023, arXiv
    2306.11695, in the form of FLAP's repository)."""
    return _per_head(layer, _out(layer).abs().mean(0) * _rms(layer, "attention")).sum(1)


def wanda_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean_i |W_ij| ||X_j||_2` (structured Wanda, as for heads)."""
    return _down(layer).abs().mean(0) * _rms(layer, "neuron")


def flap_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `Var(X_j) ||W_:j||_2^2`, the mean over the head's columns j (FLAP, An et al. 2023, arXiv 2312.11983)."""
    return _per_head(layer, layer.activations.attention_variance * _out(layer).square().sum(0)).mean(1)


def flap_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `Var(X_j) ||W_:j||_2^2` (FLAP, An et al. 2023, arXiv 2312.11983)."""
    return layer.activations.neuron_variance * _norm(_down(layer), 2, 0).square()


def minitron_heads(layer: Layer) -> torch.Tensor:
    """(heads,) L2 over prompts of `mean ||x_h||_2` (Minitron, Muralidharan et al. 2024, arXiv 2407.14679)."""
    return layer.activations.head_norm


def minitron_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) L2 over prompts of `mean |a_j|` (Minitron, Muralidharan et al. 2024, arXiv 2407.14679)."""
    return layer.activations.neuron_norm


def cfsp_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `(|w_j| ||X_j|| + |W_up,j| + |W_gate,j|) ||X_j||`, each of the three as a share of its sum over all
    neurons (CFSP, Wang et al. 2024, arXiv 2409.13199)."""
    activity = _rms(layer, "neuron")
    parts = [_norm(_down(layer), 1, 0) * activity, *(_norm(_numbers(up), 1, 1) for up in layer.parts.up)]
    least = torch.finfo(torch.float32).tiny  # neurons that never fire have no activity to share
    return sum(part / part.sum().clamp(min=least) for part in parts) * activity


def routed_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean ||g_e E_e(h)||_2` of the neuron's expert e, over all tokens: what routing makes of its output
    (REAP, Lasby et al. 2025, arXiv 2510.13999, which takes the mean over the tokens that are sent to e). Where a model
    has layers without experts too, their neurons are scored by `amp_neurons`."""
    of_experts = layer.activations.expert_output
    if not len(of_experts):
        return amp_neurons(layer)
    return of_experts.repeat_interleave(inputs_of(layer.parts.down) // len(of_experts))


# Gradients


def taylor_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `|sum w g|` over the coupled weights w and their gradients g: the loss's change to first order when all
    of them go at once (LLM-Pruner, Ma et al. 2023, arXiv 2305.11627)."""
    return layer.gradients.head_product.abs()


def taylor_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) as for heads."""
    return layer.gradients.neuron_product.abs()


def taylor_second_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `|sum w g - 1/2 sum w^2 E[g^2]|`: the squared gradient stands for the Hessian's diagonal (LLM-Pruner, Ma
    et al. 2023, arXiv 2305.11627)."""
    return (layer.gradients.head_product - layer.gradients.head_square / 2).abs()


def taylor_second_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) as for heads."""
    return (layer.gradients.neuron_product - layer.gradients.neuron_square / 2).abs()


def relevance_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `mean |x_h . dL/dx_h|`: gradient times activation (after Yeom et al. 2019, arXiv 1912.08881)."""
    return layer.gradients.head_relevance


def relevance_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean |a_j dL/da_j|` (as for heads)."""
    return layer.gradients.neuron_relevance


def gblm_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `sum |W| ||X||_2 + |W| |G|` over the columns of o, G the mean absolute gradient (GBLM-Pruner, Das et al.
    2023, arXiv 2311.04902, summed over the unit)."""
    size = _per_head(layer, _out(layer).abs().sum(0) * _rms(layer, "attention")).sum(1)
    return size + layer.gradients.head_column_magnitude


def gblm_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) as for heads, over the column of down."""
    return _down(layer).abs().sum(0) * _rms(layer, "neuron") + layer.gradients.neuron_column_magnitude


# Gram matrices


def obs_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `tr(W_h [(G + lambda I)^-1]_hh^-1 W_h^T)`: the rise of the output projection's mean squared error when
    head h goes and the other heads are fitted anew (optimal brain surgeon by blocks; ZipLM, Kurtic et al. 2023, arXiv
    2302.04089)."""
    return _Surgery(layer.parts.o, layer.grams.attention, layer.parts.head_dim).errors().float()


def obs_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `||w_j||^2 / [(G + lambda I)^-1]_jj`: as for heads, in the down projection (SPA, Wang et al. 2024,
    arXiv 2403.18955; ZipLM)."""
    return _Surgery(layer.parts.down, layer.grams.mlp, 1).errors().float()


def obs_greedy_heads(layer: Layer) -> torch.Tensor:
    """(heads,) the same error summed up to where head h goes, when the heads go one by one, always the one that is
    missed least by those still there, which are fitted anew each time (ZipLM)."""
    return _Surgery(layer.parts.o, layer.grams.attention, layer.parts.head_dim).one_after_the_other()


def obs_greedy_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) as for heads, in the down projection."""
    return _Surgery(layer.parts.down, layer.grams.mlp, 1).one_after_the_other()


def ridged(gram: torch.Tensor) -> torch.Tensor:
    """G + lambda I (n, n), lambda being `RIDGE` of the mean diagonal."""
    # A block that never sees anything has G = 0; any ridge will do there.
    ridge = RIDGE * gram.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return gram + ridge * torch.eye(len(gram)).to(gram)


class _Surgery:
    """A projection W (out, units * size), what remains of it fitted anew whenever units go; in float64.

    With H the inverse of the inputs' Gram matrix, what the loss of the columns S costs is `tr(W_S H_SS^-1 W_S^T)`; then
    `W -= W_S H_SS^-1 H_S` and `H -= H_S^T H_SS^-1 H_S` are weights and inverse without them.
    """

    def __init__(self, projection, gram: torch.Tensor, size: int) -> None:
        self.weights = weight_of(projection).double()
        gram = ridged(gram.to(self.weights))
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self.columns = torch.arange(len(gram), device=gram.device).view(-1, size)  # of each unit

    def errors(self) -> torch.Tensor:
        """(units,) what each unit's loss alone costs."""
        blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]  # (units, size, size)
        weights = self.weights.T[self.columns]  # (units, size, out)
        return (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))

    def one_after_the_other(self) -> torch.Tensor:
        """(units,) what the losses cost together, up to each unit's; of many units, 1 in 128 go before the next
        look."""
        at_once = max(1, len(self.columns) // 128)
        total, scores = 0.0, self.errors().new_zeros(len(self.columns))
        left = torch.arange(len(self.columns), device=scores.device)
        while len(left):
            errors = self.errors()
            order = errors.argsort()
            going, staying = order[:at_once], order[at_once:].sort().values
            scores[left[going]] = total + errors[going]
            total += self._lose(going, staying)
            left = left[staying]
        return scores.float()

    def _lose(self, going: torch.Tensor, staying: torch.Tensor) -> float:
        gone, kept = self.columns[going].flatten(), self.columns[staying].flatten()
        weights, rows = self.weights[:, gone], self.inverse[gone]  # W_S, H_S
        solved = torch.linalg.solve(rows[:, gone], torch.cat((weights.T, rows[:, kept]), 1))
        by_weights, by_rows = solved.split((len(self.weights), len(kept)), 1)
        self.weights = self.weights[:, kept] - weights @ by_rows
        self.inverse = self.inverse[kept][:, kept] - rows[:, kept].T @ by_rows
        self.columns = torch.arange(len(kept), device=kept.device).view(-1, self.columns.shape[1])
        return (weights.T * by_weights).sum().item()


_ACTIVATIONS_AND_GRADIENTS = frozenset({"activations", "gradients"})

CRITERIA: dict[str, Criterion] = {
    "amp": Criterion(
        title="AMP",
        says="What a head writes to the residual stream, and how strongly a neuron fires.",
        formula="head: mean ‖x_h W_h‖₁ · neuron: mean |a_j|",
        source="Mugnaini et al. 2025, arXiv 2504.21174",
        heads=amp_heads,
        neurons=amp_neurons,
    ),
    "amp-projection": Criterion(
        title="AMP, neurons projected",
        says="AMP's head score for neurons too: what each writes to the residual stream.",
        formula="head: mean ‖x_h W_h‖₁ · neuron: mean |a_j| · ‖w_j‖₁",
        source="AMP's head score applied to neurons",
        heads=amp_heads,
        neurons=projected_neurons,
    ),
    "magnitude": Criterion(
        title="Magnitude, L2",
        says="How large the unit's weights are; looks at no text.",
        formula="‖coupled weights‖₂",
        source="Han et al. 2015, arXiv 1506.02626",
        heads=magnitude_heads(2),
        neurons=magnitude_neurons(2),
        needs=frozenset(),
    ),
    "magnitude-l1": Criterion(
        title="Magnitude, L1",
        says="The sum of the unit's absolute weights; looks at no text.",
        formula="‖coupled weights‖₁",
        source="Zhu and Gupta 2017, arXiv 1710.01878",
        heads=magnitude_heads(1),
        neurons=magnitude_neurons(1),
        needs=frozenset(),
    ),
    "wanda-sp": Criterion(
        title="Wanda, structured",
        says="Weights times the size of what they see.",
        formula="Σ_j mean_i |W_ij| · ‖X_j‖₂",
        source="Sun et al. 2023, arXiv 2306.11695; FLAP's repository",
        heads=wanda_heads,
        neurons=wanda_neurons,
    ),
    "flap": Criterion(
        title="FLAP",
        says="How much a unit's output fluctuates: what is constant, a bias can replace.",
        formula="Var(X_j) · ‖W_:j‖₂², mean over a head's columns",
        source="An et al. 2023, arXiv 2312.11983",
        heads=flap_heads,
        neurons=flap_neurons,
    ),
    "minitron": Criterion(
        title="Minitron",
        says="The size of the activation alone, its large prompts counting more.",
        formula="L2 over prompts of: mean ‖x_h‖₂ · mean |a_j|",
        source="Muralidharan et al. 2024, arXiv 2407.14679",
        heads=minitron_heads,
        neurons=minitron_neurons,
    ),
    "cfsp": Criterion(
        title="CFSP",
        says="Activations and all three of the MLP's weights, as shares of their sums.",
        formula="neuron: (|w_j| ‖X_j‖ + |W_up,j| + |W_gate,j|) · ‖X_j‖",
        source="Wang et al. 2024, arXiv 2409.13199",
        heads=None,
        neurons=cfsp_neurons,
    ),
    "routed-output": Criterion(
        title="Routed output",
        says="What the neuron's whole expert writes, and how often tokens are sent there: for whole experts.",
        formula="neuron of expert e: mean ‖g_e E_e(h)‖₂",
        source="REAP, Lasby et al. 2025, arXiv 2510.13999",
        heads=None,
        neurons=routed_neurons,
    ),
    "taylor": Criterion(
        title="Taylor, first order",
        says="The loss's change to first order when the whole unit goes.",
        formula="|Σ w g| over the coupled weights",
        source="LLM-Pruner, Ma et al. 2023, arXiv 2305.11627",
        heads=taylor_heads,
        neurons=taylor_neurons,
        needs=frozenset({"gradients"}),
    ),
    "taylor-second": Criterion(
        title="Taylor, second order",
        says="First order and, from squared gradients, second.",
        formula="|Σ w g − ½ Σ w² E[g²]|",
        source="LLM-Pruner, Ma et al. 2023, arXiv 2305.11627",
        heads=taylor_second_heads,
        neurons=taylor_second_neurons,
        needs=frozenset({"gradients"}),
    ),
    "gblm-style": Criterion(
        title="GBLM style",
        says="Weights times what they see, and weights times their gradients.",
        formula="Σ |W| ‖X‖₂ + |W| |G|",
        source="Das et al. 2023, arXiv 2311.04902",
        heads=gblm_heads,
        neurons=gblm_neurons,
        needs=_ACTIVATIONS_AND_GRADIENTS,
    ),
    "relevance": Criterion(
        title="Relevance",
        says="Gradient times activation: how much of the loss passes through the unit.",
        formula="mean |x_h · ∂L/∂x_h| · mean |a_j ∂L/∂a_j|",
        source="Yeom et al. 2019, arXiv 1912.08881",
        heads=relevance_heads,
        neurons=relevance_neurons,
        needs=frozenset({"gradients"}),
    ),
    "spectrum": Criterion(
        title="Spectrum",
        says="How far the MLP's singular values fall without the neuron; looks at no text.",
        formula="neuron: Σ_i (s_i − √(s_i² − (u_i·w)²))",
        source="PruneNet, Sengupta et al. 2025, arXiv 2501.15296",
        heads=None,
        neurons=spectrum_neurons,
        needs=frozenset(),
        slow=True,
    ),
    "obs": Criterion(
        title="OBS",
        says="The error that is left when the unit goes and the rest is fitted anew.",
        formula="‖w_j‖² / [(G+λI)⁻¹]_jj; by blocks for heads",
        source="SPA, Wang et al. 2024, arXiv 2403.18955; ZipLM, arXiv 2302.04089",
        heads=obs_heads,
        neurons=obs_neurons,
        needs=frozenset({"grams"}),
        slow=True,
    ),
    "obs-greedy": Criterion(
        title="OBS, one after the other",
        says="As OBS, but looked at anew whenever some units went: two that stand in for each other do not both go.",
        formula="Σ ‖w_j‖² / [(G+λI)⁻¹]_jj over all that went before, W and G those of the units still there",
        source="ZipLM, Kurtic et al. 2023, arXiv 2302.04089",
        heads=obs_greedy_heads,
        neurons=obs_greedy_neurons,
        needs=frozenset({"grams"}),
        slow=True,
    ),
    "random": Criterion(
        title="Random",
        says="By lot: what any criterion has to beat.",
        formula="u ~ U(0, 1)",
        source="control",
        heads=lambda layer: _by_lot(layer.number, "heads", inputs_of(layer.parts.o) // layer.parts.head_dim),
        neurons=lambda layer: _by_lot(layer.number, "neurons", inputs_of(layer.parts.down)),
        needs=frozenset(),
    ),
    "reversed": Criterion(
        title="AMP reversed",
        says="AMP's highest first: what ruins the model soonest.",
        formula="head: −mean ‖x_h W_h‖₁ · neuron: −mean |a_j|",
        source="control in AMP, arXiv 2504.21174",
        heads=lambda layer: -amp_heads(layer),
        neurons=lambda layer: -amp_neurons(layer),
    ),
}


def check(criterion: str, heads: str | None = None) -> None:
    """Raise `AmpExploreError` unless `score` would take these criteria."""
    for name in filter(None, (criterion, heads)):
        if name not in CRITERIA:
            raise AmpExploreError(f"criterion {name!r} is not known; use one of {', '.join(CRITERIA)}")
    if heads and CRITERIA[heads].heads is None:
        raise AmpExploreError(f"criterion {heads!r} scores neurons alone; take another for heads, such as amp")


def heads_by(criterion: str, heads: str | None = None) -> str:
    """The criterion that scores heads when `criterion` scores neurons and `heads` was asked for."""
    return heads or (criterion if CRITERIA[criterion].heads else HEADS_BY_DEFAULT)


def is_slow(criterion: str, heads: str | None = None) -> bool:
    """Whether `score` takes seconds."""
    return CRITERIA[criterion].slow or CRITERIA[heads_by(criterion, heads)].slow


def needs(criterion: str, heads: str | None = None) -> frozenset[str]:
    """Fields of `Evidence` that `score` will look at."""
    return CRITERIA[criterion].needs | CRITERIA[heads_by(criterion, heads)].needs


def unavailable(criterion: str, loaded: LoadedModel) -> str | None:
    """Why a criterion cannot be used on this model; None where it can."""
    if "gradients" in CRITERIA[criterion].needs and is_spread(loaded.model):
        return "it needs gradients, and those need the whole model on one device"
    if criterion == "routed-output" and max(layer.experts for layer in loaded.shape.layers) == 1:
        return "it scores whole experts, and there are none"
    return None


def score(
    loaded: LoadedModel,
    evidence: Evidence,
    criterion: str = "amp",
    heads: str | None = None,
    *,
    progress: Progress = no_progress,
) -> Scores:
    """Scores of every unit; no forward pass.

    `heads` is the criterion for heads where it is another one; of criteria that score neurons alone, amp's.
    `progress` is called before each layer, and may cancel.

    Raises:
        AmpExploreError: a criterion that is unknown or not for this model, or a score that is not a finite number.
    """
    check(criterion, heads)
    for name in {criterion, heads_by(criterion, heads)}:
        if reason := unavailable(name, loaded):
            raise AmpExploreError(f"criterion {name!r} cannot score this model: {reason}; take another")
    by_head, by_neuron = CRITERIA[heads_by(criterion, heads)].heads, CRITERIA[criterion].neurons
    of_heads, of_neurons, count = [], [], len(loaded.shape.layers)
    with torch.inference_mode():
        for layer in layers_of(loaded, evidence):
            progress(layer.number, count, f"{CRITERIA[criterion].title}, layer {layer.number}")
            of_heads.append(by_head(layer).float().cpu().numpy())
            of_neurons.append(by_neuron(layer).float().cpu().numpy())
    found = Scores(tuple(of_heads), tuple(of_neurons))
    if not all(np.isfinite(layer).all() for layer in (*found.heads, *found.neurons)):
        raise AmpExploreError(f"criterion {criterion!r} gives no finite score for some units; take float32 precision")
    return found


def layers_of(loaded: LoadedModel, evidence: Evidence) -> Iterator[Layer]:
    """What is known of each layer."""
    for number, layer in enumerate(decoder_layers(loaded.model)):
        known = [field[number] if field else None for field in vars(evidence).values()]
        yield Layer(number, layer_parts(layer, loaded.family), *known)


def _numbers(projection) -> torch.Tensor:
    """(out, in) weights, float32, on the CPU."""
    return weight_of(projection).float().cpu()


def _out(layer: Layer) -> torch.Tensor:
    return _numbers(layer.parts.o)  # (hidden, heads * head_dim)


def _down(layer: Layer) -> torch.Tensor:
    return _numbers(layer.parts.down)  # (hidden, neurons)


def _per_head(layer: Layer, columns: torch.Tensor) -> torch.Tensor:
    """(heads * head_dim,) -> (heads, head_dim)."""
    return columns.unflatten(0, (-1, layer.parts.head_dim))


def _rms(layer: Layer, which: str) -> torch.Tensor:
    """(units,) `||X_j||_2` over the root of the number of tokens, which is the same for all."""
    mean, variance = (getattr(layer.activations, f"{which}_{moment}") for moment in ("mean", "variance"))
    return (variance + mean.square()).sqrt()


def _norm(weights: torch.Tensor, order: int, dim: int | tuple[int, ...]) -> torch.Tensor:
    return torch.linalg.vector_norm(weights, order, dim)


def _whole(norms: Sequence[torch.Tensor], order: int) -> torch.Tensor:
    """The norms of units from those of their parts."""
    return _norm(torch.stack(list(norms)), order, 0)


def _by_lot(layer: int, unit: str, count: int) -> torch.Tensor:
    lot = torch.Generator().manual_seed(2 * layer + (unit == "neurons"))
    return torch.rand(count, generator=lot)
