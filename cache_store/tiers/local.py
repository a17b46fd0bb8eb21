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
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cache_store.format.file import PEEK_BYTES
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

_RAM_FILE_SYSTEMS = {"tmpfs", "ramfs"}
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}  # how some network file systems answer an fsync of a directory
# of a read that is placed: what stays in a core's cache until it was looked at
_SLICE_BYTES = 1 << 18
_MOST_PIECES = 512  # Linux takes 1024 for one read
_ATTEMPTS = 5  # of a publish whose directory or temp file is removed under it


class LocalTier:
    """Objects as files below `directory` (absolute), which is made if need be."""

    local = True

    def __init__(self, directory: str, max_bytes: int | None = None) -> None:
        self._root = directory
        self.url = f"file://{directory}"
        self.max_bytes = max_bytes
        with tier_errors(self, "open", "the directory"):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            os.listdir(directory)
            in_ram = file_system_type(directory) in _RAM_FILE_SYSTEMS
        self.label = "ram_file" if in_ram else "disk"
        self._durable = not in_ram

    def __repr__(self) -> str:
        return f"<LocalTier {self.label} {self._root}>"

    def read(
        self, name: str, buffer: ReadBuffer, head_bytes: int | None = None, placer: Placer | None = None
    ) -> memoryview | None:
        with tier_errors(self, "read", name):
            return _read_file(self._path(name), head_bytes, buffer, placer)

    def publish(self, name: str, data: memoryview) -> None:
        with tier_errors(self, "publish", name):
            self._publish(self._path(name), data)

    def _publish(self, path: str, data: memoryview) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                if attempt:
                    self._make_directory(os.path.dirname(path))
                self._write_and_rename(path, data)
                return
            except FileNotFoundError:
                if attempt == _ATTEMPTS - 1:
                    raise

    def _write_and_rename(self, path: str, data: memoryview) -> None:
        directory = os.path.dirname(path)
        temp = temp_path(directory)
        try:
            _write_file(temp, data, sync=self._durable)
            os.replace(temp, path)
        except BaseException:
            with suppress(OSError):  # the failure that brought us here is the one to tell
                os.unlink(temp)
            raise
        self._sync_directory(directory)

    def delete(self, name: str) -> bool:
        with tier_errors(self, "delete", name):
            return _unlinked(self._path(name))

    def stat(self, name: str) -> Stat | None:
        with tier_errors(self, "stat", name):
            try:
                found = os.stat(self._path(name))
            except MISSING:
                return None
            return Stat(name, found.st_size, found.st_mtime) if stat.S_ISREG(found.st_mode) else None

    def list(self, prefix: str = "") -> Iterator[Stat]:
        directory, name_prefix = split_prefix(prefix)
        with tier_errors(self, "list", prefix):
            entries = _entries(os.path.join(self._root, directory))
        for entry in entries:
            if entry.name.startswith(name_prefix) and not is_hidden(entry.name):
                yield from self._listed(entry, f"{directory}/{entry.name}" if directory else entry.name)

    def _listed(self, entry: os.DirEntry[str], name: str) -> Iterator[Stat]:
        with tier_errors(self, "list", name):
            is_directory = entry.is_dir(follow_symlinks=False)
            found = None if is_directory else _stat(entry)
        if is_directory:
            yield from self.list(f"{name}/")
        elif found is not None and stat.S_ISREG(found.st_mode):
            yield Stat(name, found.st_size, found.st_mtime)

    def sweep(self, older_than_s: float) -> int:
        """Also removes directories in which nothing is and nothing has changed for as long: not one
        that a writer has just made.

        Ages are taken between times that this file system gave. A temp file from the future is as
        old as one from the past: the clock has been set since, and nobody writes for that long.
        """
        with tier_errors(self, "sweep", ""):
            return self._sweep_directory(self._root, self._file_system_now(), older_than_s)

    def _sweep_directory(self, directory: str, now_s: float, older_than_s: float) -> int:
        n_removed = 0
        for entry in _entries(directory):
            is_directory = entry.is_dir(follow_symlinks=False)
            if not is_directory and not entry.name.startswith(TEMP_PREFIX):
                continue
            found = _stat(entry)  # before something is removed below it
            is_old = found is not None and abs(now_s - found.st_mtime) >= older_than_s
            if is_directory:
                n_removed += self._sweep_directory(entry.path, now_s, older_than_s)
                if is_old:
                    _remove_if_empty(entry.path)
            elif is_old:
                n_removed += _unlinked(entry.path)
        return n_removed

    def _file_system_now(self) -> float:
        temp = temp_path(self._root)
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


