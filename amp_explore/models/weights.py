"""What safetensors files say about themselves: which tensors they hold, read off their headers and off nothing else.

A header is checked against the file's length and the tensors against their sizes. So a damaged file is refused before
any memory is set aside for it, and with a word about what it is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from amp_explore.errors import ModelError
from amp_explore.models.files import read_json, refuse_pointer, regular

Shape = tuple[int, ...]

_LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
_INDEX = "model.safetensors.index.json"


def tensors_of(folder: Path) -> dict[str, Shape]:
    """The tensors in a model folder by name, in the files that transformers will read.

    Raises:
        ModelError: a file is not there, damaged, or not what it is taken for.
    """
    return {name: shape for path in weight_files(folder) for name, shape in _header(path).items()}


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers takes the weights from: a single one, or else those that an index names."""
    single, index = folder / "model.safetensors", folder / _INDEX
    if single.is_file() or not index.exists():
        return [single]
    listed = read_json(index)
    names = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()) or not names:
        raise ModelError(f"{index} names no files; download the model again")
    for name in names.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} names {name!r}, which is no .safetensors file of this folder; do not use it")
    return [folder / name for name in sorted(set(names.values()))]


def _header(path: Path) -> dict[str, Shape]:
    try:
        size = regular(path).st_size
        with path.open("rb") as file:
            start = file.read(64)
            refuse_pointer(path, start)
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ValueError
            file.seek(8)
            described = json.loads(file.read(length))
        described.pop("__metadata__", None)
        ends = [_end(**tensor) for tensor in described.values()]
        if max(ends, default=0) != size - 8 - length:
            raise ValueError
    except FileNotFoundError:
        raise ModelError(f"{path} is not there; download the model again") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check the path") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ModelError(f"{path} is damaged or incomplete; download it again") from None
    return {name: tuple(tensor["shape"]) for name, tensor in described.items()}


def _end(dtype: str, shape: list[int], data_offsets: list[int]) -> int:
    """Where a tensor's bytes end. Raises `ValueError` or `TypeError` for what a header cannot say."""
    begin, end = data_offsets
    bytes_each = _BYTES.get(dtype)
    if min(*shape, begin, 0) < 0 or (bytes_each and math.prod(shape) * bytes_each != end - begin):
        raise ValueError
    return end
