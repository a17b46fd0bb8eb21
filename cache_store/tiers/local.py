"""A tier in a local directory: disk, NFS, or a RAM file system such as /dev/shm.

Publishing, and why each step exists:

    temp file in the final directory    a rename is atomic only within one file system;
                                        `.tmp-<pid>-<random>` is invisible to listings
    write, fsync                        or a power loss leaves a final name on blocks that were
                                        never written
    rename to the final name            readers see nothing or everything; an object that is there
                                        already is replaced in the same instant
    fsync of the directory              or a power loss takes the name away again

On a RAM file system there is nothing to sync. Directories may vanish at any time (swept, or removed
by an operator): a publish makes them again. A temp file that is swept under a slow writer costs
that writer a second attempt, nothing else: `sweep` needs neither locks nor pids. Objects are read
into memory, never mapped: truncation by someone else would kill the process.

No state but the configuration: any number of threads and processes may share a directory.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache_store.tiers.base import (
    TEMP_PREFIX,
    ReadBuffer,
    Stat,
    Verify,
    check_name,
    is_hidden,
    split_prefix,
    tier_error,
)

_MISSING = (FileNotFoundError, NotADirectoryError)
_RAM_FILE_SYSTEMS = {"tmpfs", "ramfs"}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}  # how some network file systems answer an fsync of a directory
_ATTEMPTS = 5  # of a publish whose directory or temp file is removed under it


class LocalTier:
    """Objects as files below `directory` (absolute), which is made if need be."""

    local = True

    def __init__(self, directory: str, max_bytes: int | None = None) -> None:
        self._root = directory
        self.url = f"file://{directory}"
        self.max_bytes = max_bytes
        with self._failures("open", "the directory"):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            os.listdir(directory)
            in_ram = file_system_type(directory) in _RAM_FILE_SYSTEMS
        self.label = "ram_file" if in_ram else "disk"
        self._durable = not in_ram

    def __repr__(self) -> str:
        return f"<LocalTier {self.label} {self._root}>"

    def read(self, name: str, buffer: ReadBuffer) -> memoryview | None:
        with self._failures("read", name):
            return _read_file(self._path(name), None, buffer)

    def read_head(self, name: str, n_bytes: int, buffer: ReadBuffer) -> memoryview | None:
        with self._failures("read", name):
            return _read_file(self._path(name), n_bytes, buffer)

    def publish(self, name: str, data: memoryview, verify: Verify | None = None) -> bool:
        path = self._path(name)
        if verify is not None and _holds(path, verify):
            return False
        with self._failures("publish", name):
            self._publish(path, data)
        return True

    def _publish(self, path: str, data: memoryview) -> None:
        vanished = FileNotFoundError()
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    self._make_directory(os.path.dirname(path))
                self._write_and_rename(path, data)
            except FileNotFoundError as failure:
                vanished = failure
            else:
                return
        raise vanished

    def _write_and_rename(self, path: str, data: memoryview) -> None:
        directory = os.path.dirname(path)
        temp = _temp_path(directory)
        try:
            _write_file(temp, data, sync=self._durable)
            os.replace(temp, path)
        except BaseException:
            with suppress(OSError):  # the failure that brought us here is the one to tell
                os.unlink(temp)
            raise
        self._sync_directory(directory)

    def delete(self, name: str) -> bool:
        with self._failures("delete", name):
            try:
                os.unlink(self._path(name))
            except _MISSING:
                return False
            return True

    def stat(self, name: str) -> Stat | None:
        with self._failures("stat", name):
            try:
                found = os.stat(self._path(name))
            except _MISSING:
                return None
            return Stat(name, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str = "") -> Iterator[Stat]:
        directory, name_prefix = split_prefix(prefix)
        with self._failures("list", prefix):
            entries = _entries(os.path.join(self._root, directory))
        for entry in entries:
            if entry.name.startswith(name_prefix) and not is_hidden(entry.name):
                yield from self._listed(entry, f"{directory}/{entry.name}" if directory else entry.name)

    def _listed(self, entry: os.DirEntry[str], name: str) -> Iterator[Stat]:
        with self._failures("list", name):
            is_directory = entry.is_dir(follow_symlinks=False)
            found = None if is_directory else _stat_file(entry)
        if is_directory:
            yield from self.list(f"{name}/")
        elif found is not None:
            yield Stat(name, found.st_size, found.st_mtime)

    def sweep(self, older_than_s: float) -> int:
        """Also removes directories in which nothing is and nothing has changed for as long: not one
        that a writer has just made.

        Ages are taken between times that this file system gave. A temp file from the future is as
        old as one from the past: the clock has been set since, and nobody writes for that long.
        """
        with self._failures("sweep", ""):
            return self._sweep_directory(self._root, self._file_system_now(), older_than_s)

    def _sweep_directory(self, directory: str, now_s: float, older_than_s: float) -> int:
        n_removed = 0
        for entry in _entries(directory):
            is_directory = entry.is_dir(follow_symlinks=False)
            if not is_directory and not entry.name.startswith(TEMP_PREFIX):
                continue
            modified_s = _modified_s(entry)  # before something is removed below it
            is_old = modified_s is not None and abs(now_s - modified_s) >= older_than_s
            if is_directory:
                n_removed += self._sweep_directory(entry.path, now_s, older_than_s)
                if is_old:
                    _remove_if_empty(entry.path)
            elif is_old:
                n_removed += _unlinked(entry.path)
        return n_removed

    def _file_system_now(self) -> float:
        temp = _temp_path(self._root)
        try:
            _write_file(temp, memoryview(b""), sync=False)
            return os.stat(temp).st_mtime
        finally:
            with suppress(OSError):  # a sweep of another process was quicker, or the failure above says why
                os.unlink(temp)

    def close(self) -> None:
        """Nothing is held between calls."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    def _make_directory(self, path: str) -> None:
        if path == self._root:
            os.makedirs(path, mode=0o700, exist_ok=True)
        elif not os.path.isdir(path):
            parent = os.path.dirname(path)
            self._make_directory(parent)
            with suppress(FileExistsError):
                os.mkdir(path, mode=0o700)
            self._sync_directory(parent)

    def _sync_directory(self, path: str) -> None:
        if not self._durable:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as failure:
            if failure.errno not in _CANNOT_SYNC:
                raise
        finally:
            os.close(descriptor)

    @contextmanager
    def _failures(self, operation: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as failure:
            raise tier_error(self.url, operation, name, failure) from failure


def file_system_type(path: str) -> str:
    """The type of the file system that holds `path` ("tmpfs", "ext4"); "" where the system does not
    tell.
    """
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    # "36 35 98:0 /root /mount rw,noatime master:1 - ext3 /dev/root rw": optional fields end with
    # the dash
    for line in lines:
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return ""


def _temp_path(directory: str) -> str:
    return f"{directory}/{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"


def _read_file(path: str, limit: int | None, buffer: ReadBuffer) -> memoryview | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except _MISSING:
        return None
    try:
        size = os.fstat(descriptor).st_size
        view = buffer.take(size if limit is None else min(size, limit))
        n_read = 0
        while n_read < len(view) and (n_more := os.readv(descriptor, [view[n_read:]])):
            n_read += n_more
    finally:
        os.close(descriptor)
    return view[:n_read]


def _holds(path: str, verify: Verify) -> bool:
    """There is an object at `path` and it verifies. One that cannot be read does not."""
    try:
        view = _read_file(path, None, ReadBuffer())
    except OSError:
        return False
    return view is not None and verify(view)


def _write_file(path: str, data: memoryview, *, sync: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = data.cast("B")
        while rest:  # a write may end early; the next one then says why
            rest = rest[os.write(descriptor, rest) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    """Read at once: an iterator that a caller drops half-way would keep its descriptor."""
    try:
        with os.scandir(directory) as found:
            return list(found)
    except _MISSING:
        return []


def _modified_s(entry: os.DirEntry[str]) -> float | None:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return None


def _stat_file(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _unlinked(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError as failure:
        if failure.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
