"""The header of a GGUF file: what the file says of itself, checked against its length before anything else reads it.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: magic, version, counts; then keys with values; then names,
dimensions, types and places of the tensors; then, at a multiple of the alignment, the tensors' bytes. Readers take
these numbers as they are, and one that claims 2^60 entries keeps them busy until the memory ends.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from amp_explore.errors import ModelError
from amp_explore.models.files import LARGEST, refuse_pointer, regular

_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
# llama.cpp's names, after the architecture's, of what transformers calls otherwise.
_CALLED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    values: dict[str, Any]  # of keys with a single number or string
    tensors: dict[str, int]  # how many numbers each holds

    @property
    def architecture(self) -> str:
        return self.values["general.architecture"]

    @property
    def parameters(self) -> int:
        return sum(self.tensors.values())

    @property
    def configuration(self) -> dict[str, Any]:
        """The numbers that make the model, under the names that transformers has for them; the others as they are."""
        prefix = f"{self.architecture}."
        return {_CALLED.get(key.removeprefix(prefix), key): value for key, value in self.values.items()}


def read_header(path: Path) -> Header:
    """The header of a file.

    Raises:
        ModelError: it is no GGUF file, or one that is damaged, cut off or wrong about itself.
    """
    try:
        size = regular(path).st_size
        with path.open("rb") as file:
            start = file.read(64)
            refuse_pointer(path, start)
            if start[:4] != b"GGUF":
                raise ModelError(f"{path} is not a GGUF file: give one, or a folder with safetensors")
            with mmap.mmap(file.fileno(), min(size, LARGEST), access=mmap.ACCESS_READ) as data:
                return _Reader(data, size).header()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise ModelError(f"{path} is damaged or incomplete: download it again") from error


class _Reader:
    """Reads on from the magic. Raises one of many errors, see `read_header`, where the bytes make no sense."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._data, self._size, self._at = data, size, 4

    def header(self) -> Header:
        version, tensors, keys = self._numbers("IQQ")
        if version not in _VERSIONS:
            raise ValueError
        values = {}
        for _ in range(keys):
            name = self._string()
            value = self._value(GGUFValueType(*self._numbers("I")))
            if value is not None:
                values[name] = value
        if not isinstance(values["general.architecture"], str):
            raise ValueError
        described = [self._tensor() for _ in range(tensors)]
        alignment = values.get("general.alignment", 32)
        beginning = math.ceil(self._at / alignment) * alignment if alignment > 0 else self._size
        if len({name for name, *_ in described}) < tensors or any(
            beginning + place + length > self._size for *_, place, length in described
        ):
            raise ValueError
        return Header(values, {name: numbers for name, numbers, *_ in described})

    def _numbers(self, form: str) -> tuple:
        numbers = struct.unpack_from(f"<{form}", self._data, self._at)
        self._skip(struct.calcsize(f"<{form}"))
        return numbers

    def _skip(self, count: int) -> None:
        if self._at + count > len(self._data):
            raise ValueError
        self._at += count

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        begin = self._at
        self._skip(length)
        return self._data[begin : self._at].decode()

    def _value(self, kind: GGUFValueType) -> Any:
        """A value that is read past; None for an array."""
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind != GGUFValueType.ARRAY:
            return self._numbers(_FORMATS[kind])[0]
        kind, count = self._numbers("IQ")
        if kind != GGUFValueType.STRING:
            self._skip(count * struct.calcsize(_FORMATS[GGUFValueType(kind)]))
            return None
        for _ in range(count):
            self._skip(*self._numbers("Q"))
        return None

    def _tensor(self) -> tuple[str, int, int, int]:
        """A tensor's name, how many numbers it holds, and where in the data its bytes begin and how many they are."""
        name, (dimensions,) = self._string(), self._numbers("I")
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            raise ValueError
        shape = self._numbers(f"{dimensions}Q")
        kind, place = self._numbers("IQ")
        in_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        numbers = math.prod(shape)
        if not numbers or shape[0] % in_block:
            raise ValueError
        return name, numbers, place, numbers // in_block * block_bytes
