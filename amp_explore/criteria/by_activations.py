"""Criteria that look at activations: sums over the tokens of one pass forwards."""

from __future__ import annotations

import torch

from amp_explore.criteria.layer import Layer, down, norm, numbers, out, per_head, rms
from amp_explore.models.families import inputs_of


def amp_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `mean || x_h W_h ||_1`: how much head h writes to the residual stream (AMP, arXiv 2504.21174)."""
    return layer.activations.head_projection


def amp_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean |a_j|` (AMP, arXiv 2504.21174)."""
    return layer.activations.neuron_magnitude


def projected_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean |a_j| ||w_j||_1`: AMP's head score carried over to neurons, as `||a_j w_j||_1` is just that."""
    return layer.activations.neuron_magnitude * norm(down(layer), 1, 0)


def wanda_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `mean_i |W_ij| ||X_j||_2`, summed over the head's columns j (structured Wanda, Sun et al. 2023, arXiv
    2306.11695, in the form of FLAP's repository)."""
    return per_head(layer, out(layer).abs().mean(0) * rms(layer, "attention")).sum(1)


def wanda_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `mean_i |W_ij| ||X_j||_2` (structured Wanda, as for heads)."""
    return down(layer).abs().mean(0) * rms(layer, "neuron")


def flap_heads(layer: Layer) -> torch.Tensor:
    """(heads,) `Var(X_j) ||W_:j||_2^2`, the mean over the head's columns j (FLAP, An et al. 2023, arXiv 2312.11983)."""
    return per_head(layer, layer.activations.attention_variance * out(layer).square().sum(0)).mean(1)


def flap_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `Var(X_j) ||W_:j||_2^2` (FLAP, An et al. 2023, arXiv 2312.11983)."""
    return layer.activations.neuron_variance * norm(down(layer), 2, 0).square()


def minitron_heads(layer: Layer) -> torch.Tensor:
    """(heads,) L2 over prompts of `mean ||x_h||_2` (Minitron, Muralidharan et al. 2024, arXiv 2407.14679)."""
    return layer.activations.head_norm


def minitron_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) L2 over prompts of `mean |a_j|` (Minitron, Muralidharan et al. 2024, arXiv 2407.14679)."""
    return layer.activations.neuron_norm


def cfsp_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) `(|w_j| ||X_j|| + |W_up,j| + |W_gate,j|) ||X_j||`, each of the three as a share of its sum over all
    neurons (CFSP, Wang et al. 2024, arXiv 2409.13199)."""
    activity = rms(layer, "neuron")
    parts = [norm(down(layer), 1, 0) * activity, *(norm(numbers(up), 1, 1) for up in layer.parts.up)]
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
