"""GGUF files like a given one, with other metadata or tensor descriptions: what a damaged or lying
file looks like.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf.constants import GGUFValueType

from erllama.gguf.header import DEFAULT_ALIGNMENT, SCALAR_FORMATS, TENSOR_TYPES, GgufHeader, GgufValue, read_header

TYPE_IDS = {sizes[0]: number for number, sizes in TENSOR_TYPES.items()}


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _pack(value: GgufValue) -> bytes:
    if value.item_type is GGUFValueType.STRING:
        return struct.pack("<IQ", value.item_type, len(value.data)) + b"".join(map(_string, value.data))
    if value.item_type is not None:
        return struct.pack("<IQ", value.item_type, len(value.data)) + np.asarray(value.data).tobytes()
    if value.type is GGUFValueType.STRING:
        return _string(value.data)
    return struct.pack(SCALAR_FORMATS[value.type], value.data)


def serialise(header: GgufHeader, metadata: dict[str, GgufValue] | None = None, tensors: list | None = None) -> bytes:
    """The bytes of a file like `header`'s, with other metadata or tensor descriptions."""
    metadata = header.metadata if metadata is None else metadata
    tensors = list(header.tensors.values()) if tensors is None else tensors
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        out += _string(key.encode()) + struct.pack("<I", value.type) + _pack(value)
    for info in tensors:
        kind = TYPE_IDS[info.type]
        out += _string(info.name.encode()) + struct.pack(
            f"<I{len(info.shape)}QIQ", len(info.shape), *info.shape, kind, info.offset
        )
    return out + bytes(-len(out) % DEFAULT_ALIGNMENT) + header.path.read_bytes()[header.data_offset :]


def with_value(path: Path, key: str, data: object, kind: GGUFValueType | None = None) -> bytes:
    header = read_header(path)
    old = header.metadata.get(key) or GgufValue(GGUFValueType.UINT32, None, 0)
    value = replace(old, data=data) if kind is None else GgufValue(kind, None, data)
    return serialise(header, header.metadata | {key: value})