def file_system_type(path: str) -> str:
    """The type of the file system that holds `path` ("tmpfs", "ext4"); "" where nobody tells."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    # "36 35 98:0 /root /mount rw,noatime master:1 - ext3 /dev/root rw": a dash ends optional fields
    for line in lines:
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return ""


def _read_file(path: str, limit: int | None, buffer: ReadBuffer, placer: Placer | None) -> memoryview | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except MISSING:
        return None
    try:
        size = os.fstat(descriptor).st_size
        if placer is not None:
            placed = _read_placed(descriptor, size, buffer, placer)
            if placed is not None:
                return placed
        view = buffer.take(size if limit is None else min(size, limit))
        return view[: _fill(descriptor, [view], 0)]
    finally:
        os.close(descriptor)


def _read_placed(descriptor: int, size: int, buffer: ReadBuffer, placer: Placer) -> memoryview | None:
    """What is left of a file whose span lies where `placer` wants it; None when it wants none."""
    head = buffer.take(min(size, PEEK_BYTES))
    if _fill(descriptor, [head], 0) < len(head) or (start := placer.place(head, size)) is None:
        return None
    at, seen = start, placer.seen
    for pieces in _slices(placer.memory):
        n_read = _fill(descriptor, pieces, at)
        at += n_read
        if n_read < sum(map(len, pieces)):
            return head[:start]
        for piece in pieces:
            seen(piece)
    rest = bytearray(size - at)
    n_rest = _fill(descriptor, [memoryview(rest)], at)
    whole = buffer.take(start + n_rest)  # the memory that holds the head, or, if that is too small, new memory
    whole[:start], whole[start:] = head[:start], memoryview(rest)[:n_rest]
    return whole


def _slices(memory: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The pieces in groups of about _SLICE_BYTES, large ones cut."""
    group: list[memoryview] = []
    n_left = _SLICE_BYTES
    for whole in memory:
        size = len(whole)
        for piece in (whole,) if size <= _SLICE_BYTES else _cut(whole):
            if group and (size > n_left or len(group) == _MOST_PIECES):
                yield group
                group, n_left = [], _SLICE_BYTES
            group.append(piece)
            n_left -= size
    if group:
        yield group


def _cut(whole: memoryview) -> Iterator[memoryview]:
    return (whole[at : at + _SLICE_BYTES] for at in range(0, len(whole), _SLICE_BYTES))


def _fill(descriptor: int, views: list[memoryview], at: int) -> int:
    """Read from `at` on until all views are full or the file ends; the bytes read."""
    n_wanted = sum(map(len, views))
    n_read = os.preadv(descriptor, views, at) if n_wanted else 0
    while n_read < n_wanted and (n_more := os.preadv(descriptor, _beyond(views, n_read), at + n_read)):
        n_read += n_more
    return n_read


def _beyond(views: list[memoryview], n_bytes: int) -> list[memoryview]:
    """What is left of `views` without their first `n_bytes`."""
    for i, view in enumerate(views):
        if n_bytes < len(view):
            return [view[n_bytes:], *views[i + 1 :]]
        n_bytes -= len(view)
    return []


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
    except MISSING:
        return []


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None


def _unlinked(path: str) -> bool:
    try:
        os.unlink(path)
    except MISSING:
        return False
    return True


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError as failure:
        if failure.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
