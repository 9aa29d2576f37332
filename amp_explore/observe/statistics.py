"""One pass over the calibration windows: everything the forward-only criteria need to know about activations, as sums.

Activations are reduced where they arise and never kept, so memory does not grow with the calibration text: hooks see
each output projection's input x (B, T, heads * head_dim), each down projection's input a (B, T, neurons), and what
enters and leaves each layer. All criteria of `criteria.CRITERIA` that need no gradients are computed from these sums,
so another criterion never costs another pass.

Gram matrices (mean of x x^T) are collected in the same pass where asked for; `gram_bytes` says what they take. They
come in two parts, of disjoint windows: what is fitted on the one is checked on the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from amp_explore.errors import AmpExploreError
from amp_explore.models.experts import DownProjection, MixtureOfExperts
from amp_explore.models.families import Family, decoder_layers, head_slices, layer_parts, share
from amp_explore.models.loading import LoadedModel
from amp_explore.models.shapes import ModelShape
from amp_explore.models.sharding import is_spread, memory, suited
from amp_explore.observe.limits import require_finite_layers, require_room
from amp_explore.progress import Progress, no_progress
from amp_explore.texts.calibration import TokenWindows

VERSION = 4
"""Part of the keys of kept statistics and scores; goes up whenever the numbers below change."""

HELD_OUT = 8
"""Every so many windows, one is held out of the first part of the Gram matrices and makes the second."""

_BATCH_TOKENS = {"cuda": 8192, "else": 1024}
# Of one head's projected output (tokens, hidden), so much exists at a time: on a CPU, what stays in its cache.
_PRODUCT_BYTES = {"cuda": 2**26, "else": 2**21}


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What one layer does on the calibration text, float32.

    The first four are averages over prompts of averages over their tokens, as in AMP (arXiv 2504.21174) and Minitron
    (arXiv 2407.14679); the others are over all tokens.
    """

    head_projection: torch.Tensor
    """(heads,) `|| x_h W_h ||_1`, what head h writes to the residual stream."""
    head_norm: torch.Tensor
    """(heads,) `|| x_h ||_2`; of the prompts' averages, the root of the mean square."""
    neuron_magnitude: torch.Tensor
    """(neurons,) `|a_j|`."""
    neuron_norm: torch.Tensor
    """(neurons,) `|a_j|`; of the prompts' averages, the root of the mean square."""
    attention_mean: torch.Tensor
    """(heads * head_dim,) of x."""
    attention_variance: torch.Tensor
    """(heads * head_dim,) of x."""
    neuron_mean: torch.Tensor
    """(neurons,) of a."""
    neuron_variance: torch.Tensor
    """(neurons,) of a."""
    expert_output: torch.Tensor
    """(experts,) `|| g_e E_e(h) ||_2`, what expert e writes with its routing weight, 0 for tokens sent elsewhere; empty
    without a mixture of experts."""
    angle: torch.Tensor
    """() between what enters and what leaves the layer, as a share of pi."""
    inverse_power: torch.Tensor
    """() `1 / ||h||^2` of what enters the layer."""


ActivationStatistics = tuple[LayerStatistics, ...]


@dataclass(frozen=True, eq=False)
class LayerGrams:
    """Gram matrices of one layer: means of x x^T over tokens, float32."""

    attention: torch.Tensor
    """(heads * head_dim, heads * head_dim), of the output projection's input."""
    attention_held_out: torch.Tensor
    mlp: torch.Tensor
    """(neurons, neurons), of the down projection's input."""
    mlp_held_out: torch.Tensor


def batch_tokens(device: torch.device) -> int:
    """How many calibration tokens run through a model at a time."""
    return suited(_BATCH_TOKENS, device)


def gram_bytes(shape: ModelShape) -> int:
    """Bytes that the Gram matrices of a model take, in memory and in the cache."""
    widths = [width for layer in shape.layers for width in (layer.heads * layer.head_dim, layer.neurons)]
    return sum(2 * 4 * width**2 for width in widths)


def collect(loaded: LoadedModel, windows: TokenWindows, *, progress: Progress = no_progress) -> ActivationStatistics:
    """Run the dense model once over the windows. `progress` counts layers, of every batch, and may cancel before
    each.

    Raises:
        AmpExploreError: windows are longer than the model's context.
        NotFinite: what the model computes is NaN or infinite.
    """
    return _collect(loaded, windows, False, progress)[0]


def collect_with_grams(
    loaded: LoadedModel, windows: TokenWindows, *, progress: Progress = no_progress
) -> tuple[ActivationStatistics, tuple[LayerGrams, ...]]:
    """As `collect`, and the Gram matrices from the same pass.

    Raises:
        AmpExploreError: there is no memory for them, or there are fewer than two windows; and as for `collect`.
    """
    needed = gram_bytes(loaded.shape)
    # They are summed up where the layers compute, and come to main memory all together.
    places = {torch.device("cpu")} | (set() if is_spread(loaded.model) else {loaded.device})
    free = min(memory(place)[0] for place in places)
    if needed > free:
        raise AmpExploreError(
            f"the Gram matrices of this model take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            "take a criterion and a repair that need none"
        )
    return _collect(loaded, windows, True, progress)


