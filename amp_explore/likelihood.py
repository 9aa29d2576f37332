"""Log-likelihoods of answers after their contexts, every token computed once for all sequences that begin alike.

A plain evaluator runs the context of a question once per answer. Here the sequences stand in lexicographic order, which
makes neighbours of those that begin alike, and are packed as trees: a sequence adds only the tokens after the prefix
that it shares with the one before it. A tree lies in a row of the batch depth first, each token at the position it has
in its sequence, and a mask lets it attend to its ancestors only. The vocabulary projection is computed where a token
of an answer is predicted, and nowhere else.

Nothing here knows where the sequences come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from amp_explore.errors import AmpExploreError
from amp_explore.models.families import share
from amp_explore.models.sharding import device_of
from amp_explore.progress import Progress, no_progress

# A row takes in sequences up to this many tokens, then only those that share a quarter of theirs with the one before.
# Longer rows tear fewer prefixes apart and need less padding, but attention runs over the whole row.
_ROW_TOKENS = {"cpu": 128, "else": 512}
# Logits that are normalised at a time: on a CPU, what stays in its cache.
_LOGITS = {"cpu": 2**20, "else": 2**26}
_OPEN = 2**31  # the end of a subtree that is still growing


def covers(model: PreTrainedModel) -> bool:
    """Whether `log_likelihoods` can run the model: its attention must take a ready mask."""
    return model.config._attn_implementation in ("sdpa", "eager")


def log_likelihoods(
    model: PreTrainedModel,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    max_length: int,
    batch_tokens: int,
    progress: Progress = no_progress,
) -> list[tuple[float, bool]]:
    """Log-likelihood of each answer given its context, in nats, and whether greedy decoding would give that answer.

    Args:
        model: a dense or sliced causal model in eval mode that `covers` accepts.
        pairs: tokens of context and answer, neither of them empty.
        max_length: the most tokens that the model reads; of a longer sequence the first ones are left out.
        batch_tokens: the most tokens in one forward pass, padding included (a longer sequence goes alone).
        progress: called between batches with the number of answers scored and their total; it may cancel.

    Raises:
        AmpExploreError: an answer alone is longer than ``max_length``.
        ValueError: a context or an answer is empty.
    """
    totals = torch.zeros(len(pairs), dtype=torch.float64)
    greedy = torch.ones(len(pairs), dtype=torch.bool)
    scorer, done = _Scorer(model), 0
    rows = _rows(pairs, max_length, batch_tokens, _on(device_of(model), _ROW_TOKENS))
    with torch.inference_mode():
        for batch in _batches(rows, batch_tokens):
            progress(done, len(pairs), "log-likelihoods")
            owners, values, hits = scorer(batch)
            totals.index_add_(0, owners, values.double())
            greedy[owners[~hits]] = False
            done += sum(row.sequences for row in batch)
    progress(done, len(pairs), "log-likelihoods")
    return list(zip(totals.tolist(), greedy.tolist(), strict=True))


class _Row:
    """Sequences as trees, one node per token that is not shared, in depth-first order.

    For each node `ids`, `depths` (its position in the sequence) and `ends` (the first later node that is not below it).
    For each token of an answer `owners` (whose), `nodes` (where it is predicted) and `targets` (the token).
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.depths: list[int] = []
        self.ends: list[int] = []
        self.owners: list[int] = []
        self.nodes: list[int] = []
        self.targets: list[int] = []
        self.sequences = 0
        self._path: list[int] = []  # nodes of the latest sequence

    def shared(self, tokens: list[int]) -> int:
        """Length of the prefix that the tokens share with the latest sequence."""
        pairs = zip(self._path, tokens, strict=False)
        differing = (depth for depth, (node, token) in enumerate(pairs) if self.ids[node] != token)
        return next(differing, min(len(self._path), len(tokens)))

    def takes(self, tokens: list[int], batch_tokens: int, row_tokens: int) -> bool:
        """Whether a sequence should be added here, and not to a new row."""
        shared = self.shared(tokens)
        size = len(self.ids) + len(tokens) - shared
        return size <= batch_tokens and (size <= row_tokens or shared >= len(tokens) / 4)

    def add(self, number: int, tokens: list[int], answer: list[int]) -> None:
        """Add a sequence without its last token, and what to score: the answer, which ends one token later."""
        shared, start = self.shared(tokens), len(self.ids)
        for node in self._path[shared:]:
            self.ends[node] = start
        self._path[shared:] = range(start, start + len(tokens) - shared)
        self.ids += tokens[shared:]
        self.depths += range(shared, len(tokens))
        self.ends += [_OPEN] * (len(tokens) - shared)
        self.owners += [number] * len(answer)
        self.nodes += self._path[-len(answer) :]
        self.targets += answer
        self.sequences += 1


