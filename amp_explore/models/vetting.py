"""Whether a model folder from outside is safe to read, found out once for each content, in a process that can be ended.

Configuration and tokenizer decide what runs on reading: how large a model is built, which regular expressions a text
is matched against, what a chat template repeats. They are tried here on texts that bring such things to light.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from amp_explore.errors import ModelError
from amp_explore.models import sandbox
from amp_explore.models.files import digests, read_json, require_small
from amp_explore.progress import Progress, no_progress
from amp_explore.texts.assets import cache_root

VERSION = 1
"""Of what is tried; what was found by an older one is found again."""

_READ = (".json", ".txt", ".model", ".jinja")  # what transformers reads beside the weights
_MEMORY = 4 * 2**30  # bytes
_SECONDS = 60
_RUN = 2000  # characters of a kind in a row: what a regular expression that backtracks does not come to an end with
_ENDING = "!\n"  # what it does not expect after them
PROBES = (
    "The quick brown fox doesn't jump over 13 lazy dogs.\n\n  Naïve cafés: 日本語, русский, 🙂\t(a + b) * c == 42;\n",
    *(character * _RUN + _ENDING for character in "aA1 \n\t.-_é日"),
    *(pair * (_RUN // 2) + _ENDING for pair in ("ab", "a ", "a1", "1,", "\r\n")),
)
_MOST_TOKENS = 8  # for each byte of a text


def vet(folder: Path, source: str, progress: Progress = no_progress) -> int:
    """How many parameters a model of this folder's configuration has, after everything in it was tried; messages call
    it `source`.

    It takes seconds for a new folder. What was found is kept in the cache under the content of all small files, so the
    same folder is answered at once afterwards, also elsewhere.

    Raises:
        ModelError: reading the folder would run its own code, hang, take too much memory, or fail.
    """
    note = "trying a model that is new here"
    kept = cache_root() / "vetted" / f"{content(folder)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(json.loads(kept.read_bytes())["parameters"])
    try:
        found = sandbox.run(
            look, str(folder.absolute()), memory=_MEMORY, seconds=_SECONDS, progress=progress, note=note
        )
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None
    with suppress(OSError):  # a cache that cannot be written costs seconds, not the model
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found))
    return found["parameters"]


def content(folder: Path) -> str:
    """Names what the small files of a model folder hold, and the libraries that read them."""
    files = small_files(folder)
    named = [VERSION, transformers.__version__, version("tokenizers")]
    named += zip((path.name for path in files), digests(files), strict=True)
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]


def small_files(folder: Path) -> list[Path]:
    """What transformers may read of a model folder beside the weights. Raises `ModelError` for what is no such file."""
    entries = sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*")))
    files = [path for path in entries if path.suffix in _READ and path.exists() and not path.is_dir()]
    for path in files:
        require_small(path)
    return files


def look(folder: str) -> dict[str, Any]:
    """Try a model folder (`vet` does so where that is safe)."""
    place = Path(folder)
    _refuse_code(place)
    options = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(place, **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    _refuse_unreadable_vocabulary(place)
    try_tokenizer(AutoTokenizer.from_pretrained(place, **options), len(model.get_input_embeddings().weight))
    return {"parameters": model.num_parameters()}


def try_tokenizer(tokenizer: PreTrainedTokenizerBase, embeddings: int) -> None:
    """Raise `ModelError` for a tokenizer that makes nothing of a text, or what a model with so many `embeddings` has no
    place for. It may also never return."""
    ordinary = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    used = ordinary | ({tokenizer.bos_token_id, tokenizer.eos_token_id} - {None})
    if max(used, default=0) >= embeddings:
        raise ModelError(
            f"its tokenizer has tokens up to number {max(used)}, and the model embeddings for {embeddings}; they do "
            "not belong together: take the tokenizer that the model was published with"
        )
    known = set(tokenizer(PROBES[0], add_special_tokens=False).input_ids) - {tokenizer.unk_token_id}
    if not known:
        raise ModelError("its tokenizer knows no word of a plain text; bring tokenizer.json, or download it again")
    for text in PROBES:
        tokens, size = len(tokenizer(text).input_ids), len(text.encode())
        if tokens > _MOST_TOKENS * size:
            raise ModelError(f"its tokenizer makes {tokens} tokens of a text of {size} bytes; do not use it")
    if tokenizer.chat_template is not None:
        with suppress(Exception):  # what a template demands of a conversation is its own affair
            tokenizer.apply_chat_template([{"role": "user", "content": PROBES[0]}], tokenize=False)


def _refuse_code(folder: Path) -> None:
    if (folder / "adapter_config.json").exists():
        raise ModelError("it is an adapter, to be had only with another model; merge it into that one first")
    for path in small_files(folder):
        described = None
        with suppress(ModelError):  # no JSON: nothing that transformers would take for it
            described = read_json(path) if path.suffix == ".json" else None
        for name, value in described.items() if isinstance(described, dict) else ():
            if code := _own_code(name, value):
                raise ModelError(
                    f"{path.name} names code of its own ({name}: {str(code)[:80]}), which is never run; use a model "
                    "that transformers knows without"
                )


def _own_code(name: str, value: Any) -> Any:
    """What an entry names of code that is not transformers' own, if anything."""
    if name.endswith("_implementation"):  # of attention or experts: a kernel of the hub has an owner
        return value if "/" in str(value) else None
    if name != "auto_map" or not isinstance(value, Mapping):
        return value if name == "auto_map" else None
    for kind, code in value.items():
        # Many a model was published before transformers took its code over, under the same name.
        taken_over = isinstance(code, str) and hasattr(transformers, code.rpartition(".")[2])
        if "Tokenizer" in kind or not taken_over:
            return code
    return None


def _refuse_unreadable_vocabulary(folder: Path) -> None:
    alone = (folder / "tokenizer.model").exists() and not (folder / "tokenizer.json").exists()
    if alone and find_spec("sentencepiece") is None:
        raise ModelError(
            "its tokenizer is a tokenizer.model alone, which takes sentencepiece to read; run `pip install "
            "sentencepiece`, or save the tokenizer as tokenizer.json"
        )
