"""Read the header of a GGUF file: metadata and tensor descriptions, never the weights, believing
nothing.

The layout, all integers little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md,
versions 2 and 3):

    magic "GGUF" | u32 version | u64 n_tensors | u64 n_kv
    n_kv times       string key | u32 type | value           string: u64 length, bytes; array: u32
                     item type, u64 count, items
    n_tensors times  string name | u32 n_dims | u64 dims[n_dims] | u32 ggml type | u64 offset into
                     the data section
    padding to `general.alignment` (32 by default), then the data section

Every count and length is compared with the bytes that are left in the file before anything is
allocated, so memory and time are linear in the size of the header whatever it claims. Refused is
only what cannot be read, or would be read differently by llama.cpp: its own `gguf.cpp` refuses, in
good words, what is malformed otherwise (offsets, alignments, ranks, names that occur twice). What
the values mean is the business of `gguf/check.py`. The `gguf` package has a reader as well: it needs 7
s for a vocabulary of 152k (this one 0.3 s) and raises whatever numpy raises.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUFValueType

from erllama.errors import ModelLoadError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_TENSOR_NAME = 63  # GGML_MAX_NAME - 1
MAX_KEY_BYTES = 65535  # the specification's bound
READ_BUFFER_BYTES = 1 << 20

SCALAR_FORMATS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
# (name, elements per block, bytes per block). gguf 0.19 does not know Q2_0 yet (llama.cpp:
# block_q2_0 in ggml-common.h).
TENSOR_TYPES = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()} | {42: ("Q2_0", 64, 18)}
INTEGERS = frozenset(kind for kind in SCALAR_FORMATS if "INT" in kind.name)
_MIN_KV_BYTES = 8 + 1 + 4 + 1  # length and one byte of key, type, the shortest value
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8


@dataclass(frozen=True, slots=True)
class GgufValue:
    """One metadata value. `data` is a Python scalar, `bytes` for a string, a numpy array, or a list
    of `bytes` for strings.
    """

    type: GGUFValueType
    item_type: GGUFValueType | None
    data: Any


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """`shape` in ggml's order, rows (the contiguous dimension) first. `offset` counts from the
    start of the data section.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_elements: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    path: Path
    metadata: dict[str, GgufValue]
    tensors: dict[str, TensorInfo]
    data_offset: int
    size_bytes: int

    def get_string(self, key: str) -> str | None:
        """The text of `key` up to a NUL, as llama.cpp sees it; None without it. A value of another
        type is an error, there and here.
        """
        value = self.metadata.get(key)
        if value is None:
            return None
        if value.type is not GGUFValueType.STRING:
            raise self.error(f"{key} is of type {value.type.name}, expected a string")
        return until_nul(value.data).decode("utf-8", errors="replace")

    def get_int(self, key: str) -> int | None:
        value = self.metadata.get(key)
        if value is None:
            return None
        if value.type not in INTEGERS:
            raise self.error(f"{key} is of type {value.type.name}, expected an integer")
        return int(value.data)

    def plain(self) -> dict[str, Any]:
        """The metadata as numbers, texts and lists of them; a number that is none is None."""
        return {key: _plain(value.data) for key, value in self.metadata.items()}

    def error(self, message: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}: {message}")


