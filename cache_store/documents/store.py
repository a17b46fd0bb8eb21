"""Keeps documents in one tier of a store: the last one that outlives the machine's memory, which is
the one that most processes share.

One copy alone, so that a deletion is one, and another process finds what this one has put. Nothing
is promised: what cannot be written is dropped and counted, what cannot be read in time is a miss, a
budget and an age evict. Each process evicts for itself, by a listing of its own: all choose the
same ones (`sweep.victims`).

    put      returns at once; one thread writes, in order, and sweeps when enough was written
    get      on the tier's threads, under a deadline; verified there
    delete   under a deadline, too; the only call that fails, because a promise to delete is one

Thread-safe.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Self, TypeVar

from cache_store.config import StoreConfig
from cache_store.documents.document import (
    BadDocument,
    Document,
    decode_document,
    document_name,
    encode_document,
    prefix_of,
)
from cache_store.documents.sweep import victims
from cache_store.errors import StoreError, TierError
from cache_store.tiers.deadline_pool import Call
from cache_store.tiers.guarded import GuardedTier, open_tiers
from cache_store.write.worker import Worker, deadline_in

log = logging.getLogger("cache_store")

T = TypeVar("T")

_SWEEP_SHARE = 1 / 32  # of the budget: after that many bytes written here, the tier is listed again
_SWEEP_S = 600.0  # after that long others have written, too


@dataclass(slots=True)
class _Put:
    name: str
    content: Callable[[], bytes]
    n_bytes: int
    deleted: bool = False  # meanwhile: under the store's lock


class _Start:
    """The first job, which sweeps what earlier processes have left."""


class DocumentStore:
    """Documents of one kind in `tier`, which it owns. `max_bytes` bounds their files, `ttl_s` their
    age in seconds, `queue_bytes` what may wait to be written. `unix_s` is the wall clock.
    """

    def __init__(
        self,
        tier: GuardedTier,
        kind: str,
        *,
        max_bytes: int,
        ttl_s: float,
        salt: str = "",
        queue_bytes: int = 64 << 20,
        attempts: int = 3,
        retry_s: float = 0.2,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._tier = tier
        self._kind = kind
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._salt = salt
        self._queue_bytes = queue_bytes
        self._attempts = attempts
        self._retry_s = retry_s
        self._unix_s = unix_s
        self._lock = threading.Lock()  # what waits, and the counts
        self._waiting: dict[str, _Put] = {}
        self._waiting_bytes = 0
        self._counts: Counter[str] = Counter()
        self._written_bytes = 0  # since the last listing; the worker's
        self._next_sweep_ns = 0
        self._worker: Worker[_Put | _Start] = Worker("documents", self._work, self._abandon)
        self._worker.submit(_Start())

    @classmethod
    def open(cls, config: StoreConfig, kind: str, *, max_bytes: int, ttl_s: float) -> Self:
        """In the tier of `config` that suits. Raises `TierError` for a tier that can never work."""
        tiers = open_tiers(config)
        home = next((tier for tier in reversed(tiers) if tier.persistent), tiers[-1])
        for tier in tiers:
            if tier is not home:
                tier.close()
        return cls(
            home,
            kind,
            max_bytes=max_bytes,
            ttl_s=ttl_s,
            salt=config.salt,
            attempts=config.write_attempts,
            retry_s=config.retry_s,
        )

    def __repr__(self) -> str:
        return f"<DocumentStore {self._kind} in {self._tier!r}, {len(self._waiting)} waiting>"

    def counts(self) -> dict[str, int]:
        """What happened so far: put, dropped, read, missed, bad, deleted, evicted."""
        with self._lock:
            return dict(self._counts)

    # --- what callers ask for -----------------------------------------------------------------------

    def put(self, scope: str, id: str, content: Callable[[], bytes], n_bytes: int) -> bool:
        """Write it soon; `content` is called on another thread and has about `n_bytes`. False when
        it cannot be taken. Returns at once.
        """
        name = self._name(scope, id)
        if name is None or n_bytes > self._max_bytes:
            return self._dropped()
        put = _Put(name, content, n_bytes)
        with self._lock:
            if self._waiting_bytes + n_bytes > self._queue_bytes:
                self._counts["dropped"] += 1
                return False
            self._waiting[name] = put
            self._waiting_bytes += n_bytes
        if self._worker.submit(put):
            return True
        self._abandon(put)
        return False

    def get(self, scope: str, ids: Iterable[str], deadline_s: float) -> dict[str, bytes]:
        """Those of `ids` that are there and come in time."""
        deadline_ns = deadline_in(deadline_s)
        found: dict[str, bytes] = {}
        with self._calls(scope, ids, self._load, "read") as calls:
            for id, call in calls:
                document = self._tier.wait(call, deadline_ns)
                if document is not None and self._unix_s() - document.created_s <= self._ttl_s:
                    found[id] = document.content
        self._count("read", len(found))
        self._count("missed", len(calls) - len(found))
        return found

    def gone(self, scope: str, ids: Iterable[str], deadline_s: float) -> set[str]:
        """Those of `ids` that are known not to be there (any more), and do not wait to be written."""
        deadline_ns = deadline_in(deadline_s)
        with self._lock:
            waiting = set(self._waiting)
        others = (id for id in ids if self._name(scope, id) not in waiting)
        gone: set[str] = set()
        with self._calls(scope, others, self._tier.stat_now, "looked up") as calls:
            for id, call in calls:
                stat = self._tier.wait(call, deadline_ns)
                if stat is None or self._unix_s() - stat.modified_s > self._ttl_s:
                    gone.add(id)
        return gone

    def delete(self, scope: str, id: str, deadline_s: float) -> bool:
        """False when there was none. What still waits to be written is not, or is deleted behind its
        write. Raises `TierError` when the tier does not say that it is gone.
        """
        name = self._name(scope, id)
        if name is None:
            return False
        with self._lock:
            waiting = self._waiting.get(name)
            if waiting is not None:
                waiting.deleted = True
        was_there = self._tier.delete(name, deadline_in(deadline_s))
        self._count("deleted", was_there or waiting is not None)
        return was_there or waiting is not None

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was put is written or dropped; False on timeout."""
        return self._worker.drain(timeout_s, lambda: True)

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits for at most `timeout_s`, then let go of the tier. Idempotent."""
        self.flush(timeout_s)
        self._worker.stop(timeout_s)
        self._tier.close()

    # --- the worker's -------------------------------------------------------------------------------

    def _work(self, job: _Put | _Start) -> None:
        if isinstance(job, _Put):
            try:
                self._write(job)
            finally:
                self._settle(job)
        if self._written_bytes > self._max_bytes * _SWEEP_SHARE or time.monotonic_ns() >= self._next_sweep_ns:
            self._sweep()

    def _write(self, put: _Put) -> None:
        data = memoryview(encode_document(put.name, Document(put.content(), self._unix_s())))
        for attempt in range(self._attempts):
            if put.deleted or (attempt and not self._worker.pause(self._retry_s * 2 ** (attempt - 1))):
                break
            try:
                if not self._tier.writable:
                    raise TierError(f"{self._tier.label} is left alone after failures")
                self._tier.publish_now(put.name, data)
            except StoreError as error:
                log.warning("documents=%s cannot be written: %s", self._kind, error)
                continue
            self._written_bytes += len(data)
            self._count("put")
            return
        self._dropped()

    def _settle(self, put: _Put) -> None:
        with self._lock:
            if self._waiting.get(put.name) is put:
                del self._waiting[put.name]
            self._waiting_bytes -= put.n_bytes
        if put.deleted:  # the deletion may have come before the file
            with suppress(StoreError):
                self._tier.delete_now(put.name)

    def _sweep(self) -> None:
        self._written_bytes = 0
        self._next_sweep_ns = deadline_in(_SWEEP_S)
        try:
            found = self._tier.list_now(prefix_of(self._kind))
            for stat in victims(found, self._unix_s(), self._max_bytes, self._ttl_s):
                self._count("evicted", self._tier.delete_now(stat.name))
        except StoreError as error:  # the next one goes on
            log.warning("documents=%s cannot be swept: %s", self._kind, error)

    def _abandon(self, job: _Put | _Start) -> None:
        if isinstance(job, _Put):
            self._dropped()
            self._settle(job)

    # --- the tier's threads -------------------------------------------------------------------------

    def _load(self, name: str) -> Document | None:
        loaded = self._tier.load(name)
        if loaded is None:
            return None
        try:
            return decode_document(name, loaded.data)
        except BadDocument as error:
            self._count("bad")
            log.warning("documents=%s name=%s is a miss: %s", self._kind, name, error)
            return None
        finally:
            loaded.free()

    @contextmanager
    def _calls(
        self, scope: str, ids: Iterable[str], do: Callable[[str], T], done: str
    ) -> Iterator[list[tuple[str, Call[T]]]]:
        """A call per id; none while the tier is left alone. What the tier raises meanwhile ends the block
        and is logged: they cannot be `done`.
        """
        named = [(id, name) for id in ids if (name := self._name(scope, id)) is not None]
        calls: list[tuple[str, Call[T]]] = []
        if self._tier.available:
            with suppress(StoreError):  # every thread hangs, or it is closed
                calls.extend((id, self._tier.start(partial(do, name))) for id, name in named)
        try:
            yield calls
        except StoreError as error:
            log.warning("documents=%s cannot be %s: %s", self._kind, done, error)
        finally:
            for _, call in calls:
                call.drop()

    def _name(self, scope: str, id: str) -> str | None:
        return document_name(self._kind, self._salt, scope, id)

    def _dropped(self) -> bool:
        self._count("dropped")
        return False

    def _count(self, what: str, n: int = 1) -> None:
        with self._lock:
            self._counts[what] += n
