"""Where a model's weights go, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from amp_explore.errors import ModelError, in_one_line
from amp_explore.models.sharding import room

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Mapping[str, int | str]
"""Names of modules to devices, as accelerate has them: `{"model.layers.0": 0, "model.layers.1": "disk", ...}`."""

STRATEGIES = ("balanced", "sequential")
"""Ways to spread a model over all devices."""


def device_for(device: str | DeviceMap) -> torch.device:
    """Where the model computes; of a device map, the first that is neither CPU nor disk if there is one."""
    if isinstance(device, Mapping):
        device = next((place for place in device.values() if place not in ("cpu", "disk")), "cpu")
    if device in ("auto", *STRATEGIES):
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device!r} is not usable here ({in_one_line(error)}); use cpu or auto") from None


def device_map_for(
    device: str | DeviceMap, target: torch.device, size: int
) -> str | dict[str, int | str | torch.device]:
    """What accelerate is to do with a model of `size` bytes. Offloaded weights stay in the model's own files: nothing
    is written."""
    if isinstance(device, Mapping):
        return dict(device)
    if device in STRATEGIES:
        return device
    return "auto" if device == "auto" and size > room(target) else {"": target}


def dtype_for(dtype: Dtype, device: torch.device) -> torch.dtype:
    """The precision that was asked for, or that the device is good at."""
    if dtype == "auto":
        if device.type == "cuda":
            return torch.bfloat16
        # Without bfloat16 instructions a CPU emulates it, several times slower than float32.
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if device.type == "cpu" and native else torch.float32
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ModelError(f"dtype {dtype!r} is not known; use auto, float32, bfloat16 or float16")
    return getattr(torch, dtype)
