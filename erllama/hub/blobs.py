"""Files by their content: `blobs/sha256-<hex>`, fetched once however many ask, and collected when
no model needs them.

A blob is either whole, checked and on the disk, or not there. `<key>-partial` beside it is what has
come so far. Where a source tells no digest, `url-<key>.digest` remembers what its content had, for
as long as its etag stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from erllama.hub.config import HubConfig
from erllama.hub.download import TICK_S, Download
from erllama.hub.errors import NoSpace, PullCancelled, PullFailed
from erllama.hub.events import VERIFYING, Pace, PullEvent
from erllama.hub.files import drop_temporaries, replace_file
from erllama.hub.locks import Lease, Locks
from erllama.hub.partial import SUFFIX, Partial, completed_of, delete_partial, partials
from erllama.hub.sources.origin import Origin
from erllama.hub.sources.remote import RemoteFile

_HASH_BYTES = 8 << 20
_EVENT_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Freed:
    """What went: digests ("sha256:<hex>") and bytes, those of partial files included."""

    digests: tuple[str, ...] = ()
    n_bytes: int = 0


class Blobs:
    """The blobs of a hub. Any thread and any process."""

    def __init__(self, config: HubConfig, locks: Locks) -> None:
        self._config = config
        self._locks = locks
        self._folder = config.root / "blobs"

    def path(self, digest: str) -> Path:
        """Where the blob of "sha256:<hex>" lies, or would."""
        return self._folder / digest.replace(":", "-")

    def has(self, digest: str, size: int) -> bool:
        try:
            return self.path(digest).stat().st_size == size
        except OSError:
            return False

    def find(self, file: RemoteFile) -> str | None:
        """The digest of a file whose blob is here already."""
        digest = file.digest or self._known(file)
        return digest if digest is not None and self.has(digest, file.size) else None

    def check_space(self, files: Collection[RemoteFile]) -> None:
        """Raises `NoSpace` with the numbers unless what is missing of `files` fits the disk."""
        self._folder.mkdir(parents=True, exist_ok=True)
        missing = {file.key: file.size - self._on_disk(file) for file in files if self.find(file) is None}
        needed, free = sum(missing.values()), shutil.disk_usage(self._folder).free
        if needed and needed + self._config.keep_free_bytes > free:
            raise NoSpace(
                f"the pull needs {needed} bytes, and the disk of the hub has {free} free, of which "
                f"{self._config.keep_free_bytes} are kept free",
                param="model",
            )

    def fetch(self, origin: Origin, lease: Lease, cancel: threading.Event) -> Generator[PullEvent, None, str]:
        """Fetch a file, or wait until another one has: yields the progress, returns the digest.

        Raises `PullCancelled`, `PullFailed` and its like, `NoSpace`.
        """
        file = origin.file
        pace = Pace(file.sha256[:12] if file.sha256 else file.name, file.digest, file.size)
        lock = self._locks.blob(file.key)
        yield from self._wait(lock, file, pace, cancel)
        try:
            found = self.find(file)
            if found is None:
                found = yield from self._fetch(origin, lease, cancel, pace)
            else:
                lease.add(file.key, found.replace(":", "-"))
                yield pace.event(file.size)
        except OSError as error:
            if error.errno in (28, 122):  # ENOSPC, EDQUOT
                raise NoSpace(f"the disk of the hub is full: {error}", param="model") from error
            raise PullFailed(f"the hub's directory cannot be written: {error}") from error
        finally:
            lock.release()
        return found

    def collect(self, referenced: set[str] | None) -> Freed:
        """Delete blobs that neither `referenced` (digests) nor a pull names, and old partials.

        None as `referenced` says that it is not known: only partials go. The caller holds the hub's
        lock. What another process has a lock on stays.
        """
        kept = self._locks.leased()
        freed: list[str] = []
        n_bytes = 0
        if referenced is not None:
            kept_blobs = kept | {digest.replace(":", "-") for digest in referenced}
            for path in self._blobs():
                if path.name not in kept_blobs:
                    n_bytes += self._delete(path, freed)
            self._forget()
        for path in list(partials(self._folder)):
            if path.name.removesuffix(SUFFIX) not in kept:
                n_bytes += self._delete_partial(path)
        drop_temporaries(self._folder, older_than_s=self._config.partial_max_age_s)
        return Freed(tuple(freed), n_bytes)

    def _wait(self, lock: FileLock, file: RemoteFile, pace: Pace, cancel: threading.Event) -> Iterator[PullEvent]:
        while True:
            try:
                lock.acquire(timeout=TICK_S, poll_interval=TICK_S / 4)
                return
            except Timeout:
                completed, size = completed_of(self._partial_path(file))
                yield pace.event(completed if size == file.size else 0)
            if cancel.is_set():
                raise PullCancelled("the pull was cancelled while it waited for another one of the same file")

    def _fetch(
        self, origin: Origin, lease: Lease, cancel: threading.Event, pace: Pace
    ) -> Generator[PullEvent, None, str]:
        file = origin.file
        partial = Partial(self._partial_path(file), file.size)
        try:
            partial.open()
            self._check_resumable(partial, file)
            yield pace.event(partial.completed)
            for _ in Download(origin, partial, self._config, cancel).run():
                yield pace.event(partial.completed)
            yield pace.event(file.size)
            digest = yield from self._verify(partial, file, cancel)
            lease.add(file.key, digest.replace(":", "-"))
            partial.finish(self.path(digest))
            self._remember(file, digest, origin.validator)
        finally:
            partial.close()
        return digest

    def _check_resumable(self, partial: Partial, file: RemoteFile) -> None:
        """Start anew where nothing will tell whether old bytes and new ones belong together."""
        other = file.etag is not None and partial.validator is not None and file.etag != partial.validator
        if other or (file.sha256 is None and partial.validator is None):
            partial.reset()

    def _verify(self, partial: Partial, file: RemoteFile, cancel: threading.Event) -> Generator[PullEvent, None, str]:
        """The digest of the whole file; a file with another one than promised is deleted."""
        digest = hashlib.sha256()
        expected = file.digest
        yield PullEvent(VERIFYING, expected, file.size)
        done = 0
        with partial.path.open("rb", buffering=0) as data:
            while block := data.read(_HASH_BYTES):
                digest.update(block)
                done += len(block)
                if done % _EVENT_BYTES < _HASH_BYTES:
                    yield PullEvent(VERIFYING, expected, file.size, done)
                if cancel.is_set():
                    raise PullCancelled("the pull was cancelled; the next one goes on from here")
        found = f"sha256:{digest.hexdigest()}"
        if done != file.size or (expected and found != expected):
            partial.delete()
            raise PullFailed(f"{file.name}: has the digest {found}, expected {expected}: what came was deleted")
        return found

    def _remember(self, file: RemoteFile, digest: str, validator: str | None) -> None:
        if file.sha256 is None and validator is not None:
            record = {"digest": digest, "size": file.size, "validator": validator}
            replace_file(self._known_path(file.key), json.dumps(record).encode())

    def _known(self, file: RemoteFile) -> str | None:
        try:
            record = json.loads(self._known_path(file.key).read_bytes())
            if file.etag is not None and (record["validator"], record["size"]) == (file.etag, file.size):
                return str(record["digest"])
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return None

    def _forget(self) -> None:
        """Drop the notes on blobs that are gone."""
        for path in self._folder.glob("url-*.digest"):
            try:
                blob = self.path(str(json.loads(path.read_bytes())["digest"]))
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                blob = path.with_name("no blob")
            if not blob.exists():
                path.unlink(missing_ok=True)

    def _blobs(self) -> list[Path]:
        found = self._folder.glob("sha256-*")
        return sorted(path for path in found if len(path.name) == len("sha256-") + 64)

    def _delete(self, path: Path, freed: list[str]) -> int:
        with self._locks.tried(self._locks.blob_path(path.name)) as free:
            if not free:
                return 0
            n_bytes = path.stat().st_size
            path.unlink()
        freed.append(path.name.replace("-", ":", 1))
        return n_bytes

    def _delete_partial(self, path: Path) -> int:
        with self._locks.tried(self._locks.blob_path(path.name.removesuffix(SUFFIX))) as free:
            try:
                status = path.stat()
                if not free or time.time() - status.st_mtime < self._config.partial_max_age_s:
                    return 0
            except FileNotFoundError:
                status = None  # the JSON is alone: the process ended between two deletions
            delete_partial(path)
        return status.st_blocks * 512 if status is not None else 0

    def _on_disk(self, file: RemoteFile) -> int:
        try:
            return min(file.size, os.stat(self._partial_path(file)).st_blocks * 512)
        except OSError:
            return 0

    def _partial_path(self, file: RemoteFile) -> Path:
        return self._folder / f"{file.key}{SUFFIX}"

    def _known_path(self, key: str) -> Path:
        return self._folder / f"{key}.digest"
