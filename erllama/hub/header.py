"""Whether a model can run, from the headers of its files, before the files are fetched.

A header is some megabytes at the front of a file, read in blocks through the file's origin.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from gguf.constants import MODEL_ARCH_NAMES

from erllama.errors import ModelLoadError, NotSupported
from erllama.gguf.check import GgufInfo, inspect_headers
from erllama.gguf.header import GgufHeader, parse_header
from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed
from erllama.hub.sources.origin import ContentChanged, Origin, RangesIgnored, Transient
from erllama.hub.sources.remote import RemoteFile, RemoteModel, Role

BLOCK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 8 << 20
KNOWN_ARCHITECTURES = frozenset(MODEL_ARCH_NAMES.values())


class RangedFile(io.RawIOBase):
    """A remote file, read front to back in blocks that double from 1 to 8 MiB.

    Raises `Transient` and its like from reads; `read_remote_header` tries those again.
    """

    def __init__(self, origin: Origin) -> None:
        super().__init__()
        self._origin = origin
        self._position = 0
        self._block, self._block_start = b"", 0
        self._next_bytes = BLOCK_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._origin.file.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = self._origin.file.size
        if self._position >= size:
            return 0
        offset = self._position - self._block_start
        if not 0 <= offset < len(self._block):
            end = min(self._position + self._next_bytes, size)
            self._block, self._block_start = fetch_range(self._origin, self._position, end), self._position
            self._next_bytes = min(2 * self._next_bytes, MAX_BLOCK_BYTES)
            offset = 0
        data = self._block[offset : offset + len(buffer)]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def fetch_range(origin: Origin, start: int, end: int) -> bytes:
    """The bytes of a range, also from a server that sends only whole files: then what stands before
    them is read and dropped, and what follows is not waited for.
    """
    try:
        return b"".join(origin.read(start, end))
    except RangesIgnored:
        data = bytearray()
        for block in origin.whole():
            data += block
            if len(data) >= end:
                break
        return bytes(data[start:end])


def read_remote_header(origin: Origin, config: HubConfig) -> GgufHeader:
    """Raises `ModelLoadError` for what is no sound header, and `PullFailed`."""
    file = origin.file
    for attempt in range(config.attempts):
        try:
            buffered = cast(BinaryIO, io.BufferedReader(RangedFile(origin)))
            return parse_header(buffered, file.size, Path(file.name), config.max_header_bytes)
        except (Transient, ContentChanged) as error:
            if isinstance(error, ContentChanged) or attempt + 1 == config.attempts:
                raise PullFailed(f"{file.name}: its header cannot be read: {error}") from error
    raise AssertionError("unreachable: the last attempt returns or raises")


def check_runnable(model: RemoteModel, config: HubConfig, read: Callable[[RemoteFile], GgufHeader]) -> GgufInfo:
    """What the model is. `read` gives a file's header, from wherever it lies.

    Raises `NotSupported` with the file and the reason when llama.cpp could not run it, or when an
    adapter or projector is none.
    """
    try:
        info = inspect_headers([read(file) for file in model.of(Role.MODEL, Role.PART)])
        if info.adapter_type is not None:
            raise ModelLoadError(f"{info.path}: is an adapter, expected a model")
        known = KNOWN_ARCHITECTURES if config.architectures is None else config.architectures
        if info.architecture not in known:
            raise ModelLoadError(f"{info.path}: has the architecture {info.architecture!r}, which is not supported")
        for file in model.of(Role.ADAPTER):
            _check_adapter(read(file), info)
        for file in model.of(Role.PROJECTOR):
            _check_projector(read(file))
    except ModelLoadError as error:
        raise NotSupported(error.message, param="model") from error
    return info


def _check_adapter(header: GgufHeader, info: GgufInfo) -> None:
    kind, architecture = header.get_string("general.type"), header.get_string("general.architecture")
    if kind != "adapter" or architecture != info.architecture:
        raise header.error(f"is a {kind} of architecture {architecture}, expected an adapter for {info.architecture}")


def _check_projector(header: GgufHeader) -> None:
    architecture = header.get_string("general.architecture")
    if architecture != "clip":
        raise header.error(f"has the architecture {architecture}, expected a projector (clip)")
