"""Log-likelihoods of answers after their contexts, every token computed once for all sequences that begin alike.

A plain evaluator runs the context of a question once per answer. Here the sequences stand in lexicographic order, which
makes neighbours of those that begin alike, and are laid out as trees: a sequence adds only the tokens after the prefix
that it shares with the one before it. Each token keeps the position that it has in its sequence and attends to its
ancestors only.

A batch is many trees end to end, without padding: most of a model looks at each token by itself. Attention alone runs
tree by tree, and the vocabulary projection only where a token of an answer is predicted.

Nothing here knows where the sequences come from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from amp_explore.errors import AmpExploreError
from amp_explore.models.families import decoder_layers, eager_attention, family_of, share
from amp_explore.models.sharding import device_of, suited
from amp_explore.observe.limits import first_not_finite, not_finite
from amp_explore.progress import Progress, no_progress

# A tree takes in sequences up to this many tokens, then only those that share a quarter of theirs with the one before.
# Large trees tear few prefixes apart and run in few steps, but attention looks at each pair of their tokens.
_TREE_TOKENS = {"cpu": 96, "else": 1024}
# Whether attention runs on all trees in one call, padded to the longest: on a GPU the calls take longer than the work.
_PADDED = {"cpu": False, "else": True}
# Logits that are normalised at a time: on a CPU, what stays in its cache.
_LOGITS = {"cpu": 2**20, "else": 2**26}
_OPEN = 2**31  # the end of a subtree that is still growing


def covers(model: PreTrainedModel) -> bool:
    """Whether a `Scorer` can run the model: its attention must take a back end and a ready mask."""
    own_attention = family_of(model.config.model_type).own_attention
    return model.config._attn_implementation in ("sdpa", "eager") and not own_attention


class _Tree:
    """Sequences, one node per token that is not shared, in depth-first order. There may be several roots.

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

    def takes(self, tokens: list[int], batch_tokens: int, tree_tokens: int) -> bool:
        """Whether a sequence should be added here, and not to a new tree."""
        shared = self.shared(tokens)
        size = len(self.ids) + len(tokens) - shared
        return size <= batch_tokens and (size <= tree_tokens or shared >= len(tokens) / 4)

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


def _trees(
    pairs: Sequence[tuple[list[int], list[int]]], max_length: int, batch_tokens: int, tree_tokens: int
) -> list[_Tree]:
    if not all(context and answer for context, answer in pairs):
        raise ValueError("contexts and answers must have a token at least")
    longest = max((len(answer) for _, answer in pairs), default=0)
    if longest > max_length:
        raise AmpExploreError(
            f"an answer has {longest} tokens, but the model reads at most {max_length}; use one with a longer context"
        )
    inputs = [(context + answer)[-max_length - 1 : -1] for context, answer in pairs]
    trees: list[_Tree] = []
    for number in sorted(range(len(pairs)), key=inputs.__getitem__):
        tokens = inputs[number]
        if not trees or not trees[-1].takes(tokens, batch_tokens, tree_tokens):
            trees.append(_Tree())
        trees[-1].add(number, tokens, pairs[number][1])
    return trees


def _batches(trees: list[_Tree], batch_tokens: int) -> Iterator[list[_Tree]]:
    """As many trees as fit, those of similar size together: their masks are padded."""
    batch: list[_Tree] = []
    room = batch_tokens
    for tree in sorted(trees, key=lambda tree: -len(tree.ids)):
        if batch and len(tree.ids) > room:
            yield batch
            batch, room = [], batch_tokens
        batch.append(tree)
        room -= len(tree.ids)
    if batch:
        yield batch


