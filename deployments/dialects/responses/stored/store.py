"""Responses that can be referred to by id: the end of a conversation, or an item of its output.

The last ones are remembered by the process that made them. Behind that stand the documents of the
KV store, where there is one: so a response outlives the process, and another ingress finds it.
Nothing of that fails or delays a request: what cannot be written is forgotten with the process, and
what cannot be read in time is not found, so that the client sends the whole conversation.

A response that another process deletes is forgotten here within `FRESH_S`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cache_store.errors import StoreError
from deployments.dialects.responses.stored.memory import MemoryStore
from deployments.dialects.responses.stored.response import (
    BadResponse,
    PreviousResponseNotFound,
    ResponseNotDeleted,
    ResponseNotFound,
    StoredResponse,
    holder_id,
)

logger = logging.getLogger("deployments.http")

FRESH_S = 60.0
READ_S = 3.0  # for all that one request refers to
_AGAIN_S = 0.2  # another ingress may still be writing what its client has read


class Documents(Protocol):
    """What keeps bytes by id; see `cache_store.documents.store`. `put` returns at once, the others
    are called from threads.
    """

    def put(self, scope: str, id: str, content: Callable[[], bytes], n_bytes: int) -> bool: ...

    def get(self, scope: str, ids: Iterable[str], deadline_s: float) -> dict[str, bytes]: ...

    def gone(self, scope: str, ids: Iterable[str], deadline_s: float) -> set[str]: ...

    def delete(self, scope: str, id: str, deadline_s: float) -> bool: ...


class ResponseStore:
    """Used from the event loop. A `scope` is one tenant's: another one's responses are not found.
    `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        documents: Documents | None = None,
        memory: MemoryStore | None = None,
        *,
        fresh_s: float = FRESH_S,
        read_s: float = READ_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._documents = documents
        self._memory = memory or MemoryStore()
        self._fresh_s = fresh_s
        self._read_s = read_s
        self._clock = clock

    def put(self, response: StoredResponse, scope: str = "") -> None:
        """Keep it, for as long as there is room. Takes no time."""
        self._memory.put(scope, response, self._clock())
        if self._documents is not None:
            self._documents.put(scope, response.id, response.packed, response.n_bytes)

    async def get(self, id: str, scope: str = "") -> StoredResponse:
        """Raises `ResponseNotFound`."""
        found = await self._find([id], scope)
        if id not in found:
            raise ResponseNotFound(f"Response with id '{id[:80]}' is not kept here (any more).")
        return found[id]

    async def delete(self, id: str, scope: str = "") -> None:
        """Raises `ResponseNotFound`, and `ResponseNotDeleted` when it may still be kept."""
        known = self._memory.drop(scope, id)
        if self._documents is not None:
            try:
                known |= await asyncio.to_thread(self._documents.delete, scope, id, self._read_s)
            except StoreError as error:
                logger.warning("event=response_not_deleted id=%.80s error=%s", id, error)
                raise ResponseNotDeleted(
                    "The response could not be deleted now; ask for it again.", retry_after_s=1
                ) from None
        if not known:
            raise ResponseNotFound(f"Response with id '{id[:80]}' is not kept here (any more).")

    async def chain(self, id: str, scope: str = "") -> list[StoredResponse]:
        """The conversation up to this response, the first one first. Raises
        `PreviousResponseNotFound`.
        """
        found = await self._find([id], scope, patient=True)
        ids = [*found[id].earlier, id] if id in found else [id]
        found |= await self._find([earlier for earlier in ids if earlier not in found], scope)
        missing = next((wanted for wanted in ids if wanted not in found), None)
        if missing is not None:
            raise PreviousResponseNotFound(
                f"Previous response with id '{missing[:80]}' is not kept here (any more), so send the whole "
                "conversation as input.",
                param="previous_response_id",
            )
        return [found[wanted] for wanted in ids]

    async def holders(self, item_ids: Sequence[str], scope: str = "") -> list[StoredResponse]:
        """The responses whose output has one of these items."""
        ids = {id for item in item_ids if (id := holder_id(item)) is not None}
        found = await self._find(sorted(ids), scope) if ids else {}
        wanted = set(item_ids)
        return [response for response in found.values() if wanted.intersection(response.item_ids)]

    async def _find(self, ids: Sequence[str], scope: str, *, patient: bool = False) -> dict[str, StoredResponse]:
        """Those of `ids` that are kept. `patient`: look twice, a moment apart."""
        remembered = {id: entry for id in ids if (entry := self._memory.get(scope, id)) is not None}
        await self._check([id for id, entry in remembered.items() if self._is_stale(entry.checked_s)], scope)
        found = {id: entry.response for id in remembered if (entry := self._memory.get(scope, id)) is not None}
        unknown = [id for id in ids if id not in remembered]
        read = await self._read(unknown, scope)
        if patient and unknown and not read and self._documents is not None:
            await asyncio.sleep(_AGAIN_S)
            read = await self._read(unknown, scope)
        return found | read

    def _is_stale(self, checked_s: float) -> bool:
        return self._documents is not None and self._clock() - checked_s >= self._fresh_s

    async def _check(self, ids: Sequence[str], scope: str) -> None:
        """Forget those of `ids` that another process has deleted meanwhile."""
        if self._documents is None or not ids:
            return
        gone = await asyncio.to_thread(self._documents.gone, scope, ids, self._read_s)
        for id in ids:
            entry = self._memory.get(scope, id)
            if id in gone:
                self._memory.drop(scope, id)
            elif entry is not None:
                entry.checked_s = self._clock()

    async def _read(self, ids: Sequence[str], scope: str) -> dict[str, StoredResponse]:
        if self._documents is None or not ids:
            return {}
        found = await asyncio.to_thread(_unpacked, self._documents, scope, ids, self._read_s)
        for response in found.values():
            self._memory.put(scope, response, self._clock())
        return found


def _unpacked(documents: Documents, scope: str, ids: Sequence[str], read_s: float) -> dict[str, StoredResponse]:
    found: dict[str, StoredResponse] = {}
    for id, data in documents.get(scope, ids, read_s).items():
        try:
            response = StoredResponse.unpacked(data)
        except BadResponse as error:
            logger.warning("event=bad_response id=%.80s error=%s", id, error)
            continue
        if response.id == id:
            found[id] = response
    return found


@dataclass(frozen=True, slots=True)
class Past:
    """What a request refers to: the conversation before it, and responses that hold an item each."""

    chain: tuple[StoredResponse, ...] = ()
    holders: tuple[StoredResponse, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Of the conversation, the first one first."""
        return tuple(response.id for response in self.chain)

    @classmethod
    async def of(cls, store: ResponseStore, previous: str | None, item_ids: Sequence[str], scope: str = "") -> Past:
        """Raises `PreviousResponseNotFound`; an item that nobody holds is missed where it is used."""
        holders = await store.holders(item_ids, scope) if item_ids else []
        return cls(tuple(await store.chain(previous, scope)) if previous else (), tuple(holders))
