"""Every criterion there is: what is known of a model in, one score per head and per neuron out.

A criterion is two small pure functions of one layer's weights, statistics, gradients or Gram matrices; the lowest
scores go first. `CRITERIA` is the one list that the dashboard, the command line and the documentation read.
"""

from __future__ import annotations

import numpy as np
import torch

from amp_explore.criteria.by_activations import (
    amp_heads,
    amp_neurons,
    cfsp_neurons,
    flap_heads,
    flap_neurons,
    minitron_heads,
    minitron_neurons,
    projected_neurons,
    routed_neurons,
    wanda_heads,
    wanda_neurons,
)
from amp_explore.criteria.by_gradients import (
    gblm_heads,
    gblm_neurons,
    relevance_heads,
    relevance_neurons,
    taylor_heads,
    taylor_neurons,
    taylor_second_heads,
    taylor_second_neurons,
)
from amp_explore.criteria.by_grams import obs_greedy_heads, obs_greedy_neurons, obs_heads, obs_neurons
from amp_explore.criteria.by_weights import (
    heads_by_lot,
    magnitude_heads,
    magnitude_neurons,
    neurons_by_lot,
    spectrum_neurons,
)
from amp_explore.criteria.layer import Criterion, Evidence, Function, Layer, layers_of
from amp_explore.criteria.scores import Scores
from amp_explore.errors import AmpExploreError
from amp_explore.models.loading import LoadedModel
from amp_explore.models.sharding import is_spread
from amp_explore.progress import Progress, no_progress

VERSION = 1
"""Part of the key of every kept score; goes up whenever a formula of a criterion changes."""

HEADS_BY_DEFAULT = "amp"
"""The criterion for heads where the chosen one scores neurons alone."""

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
        heads=heads_by_lot,
        neurons=neurons_by_lot,
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
    for name in (criterion,) if heads is None else (criterion, heads):
        if name not in CRITERIA:
            raise AmpExploreError(f"criterion {name!r} is not known; use one of {', '.join(CRITERIA)}")
    if heads is not None and CRITERIA[heads].heads is None:
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
            of_heads.append(_finite(by_head, layer, loaded))
            of_neurons.append(_finite(by_neuron, layer, loaded))
    return Scores(tuple(of_heads), tuple(of_neurons))


def _finite(criterion: Function, layer: Layer, loaded: LoadedModel) -> np.ndarray:
    """(units,) the layer's scores. Raises `AmpExploreError` where some are not finite numbers."""
    try:
        values = criterion(layer).float().cpu().numpy()
    except torch.linalg.LinAlgError:  # what has no finite solution either
        values = np.array(np.nan)
    if not np.isfinite(values).all():
        remedy = "take another criterion" if loaded.dtype == "float32" else "take float32"
        raise AmpExploreError(f"some units of layer {layer.number} have no finite score in {loaded.dtype}; {remedy}")
    return values
