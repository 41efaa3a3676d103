"""A GGUF file as it lies on the disk: its fields, and where each tensor is.

The ``gguf`` package reads the same, but makes several arrays of each of a vocabulary's 98,000
strings, which takes seconds; here they are read in a tenth of one. Every length is held against
the file's own before it is believed.

Source: the GGUF specification (ggml-org/ggml, docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smol_scratch.assets import CorruptAssetError

# GGUF's number for each type of value, and what ``struct`` calls it.
_NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_DIMENSIONS, _DEEPEST = 4, 8  # of a tensor; of arrays in arrays


class StoredTensor(NamedTuple):
    """A tensor as it is stored.

    Attributes:
        shape: as PyTorch counts it, rows first.
        kind: a ``gguf.GGMLQuantizationType``.
        data: its bytes, (rows, bytes of a row), as ``gguf.dequantize`` takes them: the file itself.
    """

    shape: tuple[int, ...]
    kind: Any
    data: np.ndarray


class GGUFFile(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        fields: name to value: a number, a string, a truth value or a list.
        tensors: name to tensor, in the file's order.
    """

    fields: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf(path: str | Path) -> GGUFFile:
    """Return the fields and tensors of a GGUF file, versions 2 and 3.

    Raises:
        CorruptAssetError: when it is cut short, contradicts itself, or is no GGUF file.
        ValueError: for another version, and for numbers in big-endian order.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] != b"GGUF" or len(start) < 8:
            raise CorruptAssetError(f"{path} is no whole GGUF file: it begins with {start[:4]!r}")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    version = int.from_bytes(start[4:], "little")
    if version not in (2, 3):
        swapped = int.from_bytes(start[4:], "big") in (2, 3)
        what = "its numbers are big-endian" if swapped else f"GGUF version {version}"
        raise ValueError(f"{path}: {what}; versions 2 and 3, little-endian, are read")
    try:
        return _Reader(data).read()
    except (ValueError, IndexError, struct.error, RecursionError) as error:
        raise CorruptAssetError(f"{path} is no whole GGUF file: {error}") from error


class _Reader:
    """Reads from the left; ``at`` is the place of the next byte."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 8  # behind magic and version

    def read(self) -> GGUFFile:
        n_tensors, n_fields = self.number("Q"), self.number("Q")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            name = self.string()
            if name in fields:
                raise ValueError(f"the field {name} appears twice")
            fields[name] = self.value(self.number("I"))
        places = {}
        for _ in range(n_tensors):
            name = self.string()
            if name in places:
                raise ValueError(f"the tensor {name} appears twice")
            n_dimensions = self.number("I")
            if n_dimensions > _MOST_DIMENSIONS:
                raise ValueError(f"{name} has {n_dimensions} dimensions")
            shape = tuple(self.number("Q") for _ in range(n_dimensions))[::-1]
            places[name] = shape, self.number("I"), self.number("Q")
        alignment = fields.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1:
            raise ValueError(f"general.alignment={alignment!r}: must be a whole number above 0")
        begin = self.at + -self.at % alignment
        return GGUFFile(
            fields,
            {
                name: self.tensor(name, shape, kind, begin + offset)
                for name, (shape, kind, offset) in places.items()
            },
        )

    def room(self, n_bytes: int) -> None:
        """Raise unless so many bytes follow."""
        if n_bytes > len(self.data) - self.at:
            raise ValueError(f"{n_bytes:,} bytes from byte {self.at:,} on are not in it")

    def number(self, kind: str) -> Any:
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def string(self) -> str:
        length = self.number("Q")
        self.room(length)
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY or depth == _DEEPEST:
            raise ValueError(f"a value of type {kind} at byte {self.at:,}")
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            values = f"<{count}{_NUMBERS[kind]}"
            self.room(count * struct.calcsize("<" + _NUMBERS[kind]))
            self.at += struct.calcsize(values)
            return list(struct.unpack_from(values, self.data, self.at - struct.calcsize(values)))
        self.room(8 * count)  # each string and each array says how long it is
        if kind == _STRING:
            return self.strings(count)
        return [self.value(kind, depth + 1) for _ in range(count)]

    def strings(self, count: int) -> list[str]:
        """Do what ``string`` does, often: half of the time is what a call costs."""
        data, at, size, found = self.data, self.at, len(self.data), []
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            start = at + 8
            at = start + length_at(data, at)[0]
            if at > size:
                raise ValueError(f"a string from byte {start:,} on is not whole")
            found.append(data[start:at].decode())
        self.at = at
        return found

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> StoredTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import quant_shape_to_byte_shape

        form = GGMLQuantizationType(kind)  # a ValueError for one that is not known
        per_block, block_bytes = GGML_QUANT_SIZES[form]
        n_bytes = math.prod(shape) // per_block * block_bytes
        if start + n_bytes > len(self.data):
            raise ValueError(f"{name}: its {n_bytes:,} bytes from byte {start:,} on are not in it")
        stored = np.frombuffer(self.data, np.uint8, n_bytes, start)
        return StoredTensor(shape, form, stored.reshape(quant_shape_to_byte_shape(shape, form)))
