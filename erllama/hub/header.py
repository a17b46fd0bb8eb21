"""Whether a model can run, from the headers of its files, before the files are fetched.

A header is some megabytes at the front of a file, read in blocks through the file's origin.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from gguf.constants import MODEL_ARCH_NAMES

from erllama.errors import ModelLoadError, NotSupported
from erllama.gguf.check import GgufInfo, inspect_headers
from erllama.gguf.header import GgufHeader, parse_header
from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed
from erllama.hub.sources.origin import ContentChanged, Origin, RangesIgnored, Transient, paced
from erllama.hub.sources.remote import RemoteFile, RemoteModel, Role

BLOCK_BYTES = 1 << 20
MAX_BLOCK_BYTES = 8 << 20
KNOWN_ARCHITECTURES = frozenset(MODEL_ARCH_NAMES.values())


class RangedFile(io.RawIOBase):
    """A remote file, read front to back in blocks that double from 1 to 8 MiB. Reads raise
    `PullFailed` and its like.
    """

    def __init__(self, origin: Origin, config: HubConfig) -> None:
        super().__init__()
        self._origin = origin
        self._config = config
        self._position = 0  # in the file, of what has been fetched
        self._block = memoryview(b"")  # what has been fetched and not been read
        self._next_bytes = BLOCK_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        end = min(self._position + self._next_bytes, self._origin.file.size)
        if not self._block and self._position < end:
            self._block = memoryview(fetch_range(self._origin, self._position, end, self._config))
            self._position = end
            self._next_bytes = min(2 * self._next_bytes, MAX_BLOCK_BYTES)
        n = min(len(self._block), len(buffer))
        buffer[:n], self._block = self._block[:n], self._block[n:]
        return n


def fetch_range(origin: Origin, start: int, end: int, config: HubConfig) -> bytes:
    """The bytes of a range; tried again from where it was cut off. Raises `PullFailed`."""
    data = bytearray()
    for attempt in range(config.attempts):
        try:
            for block in paced(origin.read(start + len(data), end), config):
                data += block
            return bytes(data)
        except RangesIgnored:
            return _front(origin, end, config)[start:]
        except (Transient, ContentChanged) as error:
            if isinstance(error, ContentChanged) or attempt + 1 == config.attempts:
                raise PullFailed(f"{origin.file.name}: its header cannot be read: {error}") from error
            time.sleep(min(config.backoff_s * 2**attempt, config.max_backoff_s))
    raise AssertionError("unreachable: the last attempt returns or raises")


def read_remote_header(origin: Origin, config: HubConfig) -> GgufHeader:
    """Raises `ModelLoadError` for what is no sound header, and `PullFailed`."""
    file = cast(BinaryIO, io.BufferedReader(RangedFile(origin, config), BLOCK_BYTES))
    return parse_header(file, origin.file.size, Path(origin.file.name), config.max_header_bytes)


def _front(origin: Origin, end: int, config: HubConfig) -> bytes:
    """The first `end` bytes from a server that sends only whole files; the rest is left."""
    data = bytearray()
    try:
        for block in paced(origin.whole(), config):
            data += block
            if len(data) >= end:
                break
    except (Transient, ContentChanged) as error:
        raise PullFailed(f"{origin.file.name}: its header cannot be read: {error}") from error
    return bytes(data[:end])


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