def _rows(
    pairs: Sequence[tuple[list[int], list[int]]], max_length: int, batch_tokens: int, row_tokens: int
) -> list[_Row]:
    if not all(context and answer for context, answer in pairs):
        raise ValueError("contexts and answers must have a token at least")
    longest = max((len(answer) for _, answer in pairs), default=0)
    if longest > max_length:
        raise AmpExploreError(
            f"an answer has {longest} tokens, but the model reads at most {max_length}; use one with a longer context"
        )
    inputs = [(context + answer)[-max_length - 1 : -1] for context, answer in pairs]
    rows: list[_Row] = []
    for number in sorted(range(len(pairs)), key=inputs.__getitem__):
        tokens = inputs[number]
        if not rows or not rows[-1].takes(tokens, batch_tokens, row_tokens):
            rows.append(_Row())
        rows[-1].add(number, tokens, pairs[number][1])
    return rows


def _batches(rows: list[_Row], batch_tokens: int) -> Iterator[list[_Row]]:
    """Longest rows first, and together only those that differ in length by less than a quarter: little is padding."""
    rows = sorted(rows, key=lambda row: -len(row.ids))
    while rows:
        longest = len(rows[0].ids)
        batch = [row for row in rows[: max(1, batch_tokens // longest)] if len(row.ids) > 0.75 * longest]
        yield batch
        rows = rows[len(batch) :]


class _Scorer:
    """A copy of the model that computes the vocabulary projection at chosen places only."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = share(model)
        self._model.get_output_embeddings().register_forward_pre_hook(self._choose)
        self._places = torch.empty(0, dtype=torch.long)

    def _choose(self, projection: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """(B, T, d) -> (places, d)."""
        hidden = inputs[0].flatten(0, 1)
        return (hidden[self._places.to(hidden.device)],)

    def __call__(self, rows: list[_Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each answer token, on the CPU: whose it is, its log-probability, whether it is the likeliest."""
        device = device_of(self._model)
        ids, depths, ends = (
            pad_sequence([torch.tensor(getattr(row, name)) for row in rows], batch_first=True).to(device)
            for name in ("ids", "depths", "ends")
        )
        places = [number * ids.shape[1] + node for number, row in enumerate(rows) for node in row.nodes]
        chosen = sorted(set(places))  # answers that begin alike are predicted at the same places
        self._places = torch.tensor(chosen)
        masks = _masks(self._model, depths, ends)
        logits = self._model(ids, attention_mask=masks, position_ids=depths, use_cache=False).logits  # (places, V)
        parts = logits.split(max(1, _on(device, _LOGITS) // logits.shape[1]))
        norms, peaks = map(torch.cat, zip(*map(_norms_and_peaks, parts), strict=True))

        rank = {place: number for number, place in enumerate(chosen)}
        index = torch.tensor([rank[place] for place in places], device=device)
        targets = torch.tensor([target for row in rows for target in row.targets], device=device)
        owners = torch.tensor([owner for row in rows for owner in row.owners])
        answered = logits[index, targets].float()
        return owners, (answered - norms[index]).cpu(), (answered == peaks[index]).cpu()


def _on(device: torch.device, table: dict[str, int]) -> int:
    return table.get(device.type, table["else"])


def _masks(model: PreTrainedModel, depths: torch.Tensor, ends: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """What the model takes as its mask: (B, 1, T, T), added to attention scores; one for each type of layer if it has
    several."""
    order = torch.arange(depths.shape[1], device=depths.device)
    ancestors = (order <= order[:, None]) & (order[:, None] < ends[:, None])  # (B, T, T): queries, keys
    full = _additive(ancestors, model.dtype)
    window = getattr(model.config, "sliding_window", None)
    if window is None:
        return full
    sliding = _additive(ancestors & (depths[:, :, None] - depths[:, None] < window), model.dtype)
    if getattr(model.config, "layer_types", None):
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding


def _additive(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    mask = torch.zeros(attended.shape, dtype=dtype, device=attended.device)
    return mask.masked_fill_(~attended, torch.finfo(dtype).min)[:, None]


def _norms_and_peaks(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, V) -> logarithm of the sum of exponentials, and the largest logit, float32: (N,), (N,)."""
    logits = logits.float()
    peaks = logits.amax(-1)
    # not torch.logsumexp, which takes over ten times as long on a CPU
    return peaks - logits.log_softmax(-1).amax(-1), peaks
