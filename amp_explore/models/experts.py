"""A mixture of experts as one MLP.

The experts of a layer side by side are one MLP: neuron `expert * I + j` is neuron j of an expert. What routing adds is
a factor for each neuron's activation: the routing weight of its expert, and 0 where the token is not sent there. Seen
like that everything written for MLPs holds for experts too, and after slicing experts of one layer may differ in width.

`install_experts` puts `MixtureOfExperts` in the place of transformers' own blocks. Only the chosen experts are
computed, unless a hook watches the projections.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from amp_explore.models.sharding import keep, tensor_of


class MixtureOfExperts(nn.Module):
    """The experts of a layer, `widths[e]` neurons each, and the router (experts, d) that chooses `top_k` of them."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        experts, router = block.experts, block.gate
        gate, up = experts.gate_up_proj.data.chunk(2, 1)  # (E, I, d) each
        self.router = _linear(router.weight.data)
        self.gate_proj, self.up_proj = _linear(gate.flatten(0, 1)), _linear(up.flatten(0, 1))  # (E * I, d)
        self.down_proj = DownProjection(experts.down_proj.data.transpose(1, 2).flatten(0, 1))  # (E * I, d)
        self.act_fn = experts.act_fn
        self.widths = (gate.shape[1],) * gate.shape[0]
        self.top_k = router.top_k
        self.normalised = getattr(router, "norm_topk_prob", True)  # routing weights are made to sum to 1
        self.closed: torch.Tensor | None = None  # (E,) bool: experts that no token is sent to

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, T, d)."""
        watched = (self.gate_proj, self.up_proj, self.down_proj)
        if any(part._forward_pre_hooks or part._forward_hooks for part in watched):
            return self._all_experts(hidden_states)
        if not self.widths:
            return torch.zeros_like(hidden_states)
        states = hidden_states.flatten(0, -2)
        weights = self._routing(states)  # (tokens, E)
        gate, up, down = (tensor_of(part, "weight") for part in watched)
        parts = zip(*(weight.split(self.widths) for weight in (gate, up, down)), strict=True)
        experts, tokens = weights.T.nonzero(as_tuple=True)  # all tokens of one expert, then those of the next
        tokens_of = tokens.split(experts.bincount(minlength=len(self.widths)).tolist())
        output = torch.zeros_like(states)
        for expert, ((gate, up, down), tokens) in enumerate(zip(parts, tokens_of, strict=True)):
            if len(tokens):
                inputs = states[tokens]
                activations = self.act_fn(inputs @ gate.T) * (inputs @ up.T) * weights[tokens, expert, None]
                output.index_add_(0, tokens, activations @ down)
        return output.view_as(hidden_states)

    def _all_experts(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The same, with the activations of every expert where a hook sees them: (B, T, neurons), many of them 0."""
        activations = self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        widths = torch.tensor(self.widths, dtype=torch.long, device=hidden_states.device)
        return self.down_proj(activations * self._routing(hidden_states).repeat_interleave(widths, -1))

    def _routing(self, states: torch.Tensor) -> torch.Tensor:
        """(..., d) -> (..., E), each token's weight of each expert."""
        logits = self.router(states)
        if self.closed is not None:
            logits = logits.masked_fill(self.closed, torch.finfo(logits.dtype).min)  # finite, for all may be closed
        chances = logits.softmax(-1, dtype=torch.float32)
        best, chosen = chances.topk(min(self.top_k, len(self.widths)), -1)
        if self.normalised:
            best = best / best.sum(-1, keepdim=True)
        return torch.zeros_like(chances).scatter(-1, chosen, best).to(states.dtype)

    def leave(self, kept: torch.Tensor) -> None:
        """Take note of the neurons (n,) that are kept, once the projections have lost the others; an expert without any
        goes, and with it its row of the router."""
        expert_of_neuron = torch.arange(len(self.widths)).repeat_interleave(torch.tensor(self.widths))
        widths = expert_of_neuron[kept].bincount(minlength=len(self.widths))
        left = widths.nonzero()[:, 0]
        if len(left) < len(self.widths):
            keep(self.router, "outputs", left)
        self.widths = tuple(widths[left].tolist())

    def close(self, gone: torch.Tensor) -> None:
        """Send no token to the experts whose neurons are all gone (neurons,)."""
        self.closed = torch.stack([each.all() for each in gone.split(self.widths)]).to(self.router.weight.device)

    @property
    def multiplied_weights(self) -> int:
        """Weights that a token is multiplied with, of experts as wide as they are on average; the router's too."""
        projections = self.gate_proj.weight.numel() + self.up_proj.weight.numel() + self.down_proj.weight.numel()
        experts = len(self.widths)
        return self.router.weight.numel() + projections * min(self.top_k, experts) // max(experts, 1)


class DownProjection(Conv1D):
    """Without a bias, stored (in, out): an expert's neurons lie together."""

    def __init__(self, weight: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.nx, self.nf = weight.shape
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """(..., neurons) -> (..., d)."""
        return activations @ self.weight


def install_experts(layers: nn.ModuleList) -> None:
    """Put `MixtureOfExperts` in the place of transformers' blocks in a model's decoder layers."""
    for layer in layers:
        if hasattr(layer.mlp, "experts"):
            layer.mlp = MixtureOfExperts(layer.mlp)


def _linear(weight: torch.Tensor) -> nn.Linear:
    linear = nn.utils.skip_init(nn.Linear, *reversed(weight.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return linear
