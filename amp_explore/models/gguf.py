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
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from amp_explore.errors import ModelError, in_one_line
from amp_explore.folders import lock, new_folder, require_space
from amp_explore.models import sandbox
from amp_explore.models.configuration import refuse_senseless
from amp_explore.models.gguf_header import Header, read_header
from amp_explore.models.vetting import look
from amp_explore.progress import Progress, no_progress
from amp_explore.seals import damage, seal

log = logging.getLogger(__name__)

ARCHITECTURES = ("gemma2", "gemma3", "llama", "mistral", "qwen2", "qwen3")
"""`general.architecture` of the files that transformers can read and this project can slice."""

_MEMORY = 4 * 2**30  # bytes, beside the weights
_COPIES = 3  # of the weights in float32, while they are unpacked


def convert(gguf: Path, folder: Path, *, progress: Progress = no_progress) -> None:
    """Save the model and the tokenizer of `gguf` into `folder`, in float32 and as safetensors.

    `folder` appears whole or not at all, and is sealed; where the model is in it already, undamaged, nothing is
    done. Two processes may convert at once: the second waits and finds the work done. It is done in the sandbox,
    and can be cancelled.

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
        progress(0, 1, f"checking {gguf.name}")
        size = 4 * _check(gguf).parameters
        require_space(folder.parent, size)
        with new_folder(folder) as unfinished:
            sandbox.run(
                unpack,
                str(gguf.absolute()),
                str(unfinished.absolute()),
                memory=_COPIES * size + _MEMORY,
                progress=progress,
                note=f"unpacking {gguf.name}",
            )
            seal(unfinished)


def _check(gguf: Path) -> Header:
    """What is in the file, or `ModelError` for a file that cannot become a model."""
    header = read_header(gguf)
    architecture, values = header.architecture, header.values
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{gguf} is of architecture {architecture!r}, not supported: use one of {known}")
    scaling = values.get(f"{architecture}.rope.scaling.type", "none")
    if "rope_freqs.weight" in header.tensors or scaling != "none":
        raise ModelError(f"{gguf} scales its positions, which cannot be read: use the model's safetensors")
    refuse_senseless(header.configuration, len(header.tensors), gguf)
    return header


def unpack(gguf: str, folder: str) -> None:
    """Write the model and the tokenizer of a GGUF file into a folder (`convert` does so where that is safe)."""
    path = Path(gguf)
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    source |= {"local_files_only": True, "trust_remote_code": False}
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
        raise ModelError(f"{gguf} cannot be unpacked ({in_one_line(error)}): use the model's safetensors") from error
    header = read_header(path)
    if report["missing_keys"]:
        name = min(report["missing_keys"])
        raise ModelError(f"{gguf} has no weights for {name}, among others: use the model's safetensors")
    if left_out := sorted(set(header.tensors) - _taken(model, header.architecture)):
        raise ModelError(
            f"{gguf} holds {left_out[0]}{f' and {len(left_out) - 1} more' if left_out[1:] else ''}, which transformers "
            "leaves out: use the model's safetensors"
        )
    refuse_senseless(model.config.to_dict(), len(header.tensors), gguf)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    try:
        look(folder)
    except Exception as error:
        raise ModelError(f"{gguf} cannot be unpacked ({in_one_line(error)}): use the model's safetensors") from error


def _taken(model: PreTrainedModel, architecture: str) -> set[str | None]:
    """What llama.cpp calls the weights that a model has a place for."""
    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(kinds.get(architecture, MODEL_ARCH.LLAMA), model.config.num_hidden_layers)
    return {names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}
