"""Models that do not fit one device, through accelerate's `device_map`.

accelerate puts a hook in front of the `forward` of every module of such a model. It brings the module's inputs to the
device that computes and, where the weights are offloaded (to CPU memory beside a GPU, or to disk), loads them just
before and lets go of them just after. In between, `module.weight` is on the `meta` device: a shape without numbers.

Here is what the rest of the package needs in order not to care: where a module computes, its numbers wherever they are
kept, and how to leave some of them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import psutil
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from transformers import PreTrainedModel

_RESERVED = 0.1  # of a device's memory that weights leave to activations


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes; of a whole model, where it takes its token ids and gives its logits."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device(device) if device is not None else next(module.parameters()).device


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


def keep(linear: nn.Linear, dim: int, kept: torch.Tensor) -> None:
    """Leave a projection only these outputs (`dim` 0: rows, and the bias) or inputs (`dim` 1: columns).

    What is left lies on the device where the projection computes. If it was offloaded, or that device has no room, it
    takes no memory: it is cut out of the dense weights whenever the projection runs.
    """
    device = device_of(linear)
    if not linear.weight.is_meta and linear.weight.nbytes > room(device):
        dense = dict(linear.named_parameters())
        add_hook_to_module(linear, AlignDevicesHook(device, offload=True, weights_map=dense))
    if linear.weight.is_meta:
        linear._hf_hook.weights_map = _Cut(linear._hf_hook.weights_map, dim, kept.to(device))
    for name, parameter in list(linear.named_parameters()):
        if dim < parameter.ndim:
            left = parameter.index_select(dim, kept.to(parameter.device))
            setattr(linear, name, nn.Parameter(left, requires_grad=False))
    setattr(linear, ("out_features", "in_features")[dim], len(kept))


class _Cut(Mapping):
    """Rows or columns of weights that are kept elsewhere, cut where they are needed."""

    def __init__(self, whole: Mapping[str, torch.Tensor], dim: int, kept: torch.Tensor) -> None:
        self._whole, self._dim, self._kept = whole, dim, kept

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor = self._whole[name].to(self._kept.device)
        return tensor.index_select(self._dim, self._kept) if self._dim < tensor.ndim else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)