class Scorer:
    """Scores answers, on a copy of the model that runs trees and projects to the vocabulary at chosen places only.

    Args:
        model: a dense or sliced causal model in eval mode that `covers` accepts.
        max_length: the most tokens that the model reads; of a longer sequence the first ones are left out.
        batch_tokens: the most tokens in one forward pass (a longer sequence goes alone).
    """

    def __init__(self, model: PreTrainedModel, *, max_length: int, batch_tokens: int) -> None:
        self._max_length, self._batch_tokens = max_length, batch_tokens
        self._dense, self._model = model, share(model)
        self._model.get_output_embeddings().register_forward_pre_hook(self._choose)
        self._places = torch.empty(0, dtype=torch.long)
        self._layout = _Layout()
        attention = family_of(model.config.model_type).attention
        for layers in zip(decoder_layers(self._model), decoder_layers(model), strict=True):
            copied, plain = (getattr(layer, attention) for layer in layers)
            if hasattr(plain, "config"):  # pruning may have left no attention
                copied.plain = (plain,)  # in a tuple, so that it is no part of the copy
                copied.layout = self._layout
                copied.config = copy.copy(plain.config)
                copied.config._attn_implementation = _WITHIN_TREES

    def log_likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], *, progress: Progress = no_progress
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each answer given its context, in nats, and whether greedy decoding would give that answer.

        Args:
            pairs: tokens of context and answer, neither of them empty.
            progress: called between batches with the number of answers scored and their total; it may cancel.

        Raises:
            AmpExploreError: an answer alone is longer than ``max_length``.
            NotFinite: what the model computes is NaN or infinite.
            ValueError: a context or an answer is empty.
        """
        totals = torch.zeros(len(pairs), dtype=torch.float64)
        greedy = torch.ones(len(pairs), dtype=torch.bool)
        done = 0
        trees = _trees(pairs, self._max_length, self._batch_tokens, suited(_TREE_TOKENS, device_of(self._model)))
        with torch.inference_mode():
            for batch in _batches(trees, self._batch_tokens):
                progress(done, len(pairs), "log-likelihoods")
                owners, values, hits = self._run(batch)
                self._look_at(pairs, owners[~values.isfinite()])
                totals.index_add_(0, owners, values.double())
                greedy[owners[~hits]] = False
                done += sum(tree.sequences for tree in batch)
        progress(done, len(pairs), "log-likelihoods")
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    def _look_at(self, pairs: Sequence[tuple[list[int], list[int]]], odd: torch.Tensor) -> None:
        """Raise `NotFinite` where that is why some answers have no finite log-likelihood."""
        if len(odd):
            context, answer = pairs[int(odd[0])]
            ids = torch.tensor([(context + answer)[-self._max_length - 1 : -1]])
            if where := first_not_finite(self._dense, ids):
                raise not_finite(self._dense, where)

    def _choose(self, projection: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        """(1, T, d) -> (places, d)."""
        return (inputs[0][0, self._places.to(inputs[0].device)],)

    def _run(self, trees: list[_Tree]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For each answer token, on the CPU: whose it is, its log-probability, whether it is the likeliest."""
        device = device_of(self._model)

        def joined(name: str) -> torch.Tensor:
            return torch.tensor([value for tree in trees for value in getattr(tree, name)])

        sizes = [len(tree.ids) for tree in trees]
        self._layout.set(sizes, device)
        starts = accumulate(sizes, initial=0)
        places = torch.tensor([start + node for start, tree in zip(starts, trees, strict=False) for node in tree.nodes])
        # answers that begin alike are predicted at the same places
        self._places, index = places.unique(return_inverse=True)
        logits = self._model(
            joined("ids").to(device)[None],
            attention_mask=_masks(self._model, trees, device),
            position_ids=joined("depths").to(device)[None],
            use_cache=False,
        ).logits  # (places, V)
        parts = logits.split(max(1, suited(_LOGITS, device) // logits.shape[1]))
        norms, peaks = (torch.cat(part) for part in zip(*map(_norms_and_peaks, parts), strict=True))
        index = index.to(device)
        answered = logits[index, joined("targets").to(device)].float()
        return joined("owners"), (answered - norms[index]).cpu(), (answered == peaks[index]).cpu()


class _Layout:
    """Where trees stand in the sequence of all their tokens. All layers have the very object."""

    def set(self, sizes: list[int], device: torch.device) -> None:
        """Trees of these many tokens come next. `padded` are the tokens of each (trees, N), the first token standing
        where a tree has ended; `places` (T,) is where each token stands in `padded`, flattened."""
        self.sizes = sizes
        self.padded = pad_sequence(torch.arange(sum(sizes)).split(sizes), batch_first=True).to(device)
        longest = self.padded.shape[1]
        self.places = torch.cat([tree * longest + torch.arange(size) for tree, size in enumerate(sizes)]).to(device)


_WITHIN_TREES = "amp_explore_within_trees"


def _within_trees(module, query, key, value, attention_mask, **options):
    """The attention of ``module.plain`` on each tree by itself; ``module.layout`` says where the trees are.

    (1, heads, T, d) queries, (1, KV heads, T, d) keys and values and (trees, 1, N, N) masks -> (1, T, heads, d).
    """
    (plain,), layout = module.plain, module.layout
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(plain.config._attn_implementation, eager_attention(plain))
    states = (query, key, value)
    if suited(_PADDED, query.device):
        padded, places = layout.padded.to(query.device), layout.places.to(query.device)
        outputs = attend(plain, *(each[0][:, padded].transpose(0, 1) for each in states), attention_mask, **options)[0]
        return outputs.flatten(0, 1)[places][None], None
    trees = zip(*(each.split(layout.sizes, dim=2) for each in states), attention_mask, layout.sizes, strict=True)
    outputs = [attend(plain, *tree, mask[None, :, :size, :size], **options)[0] for *tree, mask, size in trees]
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(_WITHIN_TREES, _within_trees)


def _masks(model: PreTrainedModel, trees: list[_Tree], device: torch.device) -> torch.Tensor | dict[str, torch.Tensor]:
    """What the model takes as its mask: (trees, 1, N, N), added to attention scores, for trees of up to N tokens; one
    for each type of layer if it has several."""
    depths, ends = (
        pad_sequence([torch.tensor(getattr(tree, name)) for tree in trees], batch_first=True).to(device)
        for name in ("depths", "ends")
    )
    order = torch.arange(depths.shape[1], device=device)
    ancestors = (order <= order[:, None]) & (order[:, None] < ends[:, None])  # (trees, N, N): queries, keys
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