def _plain(data: Any) -> Any:
    if isinstance(data, bytes):
        return data.decode("utf-8", errors="replace")
    if isinstance(data, np.ndarray):
        data = data.tolist()
    if isinstance(data, list):
        return [_plain(item) for item in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def until_nul(text: bytes) -> bytes:
    """What is left of a string when it has been through llama.cpp's C interface."""
    return text.partition(b"\0")[0]


def read_header(path: str | Path) -> GgufHeader:
    """Parse the header of one file. Raises `ModelLoadError` that names the file, the place and the
    numbers; never anything else.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=READ_BUFFER_BYTES) as file:
            return parse_header(file, path.stat().st_size, path)
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ModelLoadError(f"{path}: is a directory, expected a GGUF file") from None
    except PermissionError:
        raise ModelLoadError(f"{path}: permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise ModelLoadError(f"{path}: cannot be read: {error}") from error


def parse_header(file: BinaryIO, size_bytes: int, path: Path, max_bytes: int | None = None) -> GgufHeader:
    """Parse the header of an open file of `size_bytes`, from where it stands, front to back: it may
    lie elsewhere. `path` is what it is called. A header of more than `max_bytes` is refused before
    those bytes are asked for; None allows what the file holds.

    Raises `ModelLoadError` as `read_header` does, and whatever reading the file raises.
    """
    return _Parser(path, file, size_bytes, size_bytes if max_bytes is None else max_bytes).parse()


class _Parser:
    """One pass over one open file. `position` is kept here, because `tell()` per item would double
    the cost of a vocabulary.
    """

    def __init__(self, path: Path, file: BinaryIO, size_bytes: int, max_bytes: int) -> None:
        self.path = path
        self.file = file
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        self.position = 0

    def parse(self) -> GgufHeader:
        n_tensors, n_kv = self._preamble()
        metadata = self._metadata(n_kv)
        tensors = {info.name: info for info in self._tensors(n_tensors)}
        alignment = metadata.get("general.alignment")
        block = max(1, int(alignment.data)) if alignment and alignment.type in INTEGERS else DEFAULT_ALIGNMENT
        data_offset = -(-self.position // block) * block
        for info in tensors.values():
            end = data_offset + info.offset + info.n_bytes
            if end > self.size_bytes:
                raise self._error(
                    f"tensor {info.name} ends at byte {end}, but the file has {self.size_bytes}: truncated or malformed"
                )
        return GgufHeader(self.path, metadata, tensors, data_offset, self.size_bytes)

    def _preamble(self) -> tuple[int, int]:
        magic = self._take(4, "the magic")
        if magic != MAGIC:
            raise self._error(f"is not a GGUF file: it begins with {magic!r}")
        version = self._u32("the version")
        if version not in VERSIONS:
            hint = "; the file seems to be big-endian" if version & 0xFFFF == 0 and version else ""
            raise self._error(f"has GGUF version {version}, supported are 2 and 3{hint}")
        n_tensors, n_kv = self._u64("the tensor count"), self._u64("the metadata count")
        self._need(
            n_kv * _MIN_KV_BYTES + n_tensors * _MIN_TENSOR_BYTES, f"{n_kv} metadata pairs and {n_tensors} tensors"
        )
        return n_tensors, n_kv

    def _metadata(self, n_kv: int) -> dict[str, GgufValue]:
        metadata: dict[str, GgufValue] = {}
        for i in range(n_kv):
            key = self._name(f"metadata key {i}", MAX_KEY_BYTES)
            metadata[key] = self._value(key)
        return metadata

    def _value(self, key: str) -> GgufValue:
        kind = self._value_type(key)
        if kind is GGUFValueType.ARRAY:
            item = self._value_type(key)
            return GgufValue(kind, item, self._array(key, item, self._u64(f"the length of {key}")))
        if kind is GGUFValueType.STRING:
            return GgufValue(kind, None, self._string(key))
        fmt = SCALAR_FORMATS[kind]
        return GgufValue(kind, None, struct.unpack(fmt, self._take(struct.calcsize(fmt), key))[0])

    def _value_type(self, key: str) -> GGUFValueType:
        raw = self._u32(f"the type of {key}")
        try:
            return GGUFValueType(raw)
        except ValueError:
            raise self._error(f"metadata key {key!r} has the unknown type {raw}") from None

    def _array(self, key: str, item: GGUFValueType, n: int) -> Any:
        if item is GGUFValueType.ARRAY:
            raise self._error(f"metadata key {key!r} is an array of arrays, which llama.cpp does not read")
        if item is GGUFValueType.STRING:
            self._need(n * 8, f"{n} strings of {key}")
            return [self._string(key) for _ in range(n)]
        dtype = np.dtype(SCALAR_FORMATS[item])
        return np.frombuffer(self._take(n * dtype.itemsize, f"{n} items of {key}"), dtype=dtype)

    def _tensors(self, n_tensors: int) -> Iterator[TensorInfo]:
        for i in range(n_tensors):
            name = self._name(f"the name of tensor {i}", MAX_TENSOR_NAME)
            n_dims = self._u32(f"the rank of {name}")
            shape = struct.unpack(f"<{n_dims}Q", self._take(8 * n_dims, f"the shape of {name}"))
            kind = self._u32(f"the type of {name}")
            if kind not in TENSOR_TYPES:
                raise self._error(f"tensor {name} has the unknown ggml type {kind}")
            type_name, block, block_bytes = TENSOR_TYPES[kind]
            offset, n_elements = self._u64(f"the offset of {name}"), math.prod(shape)
            yield TensorInfo(name, shape, type_name, offset, n_elements, n_elements // block * block_bytes)

    def _need(self, n_bytes: int, what: str) -> None:
        left = self.size_bytes - self.position
        if n_bytes > left:
            raise self._error(
                f"{what} need {n_bytes} bytes at byte {self.position}, but only {left} are left: truncated or malformed"
            )
        if self.position + n_bytes > self.max_bytes:
            raise self._error(f"{what} ends beyond byte {self.max_bytes}, where a header must have ended")

    def _take(self, n_bytes: int, what: str) -> bytes:
        self._need(n_bytes, what)
        data = self.file.read(n_bytes)
        if len(data) != n_bytes:
            raise self._error(f"shrank while it was read, at byte {self.position}")
        self.position += n_bytes
        return data

    def _string(self, what: str) -> bytes:
        return self._take(int.from_bytes(self._take(8, what), "little"), what)

    def _name(self, what: str, most: int) -> str:
        raw = self._string(what)
        if not 0 < len(raw) <= most or b"\0" in raw:
            raise self._error(f"{what} has {len(raw)} bytes (1 to {most} are allowed) or a NUL among them")
        return raw.decode("utf-8", errors="backslashreplace")

    def _u32(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def _u64(self, what: str) -> int:
        return int.from_bytes(self._take(8, what), "little")

    def _error(self, message: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path}: {message}")
