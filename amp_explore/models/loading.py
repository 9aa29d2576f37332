"""From a source to a loaded model: `demo`, a hub id, a local folder or a `.gguf` file.

Every source ends as a folder with `config.json` and safetensors weights, so that there is one way to load, one way to
fingerprint and one list of refusals. Code from a checkpoint is never run: `trust_remote_code` stays off and pickled
weights are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.accelerate import load_offloaded_parameter

from amp_explore.errors import ModelError
from amp_explore.folders import Hold, mark_used
from amp_explore.models import hub, random_weights
from amp_explore.models.experts import install_experts
from amp_explore.models.families import Family, decoder_layers, family_of, refuse_variants
from amp_explore.models.shapes import ModelShape, shape_of
from amp_explore.models.sharding import device_of, devices, room
from amp_explore.models.tokenizer_digest import digest_of
from amp_explore.progress import Progress, no_progress
from amp_explore.seals import file_digest
from amp_explore.texts import assets

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Mapping[str, int | str]
"""Names of modules to devices, as accelerate has them: `{"model.layers.0": 0, "model.layers.1": "disk", ...}`."""

STRATEGIES = ("balanced", "sequential")
"""Ways to spread a model over all devices."""

_in_use: dict[Path, Hold] = {}  # converted models that this process has loaded: the cache does not evict them
# What two machines may write differently for the same weights.
_INCIDENTAL_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A dense model in memory; nothing in this project ever changes it."""

    source: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    shape: ModelShape

    @property
    def name(self) -> str:
        """A short name for people."""
        if self.random:
            return f"{self.source.removeprefix(random_weights.PREFIX)} (random weights)"
        return "SmolLM2-135M-Instruct (demo)" if self.source == "demo" else Path(self.source).absolute().name

    @property
    def random(self) -> bool:
        """Whether the weights are random: speeds are real then, and nothing else means anything."""
        return self.source.startswith(random_weights.PREFIX)

    @cached_property
    def tokenizer_digest(self) -> str:
        """Names the tokenizer, all that decides which tokens come of a text; the fingerprint names only configuration
        and weights."""
        return digest_of(self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the model computes; of one that is spread over several devices, where its token ids go."""
        return device_of(self.model)

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, object]:
        """What results say about the model they were measured on."""
        return {
            "source": self.source,
            "name": self.name,
            "architecture": self.model.config.model_type,
            "fingerprint": self.shape.fingerprint,
            "dtype": self.dtype,
            "device": devices(self.model),
        }


def prepare(source: str, progress: Progress = no_progress) -> None:
    """Download what `load` would have to, so that it then needs no network: a model of the hub, minutes of it.

    This needs neither the device nor memory to speak of, so it may run beside other work. Errors as for `load`.
    """
    if source != "demo" and not source.startswith(random_weights.PREFIX) and _local_path(source) is None:
        hub.prepare(source, progress)


@torch.inference_mode(False)  # a job that measures may be interrupted to load, and this model may need gradients
def load(
    source: str, *, device: str | DeviceMap = "auto", dtype: Dtype = "auto", progress: Progress = no_progress
) -> LoadedModel:
    """Load a model for exploring.

    Args:
        source: `demo`, a folder with `config.json` and safetensors, a `.gguf` file, a model id of the hub, or
            `random:` and a shape's name (`amp_explore.models.random_weights`).
        device: `auto` takes CUDA where there is one, and spreads a model that it has no room for over all devices, CPU
            memory and disk. Any torch device takes the whole model. `balanced` and `sequential` spread every model,
            and a device map says where each module goes.
        dtype: `auto` takes bfloat16 where the device computes in it natively, float32 elsewhere.

    Raises:
        ModelError: the source is not there, is pickled, damaged, or of an unknown architecture.
        AssetError: `demo` was asked for before it was fetched.
    """
    target = _device(device)
    if source.startswith(random_weights.PREFIX):
        progress(0, 1, "drawing random weights")
        name = source.removeprefix(random_weights.PREFIX)
        model, tokenizer, fingerprint = random_weights.make(name, target, _dtype(dtype, target))
        return from_model(model, tokenizer, source=source, fingerprint=fingerprint)
    folder = _folder(source, progress)
    config = _read_config(folder)
    family = family_of(str(config.get("model_type", "without a model_type")))
    refuse_variants(config)
    device_map = _device_map(device, target, folder, _dtype(dtype, target))
    if family.mixture and device_map != {"": target}:
        raise ModelError(f"{source}: a mixture of experts must be on one device; choose one that has room for it")
    progress(0, 2, "fingerprinting the weights")
    fingerprint = _fingerprint(folder, config)
    progress(1, 2, "loading the weights")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=_dtype(dtype, target),
            device_map=device_map,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for a damaged folder; the reason is in the message
        raise ModelError(f"{source} cannot be loaded: {_in_one_line(error)}") from error
    # transformers makes up random weights for those that are missing or of the wrong size
    if made_up := sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}):
        raise ModelError(f"{source}: the weights do not fit config.json, first of all {made_up[0]}; download it again")
    return from_model(model, tokenizer, source=source, fingerprint=fingerprint, family=family)


def from_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    source: str = "in memory",
    fingerprint: str | None = None,
    family: Family | None = None,
) -> LoadedModel:
    """Wrap a model that is already in memory. Without a fingerprint, its tensors are hashed.

    Its mixtures of experts, if it has any, are replaced by `experts.MixtureOfExperts`.
    """
    family = family or family_of(model.config.model_type)
    if fingerprint is None:
        digest = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            tensor = load_offloaded_parameter(model, name) if tensor.is_meta else tensor
            digest.update(
                name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        fingerprint = digest.hexdigest()[:16]
    model.eval().requires_grad_(False)
    if family.mixture:
        install_experts(decoder_layers(model))
    return LoadedModel(source, model, tokenizer, family, shape_of(model, fingerprint))


class ModelPool:
    """Loaded models, shared by everyone in this process: at most `limit` at once, the least recently used one goes.

    `let_go` is called with each that goes.
    """

    def __init__(self, limit: int, let_go: Callable[[LoadedModel], None] = lambda loaded: None) -> None:
        self._limit, self._let_go = limit, let_go
        self._loading = threading.Lock()
        self._models: OrderedDict[tuple[str, str, str], LoadedModel] = OrderedDict()

    def peek(self, source: str, *, device: str = "auto", dtype: Dtype = "auto") -> LoadedModel | None:
        """The model if it is in memory; never waits."""
        key = _key(source, device, dtype)
        with contextlib.suppress(KeyError):  # another thread may be making room
            self._models.move_to_end(key)
        return self._models.get(key)

    def get(
        self, source: str, *, device: str = "auto", dtype: Dtype = "auto", progress: Progress = no_progress
    ) -> LoadedModel:
        """The model, loaded at most once; arguments and errors as for `load`. One model loads at a time."""
        key = _key(source, device, dtype)
        with self._loading:
            if key in self._models:
                self._models.move_to_end(key)
            else:
                while len(self._models) >= self._limit:  # room first: two large models may not fit at once
                    self._let_go(self._models.popitem(last=False)[1])
                self._models[key] = load(source, device=device, dtype=dtype, progress=progress)
            return self._models[key]


def _key(source: str, device: str, dtype: Dtype) -> tuple[str, str, str]:
    """The same for every spelling of one model's path."""
    with contextlib.suppress(OSError, ValueError):
        path = Path(source).expanduser()
        if path.exists():
            source = str(path.resolve())
    return source, device, dtype


def _device(device: str | DeviceMap) -> torch.device:
    """Where the model computes; of a device map, the first that is neither CPU nor disk if there is one."""
    if isinstance(device, Mapping):
        device = next((place for place in device.values() if place not in ("cpu", "disk")), "cpu")
    if device in ("auto", *STRATEGIES):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} is not usable here ({_in_one_line(error)}); use cpu or auto") from None


