"""From a GGUF file to an ordinary model folder.

GGUF is llama.cpp's format: the demo model comes in it, and so do many models that people have on disk. All
else in this project works on full-precision safetensors, so a GGUF file is unpacked once, by transformers,
and saved as a folder that loads like any other, in a fraction of the time.

transformers reads more files than it understands. Where it would drop scaled positions or make up missing
weights without a word, the file is refused here: a model that is slightly wrong is worse than none.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from gguf import GGUFReader
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from amp_explore.errors import ModelError
from amp_explore.folders import lock, new_folder, require_space
from amp_explore.progress import Progress, no_progress
from amp_explore.seals import damage, seal

log = logging.getLogger(__name__)

ARCHITECTURES = ("gemma2", "gemma3", "llama", "mistral", "qwen2", "qwen3")
"""`general.architecture` of the files that transformers can read and this project can slice."""


def convert(gguf: Path, folder: Path, *, progress: Progress = no_progress) -> None:
    """Save the model and the tokenizer of `gguf` into `folder`, in float32 and as safetensors.

    `folder` appears whole or not at all, and is sealed; where the model is in it already, undamaged, nothing is
    done. Two processes may convert at once: the second waits and finds the work done.

    Raises:
        ModelError: the file is no GGUF, damaged, of an unsupported architecture, or not fully understood.
        AmpExploreError: the disk is full, or cannot be written.
    """
    if damage(folder, progress=progress) is None:
        return
    lock_file = folder.with_name(f".{folder.name}.lock")
    with lock(lock_file, progress=progress, note="waiting for another conversion to finish"):
        damaged = damage(folder, progress=progress)
        if damaged is None:
            return
        if folder.exists():
            log.warning("%s in %s is damaged, or from before digests were kept; converting again", damaged, folder)
        progress(0, 3, f"checking {gguf.name}")
        parameters = _check(gguf)
        require_space(folder.parent, 4 * parameters)
        progress(1, 3, f"unpacking {gguf.name}")
        model, tokenizer = _load(gguf)
        progress(2, 3, f"saving {gguf.name} as safetensors")
        with new_folder(folder) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            seal(unfinished)


def _check(gguf: Path) -> int:
    """The number of parameters in the file, or `ModelError` for a file that cannot become a model."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{gguf} cannot be read ({error.strerror}): check the path") from error
    if magic != b"GGUF":
        raise ModelError(f"{gguf} is not a GGUF file: give one, or a folder with safetensors")
    try:
        reader = GGUFReader(gguf)
        tensors = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        architecture = reader.fields["general.architecture"].contents()
        scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
        scaled = "rope_freqs.weight" in tensors or (scaling is not None and scaling.contents() != "none")
    except Exception as error:  # the reader checks no bounds, so anything can come of a file that breaks off
        raise ModelError(f"{gguf} is damaged or incomplete: download it again") from error
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{gguf} is of architecture {architecture!r}, not supported: use one of {known}")
    if scaled:
        raise ModelError(f"{gguf} scales its positions, which cannot be read: use the model's safetensors")
    return sum(tensors.values())


def _load(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model, report = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=torch.float32,
            # Otherwise the model counts as quantised: transformers refuses to save it, and keeps the weights
            # of some architectures packed where a kernel for them is installed.
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for what it cannot read; the text says why
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{gguf} cannot be unpacked ({reason}): use the model's safetensors") from error
    if report["missing_keys"]:
        name = min(report["missing_keys"])
        raise ModelError(f"{gguf} has no weights for {name}, among others: use the model's safetensors")
    return model, tokenizer
