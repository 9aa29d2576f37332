"""What names a tokenizer, so that nothing that was made with one is taken for another's."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedTokenizerBase

# Besides the vocabulary: what decides on special tokens, on how text is split, and how long it may be.
_SETTINGS = ("add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "model_max_length", "split_special_tokens")


def digest_of(tokenizer: PreTrainedTokenizerBase | None) -> str:
    """16 hexadecimal digits that differ between tokenizers which may give other tokens for the same text."""
    if tokenizer is None:
        return hashlib.sha256(b"null").hexdigest()[:16]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = {
        "kind": type(tokenizer).__name__,
        "vocabulary": backend.to_str() if backend else tokenizer.get_vocab(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added": {str(number): str(token) for number, token in tokenizer.added_tokens_decoder.items()},
        "settings": {name: repr(getattr(tokenizer, name, None)) for name in _SETTINGS},
        "around": tokenizer("").input_ids,  # BOS and EOS, where they are added by default
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
