"""Locks across processes, and the leases by which a pull keeps its blobs from the garbage.

`hub.lock` is held for moments only: by whoever changes manifests or leases, and by the collection
of garbage from its first look to its last deletion. A blob's lock is held as long as it is fetched.
A lease is a file with the keys that a pull needs, and a lock that ends with the process: one whose
lock can be had belongs to nobody any more.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from erllama.hub.errors import PullFailed
from erllama.hub.files import drop_temporaries, replace_file


class Locks:
    def __init__(self, root: Path, timeout_s: float) -> None:
        self._folder = root / "locks"
        self._leases = root / "leases"
        self._timeout_s = timeout_s

    @contextmanager
    def hub(self) -> Iterator[None]:
        """Nobody else changes what the hub has, in any process. Raises `PullFailed` after the
        configured time, and when the hub's directory cannot be written.
        """
        try:
            lock = self._lock(self._folder / "hub.lock")
            lock.acquire(timeout=self._timeout_s)
        except Timeout:
            raise PullFailed(f"the hub is locked by another process for more than {self._timeout_s:g} s") from None
        except OSError as error:
            raise PullFailed(f"the hub's directory cannot be written: {error}") from error
        try:
            yield
        finally:
            lock.release()

    def blob(self, key: str) -> FileLock:
        """The lock of one blob, not acquired yet."""
        return self._lock(self.blob_path(key))

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Keeps what is added to it from the garbage, until it ends or the process does."""
        path = self._leases / f"{uuid.uuid4().hex}.json"
        with self._lock(path.with_suffix(".lock")):
            try:
                yield Lease(self, path)
            finally:
                _drop(path)

    def leased(self) -> set[str]:
        """The keys of all leases of living processes; call it under `hub`. Removes dead ones."""
        keys: set[str] = set()
        drop_temporaries(self._leases)
        for path in sorted(self._leases.glob("*.json")):
            with self.tried(path.with_suffix(".lock")) as free:
                if free:
                    _drop(path)
                    continue
            try:
                keys |= set(json.loads(path.read_bytes()))
            except FileNotFoundError:
                continue  # it ended meanwhile: its manifest is written, or it needs nothing
        return keys

    @contextmanager
    def tried(self, path: Path) -> Iterator[bool]:
        """Whether nobody else holds the lock at `path`; if so, it is held in the meantime."""
        lock = self._lock(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def blob_path(self, key: str) -> Path:
        return self._folder / f"{key}.lock"

    def _lock(self, path: Path) -> FileLock:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path, thread_local=False)


def _drop(lease: Path) -> None:
    """Delete a lease, then its lock, which is held: nobody will ever ask for its name again."""
    lease.unlink(missing_ok=True)
    lease.with_suffix(".lock").unlink(missing_ok=True)


class Lease:
    def __init__(self, locks: Locks, path: Path) -> None:
        self._locks = locks
        self._path = path
        self._keys: set[str] = set()

    def add(self, *keys: str) -> None:
        wanted = self._keys | set(keys)
        if wanted == self._keys:
            return
        with self._locks.hub():
            replace_file(self._path, json.dumps(sorted(wanted)).encode())
        self._keys = wanted
