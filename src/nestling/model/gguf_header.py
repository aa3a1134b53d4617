"""What a GGUF file says before its weights: metadata and the table of tensors.

Follows the GGUF specification, versions 2 and 3 (ggml repository, docs/gguf.md). The ``gguf`` library reads
headers too, but makes a numpy view per vocabulary entry (4 s and 160 MB for 49k tokens) and trusts every
count. Here no number from the file reserves memory: each read is first checked against the end of the file.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from nestling.errors import ModelError

READ_AGAIN = "The file is damaged or incomplete; get it again."
VERSIONS = (2, 3)
MOST_DIMENSIONS = 4  # GGML_MAX_DIMS

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: ``nbytes`` from byte ``start`` of the file. ``shape`` is torch's, rows first."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Metadata by key (arrays of numbers as numpy, of strings as lists) and the tensors by GGUF name."""

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read everything but the weights.

    Raises:
        ModelError: when the file cannot be opened, is not GGUF, or its header does not fit the file.
    """
    where = str(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, where).header()
    except FileNotFoundError as error:
        raise ModelError("there is no such file.", where=where, remedy="Check the path.") from error
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error.strerror}.",
            where=where,
            remedy="Check that the file is there and yours to read.",
        ) from error
    except ValueError as error:  # an empty file cannot be mapped
        raise ModelError("the file is empty.", where=where, remedy=READ_AGAIN) from error


class _Reader:
    """Walks the header from front to back."""

    def __init__(self, data: mmap.mmap, where: str) -> None:
        self.data, self.where, self.position = data, where, 0

    def header(self) -> Header:
        if self.take(4) != b"GGUF":
            raise ModelError("this is not a GGUF file.", where=self.where, remedy="Point at a .gguf file.")
        version = self.number("<I")
        if version not in VERSIONS:
            remedy = "Convert it again with a current llama.cpp."
            raise ModelError(
                f"GGUF version {version} (or byte order) is not supported.", where=self.where, remedy=remedy
            )
        tensor_count, key_count = self.number("<Q"), self.number("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.string("a metadata key")
            if key in metadata:
                raise self.broken(f"metadata key {key!r} comes twice")
            metadata[key] = self.value(key)
        table = [self.table_row() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.broken(f"general.alignment is {alignment!r}, not a power of two")
        data_start = -(-self.position // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in table:
            if name in tensors:
                raise self.broken(f"tensor {name!r} comes twice")
            tensors[name] = self.place(name, shape, kind, data_start + offset)
        return Header(metadata, tensors)

    def table_row(self) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = self.string("a tensor name")
        dimensions = self.number("<I")
        if dimensions > MOST_DIMENSIONS:
            raise self.broken(f"tensor {name!r} claims {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]  # GGUF counts columns first
        kind, offset = self.number("<I"), self.number("<Q")
        try:
            return name, shape, GGMLQuantizationType(kind), offset
        except ValueError as error:
            remedy = "Get the model in a common type such as F16, Q8_0 or Q4_K_M."
            raise ModelError(
                f"tensor {name!r} has the unknown type {kind}.", where=self.where, remedy=remedy
            ) from error

    def place(self, name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, start: int) -> TensorInfo:
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not shape or 0 in shape or shape[-1] % block:
            raise self.broken(f"tensor {name!r} cannot have shape {list(shape)} in type {kind.name}")
        nbytes = prod(shape) // block * block_bytes
        if start + nbytes > len(self.data):
            raise self.broken(
                f"tensor {name!r} of shape {list(shape)} ends at byte {start + nbytes:,} "
                f"of a file of {len(self.data):,}"
            )
        return TensorInfo(shape, kind, start, nbytes)

    def value(self, key: str) -> Any:
        kind = self.value_type(key)
        if kind == GGUFValueType.STRING:
            return self.string(key)
        if kind != GGUFValueType.ARRAY:
            return self.numbers(_SCALARS[kind], 1)[0].item()
        kind, count = self.value_type(key), self.number("<Q")
        if kind == GGUFValueType.ARRAY:
            raise self.broken(f"metadata key {key!r} holds arrays in an array")
        if kind == GGUFValueType.STRING:
            return [self.string(key) for _ in range(count)]
        return self.numbers(_SCALARS[kind], count)

    def value_type(self, key: str) -> GGUFValueType:
        number = self.number("<I")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise self.broken(f"metadata key {key!r} has the unknown type {number}") from error

    def string(self, what: str) -> str:
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8 text") from error

    def numbers(self, dtype: str, count: int) -> np.ndarray:
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype)

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise self.broken(
                f"the header wants {count:,} bytes at {self.position:,}, the file has {len(self.data):,}"
            )
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def broken(self, what: str) -> ModelError:
        return ModelError(f"{what}.", where=self.where, remedy=READ_AGAIN)
