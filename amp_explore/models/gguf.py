"""From a GGUF file to an ordinary model folder.

llama.cpp's GGUF is how the demo model comes, and many models that people have on disk. Everything else in this project
works on full-precision safetensors, so a GGUF file is unpacked once, by transformers, and saved as a folder that then loads
like any other and in a tenth of the time.

transformers reads more from some files than it understands. What it would drop without a word (position scaling, tensors
under other names) is refused here: a model that is slightly wrong is worse than none.
"""

from __future__ import annotations

from pathlib import Path

import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from amp_explore.errors import ModelError
from amp_explore.folders import lock, new_folder, require_space
from amp_explore.progress import Progress, no_progress

ARCHITECTURES = ("gemma2", "gemma3", "llama", "mistral", "qwen2", "qwen3")
"""`general.architecture` of the files that transformers can read and this project can slice."""


def convert(gguf: Path, folder: Path, *, progress: Progress = no_progress) -> None:
    """Save the model and the tokenizer of ``gguf`` into ``folder``, in float32 and as safetensors.

    ``folder`` appears whole or not at all; where it exists nothing is done. Two processes may convert at once: the second
    waits and finds the work done.

    Raises:
        ModelError: no GGUF file, damaged or truncated, of an unsupported architecture, or not fully understood.
        AmpExploreError: the disk is full, or cannot be written.
    """
    with lock(folder.with_name(f".{folder.name}.lock"), progress=progress, note="waiting for another conversion"):
        if folder.exists():
            return
        progress(0, 3, f"checking {gguf.name}")
        parameters = _check(gguf)
        require_space(folder.parent, 4 * parameters)
        progress(1, 3, f"unpacking {gguf.name}")
        model, tokenizer = _load(gguf)
        _forget_quantisation(model)
        progress(2, 3, f"saving {gguf.name} as safetensors")
        with new_folder(folder) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)


def _check(gguf: Path) -> int:
    """The number of parameters in the file, or `ModelError` for a file that cannot become a model."""
    try:
        with gguf.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{gguf} cannot be read ({error.strerror}): check the path") from error
    if magic != b"GGUF":
        raise ModelError(f"{gguf} is not a GGUF file: give one that llama.cpp can run, or a folder with safetensors")
    try:
        reader = GGUFReader(gguf)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        architecture = fields["general.architecture"]
    except Exception as error:  # the reader does not check bounds: what it raises depends on where the file breaks off
        raise ModelError(f"{gguf} is damaged or incomplete: download it again") from error
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{gguf} has architecture {architecture!r}, which is not supported: use one of {known}")
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors):
        raise ModelError(f"{gguf} scales its positions, which is lost in reading: use the model's safetensors instead")
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _load(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        model, report = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=torch.float32,
            # Without it, weights of some architectures stay packed where a kernel for them is installed.
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for what it cannot read; the reason is in the message
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{gguf} cannot be unpacked ({reason}): use the model's safetensors instead") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        name = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])[0]
        raise ModelError(f"{gguf} does not fill {name}, among others: use the model's safetensors instead")
    return model, tokenizer


def _forget_quantisation(model: PreTrainedModel) -> None:
    """Remove what marks an unpacked model as quantised: transformers refuses to save one."""
    del model.config.quantization_config
    del model.hf_quantizer
    del model.quantization_method
    model.is_quantized = False