def _collect(
    loaded: LoadedModel, windows: TokenWindows, grams: bool, progress: Progress
) -> tuple[ActivationStatistics, tuple[LayerGrams, ...]]:
    require_room(loaded.model, windows)
    tokens = batch_tokens(loaded.device)
    fitted, held_out = split_windows(windows) if grams else (windows.ids, ())
    batches = [(False, *batch) for batch in _batches(fitted, tokens)]
    batches += [(True, *batch) for batch in _batches(held_out, tokens)]
    sums = _Sums(loaded, len(batches), grams, progress)
    with torch.inference_mode():
        for held, ids, attended in batches:
            sums.add(ids.to(loaded.device), attended.to(loaded.device), held)
    progress(sums.steps, sums.steps, "scoring")
    prompts, both = len(windows.ids), (sum(map(len, fitted)), sum(map(len, held_out)))
    layers = tuple(_averages(layer, prompts, windows.tokens) for layer in sums.layers)
    products = tuple(_gram_averages(layer, *both) for layer in sums.layers) if grams else ()
    require_finite_layers(loaded.model, layers)
    require_finite_layers(loaded.model, products)
    return layers, products


def split_windows(windows: TokenWindows) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """(windows to fit on, windows held out), at least one of each.

    Raises:
        AmpExploreError: there are fewer than two windows.
    """
    if len(windows.ids) < 2:
        raise AmpExploreError("one calibration window cannot be split into a part to fit and one to check; take more")
    every = min(HELD_OUT, len(windows.ids))
    return (
        tuple(window for number, window in enumerate(windows.ids) if number % every != every - 1),
        tuple(windows.ids[every - 1 :: every]),
    )


def _averages(sums: dict[str, torch.Tensor], prompts: int, tokens: int) -> LayerStatistics:
    """The layer's statistics from its sums over prompts and over tokens."""
    fields = {
        "head_projection": sums["head_projection"] / prompts,
        "head_norm": (sums["head_norm"] / prompts).sqrt(),
        "neuron_magnitude": sums["neuron_magnitude"] / prompts,
        "neuron_norm": (sums["neuron_norm"] / prompts).sqrt(),
        "expert_output": sums["expert_output"] / tokens,
        "angle": sums["angle"] / tokens,
        "inverse_power": sums["inverse_power"] / tokens,
    }
    for name in ("attention", "neuron"):
        fields[f"{name}_mean"] = mean = sums[f"{name}_sum"] / tokens
        fields[f"{name}_variance"] = (sums[f"{name}_square"] / tokens - mean.square()).clamp(min=0)
    return LayerStatistics(**{name: value.float().cpu() for name, value in fields.items()})


def _gram_averages(sums: dict[str, torch.Tensor], fitted: int, held_out: int) -> LayerGrams:
    return LayerGrams(
        *(
            (sums.pop(f"{block}_gram_{held}") / tokens).cpu()
            for block in ("attention", "mlp")
            for held, tokens in ((False, fitted), (True, held_out))
        )
    )


