"""Models that do not fit one device, through accelerate's `device_map`.

accelerate puts a hook in front of the `forward` of every module of such a model. It brings the module's inputs to the
device that computes and, where the weights are offloaded (to CPU memory beside a GPU, or to disk), loads them just
before and lets go of them just after. In between, `module.weight` is on the `meta` device: a shape without numbers.

Here is what the rest of the package needs in order not to care: where a module computes, its numbers wherever they are
kept, and how to leave some of them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from amp_explore.errors import AmpExploreError

_RESERVED = 0.1  # of a device's memory that weights leave to activations


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes; of a whole model, where it takes its token ids and gives its logits."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device


def suited(table: Mapping[str, int], device: torch.device) -> int:
    """The entry of a kind of device, `cpu` or `cuda`, or else that of `else`."""
    return table[device.type] if device.type in table else table["else"]


def is_spread(model: nn.Module) -> bool:
    """Whether a model's weights are spread over devices or offloaded."""
    return hasattr(model, "hf_device_map")


def refuse_spread(model: nn.Module, needs: str, instead: str) -> None:
    """Raise `AmpExploreError`, "NEEDS the whole model on one device; INSTEAD", where its weights are spread."""
    if is_spread(model):
        raise AmpExploreError(f"{needs} the whole model on one device; {instead}")


def devices(model: nn.Module) -> str:
    """Everywhere that a model's weights are, for people: `cuda:0`, or `cuda:0, cpu, disk`."""
    places = getattr(model, "hf_device_map", {"": device_of(model)}).values()
    return ", ".join(dict.fromkeys("disk" if place == "disk" else str(torch.device(place)) for place in places))


def tensor_of(module: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter of this very module, on the device where it computes; offloaded numbers are loaded for it."""
    tensor = getattr(module, name)
    if tensor is None or not tensor.is_meta:
        return tensor
    return module._hf_hook.weights_map[name].to(device_of(module))


def parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """A model's parameters, tied ones once, also where offloading has made two of them."""
    tied = model.all_tied_weights_keys
    return [each for name, each in model.named_parameters(remove_duplicate=False) if name not in tied]


def kept_elsewhere(model: nn.Module) -> Iterator[object]:
    """What hooks load weights from. Copies of a model share it as they share tensors."""
    for module in model.modules():
        hook = getattr(module, "_hf_hook", None)
        if isinstance(hook, AlignDevicesHook):
            yield from (store for store in (hook.weights_map, hook.tied_params_map) if store is not None)


def room(device: torch.device) -> int:
    """Bytes that weights may still take on a device, some left for activations."""
    free, total = memory(device)
    return int(free - _RESERVED * total)


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes of a device's memory that are free, and all of them."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    main = psutil.virtual_memory()
    return main.available, main.total


def transposed(module: nn.Module) -> bool:
    """Whether a module stores its weights (in, out), and not (out, in) as `torch.nn.Linear` does."""
    return isinstance(module, Conv1D)


def keep(module: nn.Module, side: Literal["outputs", "inputs"], kept: torch.Tensor) -> None:
    """Leave a linear module, or a norm with a row of weights for each head, only some of its outputs or inputs.

    What is left lies on the device where the module computes. If it was offloaded, or that device has no room, it
    takes no memory: it is cut out of the dense weights whenever the module runs.
    """
    device = device_of(module)
    if not module.weight.is_meta and module.weight.nbytes > room(device):
        dense = dict(module.named_parameters())
        add_hook_to_module(module, AlignDevicesHook(device, offload=True, weights_map=dense))
    cut = _Cut(int((side == "inputs") != transposed(module)), side == "outputs", kept.to(device))
    if module.weight.is_meta:
        module._hf_hook.weights_map = _Smaller(module._hf_hook.weights_map, cut)
    for name, parameter in list(module.named_parameters()):
        left = cut(parameter)
        if left is not parameter:
            setattr(module, name, nn.Parameter(left, requires_grad=False))
    width = {"outputs": ("out_features", "nf"), "inputs": ("in_features", "nx")}[side][transposed(module)]
    if hasattr(module, width):
        setattr(module, width, len(kept))


@dataclass(frozen=True)
class _Cut:
    """Some outputs or some inputs, of weights (2 dimensions, `dim` the one to cut) and of a bias."""

    dim: int
    outputs: bool  # a bias has outputs only
    kept: torch.Tensor

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 1 and not self.outputs:
            return tensor
        return tensor.index_select(self.dim if tensor.ndim > 1 else 0, self.kept.to(tensor.device))


class _Smaller(Mapping):
    """Weights that are kept elsewhere, cut where they are needed."""

    def __init__(self, whole: Mapping[str, torch.Tensor], cut: _Cut) -> None:
        self._whole, self._cut = whole, cut

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._cut(self._whole[name].to(self._cut.kept.device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)
