"""Bytes of one remote file, by ranges: over HTTP, or through fsspec.

An origin remembers the first validator (etag, or time of change) that it saw, and compares every
later answer with it. It believes nothing that a server says about ranges without looking.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import fsspec
import httpx

from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed, SourceNotFound
from erllama.hub.sources.client import HttpClient, check_status, shown
from erllama.hub.sources.remote import RemoteFile

FSSPEC_READ_BYTES = 4 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_TRY_AGAIN = frozenset([408, 425, 429, 500, 502, 503, 504])


class ContentChanged(Exception):
    """The file is not the one that was begun with."""


class RangesIgnored(Exception):
    """The server answers a range with something else, so that only the whole file can be had."""


class Transient(Exception):
    """Another try may succeed, after `retry_after_s` seconds where the server says so."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Origin(Protocol):
    """Any thread may read. Both readers raise the three errors above, and `PullFailed` and its like
    for what is final; `whole` does not raise `RangesIgnored`.
    """

    file: RemoteFile
    validator: str | None

    def read(self, start: int, end: int) -> Iterator[bytes]: ...

    def whole(self) -> Iterator[bytes]: ...

    def check_unchanged(self) -> None:
        """Raises `ContentChanged` if the file is known to be another one by now."""

    def abort(self) -> None:
        """Wake who reads. The origin cannot be read after that."""


def open_origin(file: RemoteFile, client: HttpClient, config: HubConfig) -> Origin:
    return HttpOrigin(file, client) if file.over_http else FsspecOrigin(file, config.storage_options)


class HttpOrigin:
    """A file behind a URL. Where its digest is promised, that decides and etags are not compared:
    the machines of one content network do not always agree on them.
    """

    def __init__(self, file: RemoteFile, client: HttpClient) -> None:
        self.file = file
        self.validator = file.etag
        self._client = client
        self._lock = threading.Lock()

    def read(self, start: int, end: int) -> Iterator[bytes]:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if (
            self.validator is not None and self.validator.startswith('"') and not self.file.sha256
        ):  # only a strong etag may stand there
            headers["If-Range"] = self.validator
        with _NetworkErrors(), self._client.send("GET", self.file.url, headers, self.file.authorization) as response:
            if response.status_code == 416:
                raise ContentChanged("the server says that the range is beyond its end")
            self._check(response)
            if response.status_code == 206:
                self._check_range(response, start, end)
            elif (start, end) != (0, self.file.size):
                raise RangesIgnored
            position = start
            for data in response.iter_raw():
                position += len(data)
                if position > end:
                    raise RangesIgnored
                yield data
            if position != end:
                raise Transient(f"the connection ended {end - position} bytes early")

    def whole(self) -> Iterator[bytes]:
        with _NetworkErrors(), self._client.send("GET", self.file.url, {}, self.file.authorization) as response:
            self._check(response)
            position = 0
            for data in response.iter_raw():
                position += len(data)
                if position > self.file.size:
                    raise PullFailed(f"{shown(self.file.url)}: sends more than the {self.file.size} bytes that it told")
                yield data
            if position != self.file.size:
                raise Transient(f"the connection ended {self.file.size - position} bytes early")

    def check_unchanged(self) -> None:
        """Each answer was compared."""

    def abort(self) -> None:
        self._client.abort()

    def _check(self, response: httpx.Response) -> None:
        if response.status_code in _TRY_AGAIN:
            raise Transient(f"HTTP {response.status_code}", _retry_after(response))
        check_status(response, self.file.url)
        seen = validator_of(response)
        with self._lock:
            if self.validator is None:
                self.validator = seen
            elif seen is not None and seen != self.validator and not self.file.sha256:
                raise ContentChanged(f"its etag was {self.validator} and is {seen}")
        length = response.headers.get("content-length", "")
        if response.status_code == 200 and length.isdecimal() and int(length) != self.file.size:
            raise ContentChanged(f"it had {self.file.size} bytes and has {length}")

    def _check_range(self, response: httpx.Response, start: int, end: int) -> None:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if match is None:
            raise RangesIgnored
        if match[3] not in ("*", str(self.file.size)):
            raise ContentChanged(f"it had {self.file.size} bytes and has {match[3]}")
        if int(match[1]) != start or int(match[2]) != end - 1:
            raise RangesIgnored