def _device_map(
    device: str | DeviceMap, target: torch.device, folder: Path, dtype: torch.dtype
) -> str | dict[str, int | str | torch.device]:
    """What accelerate is to do. Offloaded weights stay in the model's own files: nothing is written."""
    if isinstance(device, Mapping):
        return dict(device)
    if device in STRATEGIES:
        return device
    return "auto" if device == "auto" and _numbers(folder) * dtype.itemsize > room(target) else {"": target}


def _numbers(folder: Path) -> int:
    """How many numbers the weights' files hold."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16
        # Without bfloat16 instructions a CPU emulates it, several times slower than float32.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if device.type == "cpu" and native else torch.float32
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype {dtype!r} is not known; use auto, float32, bfloat16 or float16")
    return getattr(torch, dtype)


def _folder(source: str, progress: Progress) -> Path:
    """The local folder that holds the source's configuration, tokenizer and safetensors."""
    if source == "demo":
        return _converted(assets.demo_gguf(progress), progress)
    path = _local_path(source)
    if path is None:
        return hub.folder_of(source, progress)
    return path if path.is_dir() else _converted(path, progress)


def _local_path(source: str) -> Path | None:
    """The folder or the .gguf file that a source names; None where it can only be an id of the hub."""
    if not source or "\0" in source:
        raise ModelError("no model given; use demo, a hub id, a folder or a .gguf file")
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return path
        if path.suffix.lower() == ".gguf":
            if not path.is_file():
                raise ModelError(f"{source}: there is no such file; check the path")
            return path
        exists = path.exists()
    except OSError as error:
        raise ModelError(f"{source[:80]}: {error.strerror}; check the path") from None
    if exists:
        raise ModelError(f"{source}: not a model; give its folder, or a .gguf file")
    if source.count("/") > 1 or source[0] in "./~" or "\\" in source:
        raise ModelError(f"{source}: there is no such folder; check the path")
    return None


def _converted(gguf: Path, progress: Progress) -> Path:
    from amp_explore.models.gguf import convert

    folder = assets.cache_root() / "models" / file_digest(gguf, progress=progress)[:16]
    convert(gguf, folder, progress=progress)
    mark_used(folder, assets.cache_root())
    _in_use[folder] = Hold(folder / "config.json")
    return folder


def _read_config(folder: Path) -> dict:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ModelError(f"{folder}: no model here; a model folder has a config.json and .safetensors files") from None
    except (OSError, ValueError) as error:
        reason = _in_one_line(error)
        raise ModelError(f"{folder}: config.json cannot be read ({reason}); download the model again") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder}: config.json is not a model configuration; download the model again")
    if config.get("quantization_config"):
        raise ModelError(f"{folder}: quantised weights cannot be sliced; use the unquantised model, or a .gguf file")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        raise ModelError(
            f"{folder}: only pickled weights, which can run code when read; convert them to safetensors first"
            if pickled
            else f"{folder}: no .safetensors file with weights; download the model again"
        )
    return config


def _fingerprint(folder: Path, config: dict) -> str:
    kept = {key: value for key, value in config.items() if key not in _INCIDENTAL_CONFIG}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(file_digest(path).encode())
    return digest.hexdigest()[:16]


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
