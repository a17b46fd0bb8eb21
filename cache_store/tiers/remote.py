"""A tier behind an fsspec driver: object stores (s3, gs, abfs), `memory`, and whatever else speaks
fsspec (sftp, smb, hdfs).

On an object store a publish is one PUT, which is atomic. (s3fs uploads objects of 100 MB and more
in parts; those of a killed writer are invisible and stay until a lifecycle rule of the bucket
removes them.) Elsewhere it is a hidden temp file and a move, which is as atomic as the move of the
driver. The driver's directory cache is switched off: stats and listings are fresh. Reads do not
pass through the caller's buffer, since drivers hand out bytes of their own.

Threads: drivers that are asynchronous run on fsspec's one loop thread and may be called from any
thread, except from that one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from fsspec import AbstractFileSystem

from cache_store.errors import TierError
from cache_store.tiers.base import (
    MISSING,
    TEMP_PREFIX,
    Placer,
    ReadBuffer,
    Stat,
    check_name,
    is_hidden,
    split_prefix,
    temp_path,
    tier_errors,
)

ONE_PUT_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"})

_TIME_KEYS = ("LastModified", "last_modified", "mtime", "updated", "modified", "created")


class RemoteTier:
    """Objects below `root`, a path as `filesystem` spells it. `one_put`: a PUT makes an object
    visible whole or not at all.
    """

    local = False

    def __init__(
        self,
        filesystem: AbstractFileSystem,
        root: str,
        *,
        url: str,
        label: str,
        one_put: bool,
        max_bytes: int | None = None,
    ) -> None:
        filesystem.dircache.use_listings_cache = False
        self._filesystem: AbstractFileSystem | None = filesystem
        self._root = root.rstrip("/")
        self._one_put = one_put
        # the method behind fsspec's synchronous wrapper has the signature
        find = getattr(filesystem, "_find", filesystem.find)
        self._lists_by_prefix = "prefix" in inspect.signature(find).parameters
        self.url = url
        self.label = label
        self.max_bytes = max_bytes

    def __repr__(self) -> str:
        return f"<RemoteTier {self.label} {self.url}>"

    def read(
        self, name: str, buffer: ReadBuffer, head_bytes: int | None = None, placer: Placer | None = None
    ) -> memoryview | None:
        path = self._path(name)
        span = {} if head_bytes is None else {"start": 0, "end": head_bytes}
        with self._failures("read", name):
            try:
                return memoryview(self._open_fs.cat_file(path, **span))
            except MISSING:
                return None
            except OSError:
                found = self._stat(name) if span else None
                if found is not None and found.n_bytes == 0:  # no range can be taken of nothing
                    return memoryview(b"")
                raise

    def publish(self, name: str, data: memoryview) -> None:
        path = self._path(name)
        with self._failures("publish", name):
            self._put(path, bytes(data))  # drivers take bytes only

    def _put(self, path: str, data: bytes) -> None:
        if self._one_put:
            self._open_fs.pipe_file(path, data)
            return
        directory, _, _ = path.rpartition("/")
        temp = temp_path(directory)
        self._open_fs.makedirs(directory, exist_ok=True)
        try:
            self._open_fs.pipe_file(temp, data)
            self._open_fs.mv(temp, path)
        except BaseException:
            self._remove_quietly(temp)
            raise

    def _remove_quietly(self, path: str) -> None:
        try:
            self._open_fs.rm_file(path)
        except Exception:
            return  # nothing was written, or the connection is gone: `sweep` removes it

    def delete(self, name: str) -> bool:
        path = self._path(name)
        with self._failures("delete", name):
            if self._stat(name) is None:  # object stores do not tell
                return False
            try:
                self._open_fs.rm_file(path)
            except MISSING:
                return False
            return True

    def stat(self, name: str) -> Stat | None:
        check_name(name)
        with self._failures("stat", name):
            return self._stat(name)

    def _stat(self, name: str) -> Stat | None:
        try:
            info = self._open_fs.info(self._path(name))
        except MISSING:
            return None
        return Stat(name, info["size"], _modified_s(info)) if info["type"] == "file" else None

    def list(self, prefix: str = "") -> Iterator[Stat]:
        directory, name_prefix = split_prefix(prefix)
        with self._failures("list", prefix):
            found = self._find(directory, name_prefix)
        for path, info in found.items():
            name = path.removeprefix(f"{self._root}/")
            if info["type"] == "file" and name.startswith(prefix) and not name.endswith("/") and not is_hidden(name):
                yield Stat(name, info["size"], _modified_s(info))

    def _find(self, directory: str, name_prefix: str) -> dict[str, dict[str, Any]]:
        options = {"prefix": name_prefix} if name_prefix and self._lists_by_prefix else {}
        try:
            found: dict[str, dict[str, Any]] = self._open_fs.find(
                f"{self._root}/{directory}".rstrip("/"), detail=True, **options
            )
        except MISSING:
            return {}
        return found

    def sweep(self, older_than_s: float) -> int:
        """Where one PUT is a publish nothing is left behind. Ages are taken between times that the
        file system gave.
        """
        if self._one_put:
            return 0
        with self._failures("sweep", ""):
            now_s = self._file_system_now()
            left = [
                (path, abs(now_s - _modified_s(info)))
                for path, info in self._find("", "").items()
                if f"/{TEMP_PREFIX}" in path
            ]
            old = [path for path, age_s in left if age_s >= older_than_s]
            for path in old:
                self._remove_quietly(path)
            return len(old)

    def _file_system_now(self) -> float:
        temp = temp_path(self._root)
        self._open_fs.makedirs(self._root, exist_ok=True)
        self._open_fs.pipe_file(temp, b"")
        try:
            return _modified_s(self._open_fs.info(temp))
        finally:
            self._remove_quietly(temp)

    def close(self) -> None:
        """Drops the driver, which closes its connections. Calls that are under way end as they
        would have.
        """
        self._filesystem = None

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    @property
    def _open_fs(self) -> AbstractFileSystem:
        filesystem = self._filesystem
        if filesystem is None:
            raise TierError(f"the tier {self.url} has been closed")
        return filesystem

    def _failures(self, operation: str, name: str) -> AbstractContextManager[None]:
        """Drivers raise what their libraries raise."""
        return tier_errors(self, operation, name, Exception)


def _modified_s(info: dict[str, Any]) -> float:
    """When an object was written, in whatever way its driver tells; 0.0 if it does not."""
    value = next((info[key] for key in _TIME_KEYS if info.get(key)), 0.0)
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    return value.timestamp() if isinstance(value, datetime) else float(value)
