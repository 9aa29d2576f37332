"""Criteria that look at gradients of the loss."""

from __future__ import annotations

import torch

from amp_explore.criteria.layer import Layer, down, out, per_head, rms


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
    size = per_head(layer, out(layer).abs().sum(0) * rms(layer, "attention")).sum(1)
    return size + layer.gradients.head_column_magnitude


def gblm_neurons(layer: Layer) -> torch.Tensor:
    """(neurons,) as for heads, over the column of down."""
    return down(layer).abs().sum(0) * rms(layer, "neuron") + layer.gradients.neuron_column_magnitude
