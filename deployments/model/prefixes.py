"""The part of `ModelClient` that is about stored prefixes, sessions and the last requests.

Pins and evictions go to all replicas: one on another node may have tiers of its own. A file is
exported and imported object by object, each in a call of its own that any replica may answer, so that
neither side holds more than one, a slow client stops nothing, and a replica that dies costs a retry.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from typing import Any

from cache_store import BadTransfer, CachedPrefix, EntryReader, ImportReport, ImportState, PinInfo
from cache_store.transfer import CHUNK_BYTES, Entry, packed_entry, packed_head
from deployments.http.answers import Answer, values
from deployments.http.ports import ReplicaState
from deployments.model.handles import ModelPlace
from erllama.diagnosis.record import PromptRecord
from erllama.errors import InvalidParameter, StoreUnavailable

_READ_S = 10.0  # until a replica must have said what it knows
_EACH_S = 30.0  # until a replica must have answered: it waits for its store's tiers, five seconds for each
_BATCH_BYTES = 4 << 20  # of objects that travel in one call


class PrefixCalls:
    """Every method may raise an `ErllamaError`. Those that ask each replica say so; none of them waits
    for a replica to start, or longer than half a minute. `salt` says whose prefixes and sessions are
    meant: those of the requests that have it.
    """

    _place: ModelPlace

    async def _each(self, deadline_s: float, method: str, *args: Any) -> list[Answer[Any]]:
        return await self._place.current().each(deadline_s, method, *args)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def prefixes(self, limit: int, order: str, *, salt: str = "") -> list[Answer[tuple[CachedPrefix, ...]]]:
        """What each replica knows of the stored prefixes of this model; those of one node, or with one
        tier for all, know the same."""
        return await self._each(_READ_S, "list_cached_prefixes", limit, order, salt)

    async def cached_prefix(self, key: str, *, salt: str = "") -> CachedPrefix:
        """A stored prefix, as the first replica that has it knows it. Raises `PrefixNotFound`."""
        found: CachedPrefix = values(await self._each(_READ_S, "cached_prefix", key, salt))[0]
        return found

    async def pin_prefix(
        self, prefix: str | Sequence[int], ttl_s: float, name: str = "", owner: str = "", *, salt: str = ""
    ) -> list[Answer[PinInfo]]:
        """Pin a prefix on each replica that has it. Raises when none could."""
        answers = await self._each(_EACH_S, "pin_prefix", prefix, ttl_s, name, owner, salt)
        values(answers)
        return answers

    async def unpin(self, name: str, owner: str = "", *, salt: str = "") -> list[Answer[bool]]:
        """Whether each replica knew a pin of that name, which is taken back now."""
        return await self._each(_EACH_S, "unpin", name, owner, salt)

    async def pins(self, *, salt: str = "") -> list[Answer[tuple[PinInfo, ...]]]:
        """The pins that each replica knows."""
        return await self._each(_READ_S, "pins", salt)

    async def evict_prefix(self, key: str, *, salt: str = "") -> list[Answer[int]]:
        """The bytes that each replica deleted of a prefix. Raises when none could."""
        answers = await self._each(_EACH_S, "evict_prefix", key, salt)
        values(answers)
        return answers

    async def fork_session(self, session_id: str, new_session_id: str, *, salt: str = "") -> bool:
        """A second session on the replica that has the first one; whether its KV was copied, too."""
        answers = await self._each(_EACH_S, "fork_session", session_id, new_session_id, salt)
        copied: bool = values(answers)[0]
        return copied

    async def states(self, deadline_s: float | None = None) -> list[Answer[ReplicaState]]:
        """What each replica says within `deadline_s`, or as soon as to any read, of what it does, holds
        and counts.
        """
        return await self._each(_READ_S if deadline_s is None else deadline_s, "state")

    async def requests(self, limit: int, *, salt: str | None = "") -> list[Answer[list[PromptRecord]]]:
        """The last requests of each replica, newest first; with `salt` None those of all tenants."""
        return await self._each(_READ_S, "requests", limit, salt)

    async def why(self, request_id: str, *, salt: str | None = "") -> PromptRecord:
        """Why the prompt of a request was computed, as the replica that served it tells, unless
        another one had seen more of the prompt before. Raises `RequestNotFound`."""
        answers: list[Answer[PromptRecord]] = await self._each(_READ_S, "why", request_id, salt)
        record = max(values(answers), key=lambda one: one.n_computed)
        if len(answers) == 1 or not record.next_keys:
            return record
        seen: list[Answer[int]] = await self._each(_READ_S, "n_seen", *record.next_prefixes)
        return record.seen_elsewhere(max((answer.value or 0 for answer in seen), default=0))

    async def export_prefix(self, key: str, *, salt: str = "") -> AsyncGenerator[bytes, None]:
        """A stored prefix as one file (`cache_store.transfer`), in pieces of at most 1 MiB. Raises
        `PrefixNotFound` before the first one.
        """
        names = values(await self._each(_READ_S, "export_plan", key, salt))[0]
        yield packed_head(len(names))
        for name in names:
            file: bytes | None = await self._call("export_object", key, name, salt)
            if file is None:  # it lies on another node, perhaps
                others = await self._each(_EACH_S, "export_object", key, name, salt)
                file = next((answer.value for answer in others if answer.value is not None), None)
            if file is None:
                raise StoreUnavailable(f"an object of the prefix {key} is gone", retry_after_s=1)
            yield packed_entry(name, len(file))
            for at in range(0, len(file), CHUNK_BYTES):
                yield file[at : at + CHUNK_BYTES]

    async def import_prefix(self, chunks: AsyncIterator[bytes], *, salt: str = "") -> ImportReport:
        """Take over such a file. Each object is verified before it is published. Raises
        `InvalidParameter` at the first that does not verify; the whole ones before it stay.
        """
        state, waiting, reader = None, list[Entry](), EntryReader()
        take = partial(self._import, uuid.uuid4().hex, salt)
        async for chunk in chunks:
            waiting += _cut(reader, chunk)
            if sum(len(data) for _, data in waiting) >= _BATCH_BYTES:
                state, waiting = await take(state, waiting, last=False), []
        _cut(reader, None)
        return (await take(state, waiting, last=True)).report

    async def _import(
        self, id: str, salt: str, state: ImportState | None, entries: list[Entry], *, last: bool
    ) -> ImportState:
        imported: ImportState = await self._call("import_part", id, state, entries, last, salt)
        return imported


def _cut(reader: EntryReader, chunk: bytes | None) -> list[Entry]:
    """The objects that are complete with `chunk`; None is the end."""
    try:
        if chunk is not None:
            return list(reader.feed(chunk))
        reader.finish()
    except BadTransfer as error:
        raise InvalidParameter(f"the file cannot be imported: {error}", param="file") from None
    return []