class FsspecOrigin:
    def __init__(self, file: RemoteFile, storage_options: Mapping[str, Mapping[str, Any]]) -> None:
        self.file = file
        self.validator = file.etag
        self._fs, self._path = file_system(file.url, storage_options)
        self._lock = threading.Lock()

    def read(self, start: int, end: int) -> Iterator[bytes]:
        with self._lock:
            if self.validator is None:  # it begins anew
                self.validator = self._etag()
        for low in range(start, end, FSSPEC_READ_BYTES):
            high = min(low + FSSPEC_READ_BYTES, end)
            try:
                data = self._fs.cat_file(self._path, start=low, end=high)
            except FileNotFoundError:
                raise ContentChanged("it is not there any more") from None
            except Exception as error:  # each driver has errors of its own
                raise Transient(f"{type(error).__name__}: {error}") from error
            if len(data) != high - low:
                raise ContentChanged(f"bytes {low} to {high} of it are only {len(data)}")
            yield data

    def whole(self) -> Iterator[bytes]:
        return self.read(0, self.file.size)

    def check_unchanged(self) -> None:
        if self._etag() != self.validator:
            raise ContentChanged("it was written to")

    def abort(self) -> None:
        """Nobody waits longer than one read."""

    def _etag(self) -> str | None:
        size, etag = file_facts(self._fs, self._path, self.file.url)
        if size != self.file.size:
            raise ContentChanged(f"it had {self.file.size} bytes and has {size}")
        return etag


def paced(blocks: Iterator[bytes], config: HubConfig) -> Iterator[bytes]:
    """The blocks; `Transient` when too few bytes arrive in a stall's time. A read that gets nothing
    at all ends by the connection's own timeout.
    """
    since, arrived = time.monotonic(), 0
    for data in blocks:
        yield data
        arrived += len(data)
        now = time.monotonic()
        if now - since >= config.stall_timeout_s:
            if arrived < config.stall_bytes:
                raise Transient(f"only {arrived} bytes came in {now - since:.1f} s")
            since, arrived = now, 0


def file_system(url: str, storage_options: Mapping[str, Mapping[str, Any]]) -> tuple[Any, str]:
    """The file system and the path in it; raises `PullFailed` when the driver is not installed."""
    try:
        fs, path = fsspec.core.url_to_fs(url, **storage_options.get(url.partition("://")[0], {}))
    except (ImportError, ValueError) as error:
        raise PullFailed(f"{shown(url)}: {error}") from error
    return fs, str(path)


def file_facts(fs: Any, path: str, url: str) -> tuple[int, str | None]:
    """(size, what changes when the content does); raises `SourceNotFound`, `PullFailed`."""
    try:
        fs.invalidate_cache()
        info = fs.info(path)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceNotFound(f"{shown(url)}: there is no such file", param="model") from None
    except Exception as error:  # each driver has errors of its own
        raise PullFailed(f"{shown(url)}: {type(error).__name__}: {error}") from error
    if info.get("type") == "directory" or not isinstance(info.get("size"), int):
        raise SourceNotFound(f"{shown(url)}: is no file, or does not tell its size", param="model")
    etag = next((info[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), None)
    return int(info["size"]), None if etag is None else str(etag)


def validator_of(response: httpx.Response) -> str | None:
    """What changes when the content does, as far as the server tells."""
    found = response.headers.get("etag") or response.headers.get("last-modified")
    return None if found is None else str(found)


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0


class _NetworkErrors:
    """httpx's errors as `Transient`. No generator: it is entered inside of one."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, httpx.TransportError):
            raise Transient(str(error) or type(error).__name__) from error