class _Sums:
    """Sums of every layer, in float64 (the Gram matrices in float32), and the hooks that add to them."""

    def __init__(self, loaded: LoadedModel, batches: int, grams: bool, progress: Progress) -> None:
        self.model = share(loaded.model)  # hooked instead of the dense model, which others may be running
        layers = decoder_layers(self.model)
        self.layers: list[dict[str, torch.Tensor]] = [defaultdict(lambda: torch.zeros(())) for _ in layers]
        self.attended, self.padded = torch.empty(0), False  # (B, T) bool, False on padding; whether there is any
        self.grams, self.held_out = grams, False
        self.progress, self.done, self.steps = progress, 0, batches * len(layers)
        for number, layer in enumerate(layers):
            parts = layer_parts(layer, loaded.family)
            layer.register_forward_pre_hook(self._report)
            layer.register_forward_hook(self._layer_hook(self.layers[number], loaded.family))
            parts.o.register_forward_pre_hook(self._attention_hook(self.layers[number], parts.head_dim))
            parts.down.register_forward_pre_hook(self._neurons_hook(self.layers[number]))
            if isinstance(parts.mlp, MixtureOfExperts):
                parts.down.register_forward_pre_hook(self._experts_hook(self.layers[number], parts.mlp.widths))
            else:
                self.layers[number]["expert_output"] = torch.zeros(0)

    def add(self, ids: torch.Tensor, attended: torch.Tensor, held_out: bool) -> None:
        """Run a batch of prompts (B, T) through the decoder alone: the vocabulary projection is not needed."""
        self.attended, self.padded, self.held_out = attended, not attended.all(), held_out
        # without padding no mask is given, which lets attention take its fast path
        self.model.base_model(ids, attention_mask=attended.long() if self.padded else None, use_cache=False)

    def _report(self, *_) -> None:
        self.progress(self.done, self.steps, "scoring")
        self.done += 1

    def _layer_hook(self, sums: dict[str, torch.Tensor], family: Family):
        def add(layer: nn.Module, inputs: tuple[torch.Tensor], output) -> None:
            entered, left = inputs[0], family.states_of(output)  # (B, T, d)
            cosine = torch.cosine_similarity(entered, left.to(entered.device), -1).float().clamp(-1, 1)  # (B, T)
            power = entered.float().square().sum(-1).clamp(min=torch.finfo(torch.float32).tiny)  # (B, T)
            attended = self.attended.to(cosine.device)
            inverse = (1 / power[attended]).sum().clamp(max=torch.finfo(torch.float32).max)  # states may be zero
            add_to(sums, angle=cosine[attended].arccos().sum() / torch.pi, inverse_power=inverse)

        return add

    def _attention_hook(self, sums: dict[str, torch.Tensor], head_dim: int):
        def add(linear: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
            slices = head_slices(linear, head_dim)  # (heads, head_dim, hidden)
            x = inputs[0].flatten(0, 1)  # (B * T, heads * head_dim)
            chunk = max(1, suited(_PRODUCT_BYTES, x.device) // (slices.shape[-1] * x.itemsize))
            projected = [
                torch.cat([_l1(part @ weight, -1) for part in columns.split(chunk)])  # (B * T,)
                for columns, weight in zip(x.split(head_dim, 1), slices, strict=True)
            ]
            x = self._attended(inputs[0])  # (B, T, heads * head_dim)
            projected = self._attended(torch.stack(projected, -1).unflatten(0, x.shape[:2]))  # (B, T, heads)
            norms = torch.linalg.vector_norm(x.unflatten(-1, (-1, head_dim)), dim=-1)  # (B, T, heads)
            add_to(sums, head_projection=self._per_prompt(projected.sum(1)).sum(0))
            add_to(sums, head_norm=self._per_prompt(norms.sum(1)).square().sum(0))
            self._moments(sums, "attention", x)
            self._gram(sums, "attention", x)

        return add

    def _neurons_hook(self, sums: dict[str, torch.Tensor]):
        def add(linear: nn.Linear, inputs: tuple[torch.Tensor]) -> None:
            a = self._attended(inputs[0].view(*self.attended.shape, -1))  # some come as (B * T, neurons)
            magnitude = self._per_prompt(_l1(a, 1))  # (B, neurons)
            add_to(sums, neuron_magnitude=magnitude.sum(0), neuron_norm=magnitude.square().sum(0))
            self._moments(sums, "neuron", a)
            self._gram(sums, "mlp", a)

        return add

    def _experts_hook(self, sums: dict[str, torch.Tensor], widths: Sequence[int]):
        def add(down: DownProjection, inputs: tuple[torch.Tensor]) -> None:
            a = self._attended(inputs[0].view(*self.attended.shape, -1)).flatten(0, 1)  # (B * T, neurons)
            parts = zip(a.split(widths, 1), down.weight.split(widths), strict=True)
            norms = [torch.linalg.vector_norm((part @ weight).float(), dim=1).sum() for part, weight in parts]
            add_to(sums, expert_output=torch.stack(norms))

        return add

    def _attended(self, values: torch.Tensor) -> torch.Tensor:
        """(B, T, units), zero on padding."""
        return values.where(self.attended.to(values.device)[..., None], 0) if self.padded else values

    def _per_prompt(self, totals: torch.Tensor) -> torch.Tensor:
        """Sums over tokens (B, units) -> means over each prompt's tokens, float64."""
        return totals.double() / self.attended.to(totals.device).sum(1)[:, None]

    def _moments(self, sums: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
        flat = values.flatten(0, 1).float()  # (B * T, units)
        add_to(sums, **{f"{name}_sum": flat.sum(0), f"{name}_square": torch.linalg.vector_norm(flat, dim=0).square()})

    def _gram(self, sums: dict[str, torch.Tensor], block: str, values: torch.Tensor) -> None:
        if not self.grams:
            return
        flat, name = values.flatten(0, 1).float(), f"{block}_gram_{self.held_out}"
        if name not in sums:
            sums[name] = flat.new_zeros(flat.shape[1], flat.shape[1])
        sums[name].addmm_(flat.T, flat)


def add_to(sums: dict[str, torch.Tensor], **values: torch.Tensor) -> None:
    """Add to sums by name, in float64, each where its values are."""
    for name, value in values.items():
        sums[name] = sums[name].to(value.device) + value.double()


def _l1(values: torch.Tensor, dim: int) -> torch.Tensor:
    """L1 norm in float32. The norm's kernel reads its input once, which counts on a GPU; on a CPU it is the slower."""
    if values.is_cuda:
        return torch.linalg.vector_norm(values, 1, dim, dtype=torch.float32)
    return values.abs().sum(dim, dtype=torch.float32)


def _batches(windows: tuple[torch.Tensor, ...], tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Sequences of similar length together, padded on the right: (B, T) ids, (B, T) bool."""
    ordered = sorted(windows, key=len, reverse=True)
    while ordered:
        size = max(1, tokens // len(ordered[0]))
        batch, ordered = ordered[:size], ordered[size:]
        ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(window) for window in batch])
        yield ids, torch.arange(ids.shape[1]) < lengths[:, None]
