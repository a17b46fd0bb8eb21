"""Responses that can be referred to by id: the end of a conversation, or an item of its output.

`MemoryStore` keeps the last ones in the process that made them: behind several ingresses a client
may meet one that knows nothing of its response, and it is told so. Whoever needs more sends the
whole conversation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

from erllama.errors import RequestError

MAX_BYTES = 64 * 1024 * 1024


def new_id(prefix: str) -> str:
    """Clients drop ids of other forms."""
    return f"{prefix}_{uuid4().hex}"


class ResponseNotFound(RequestError):
    """No response of this id is kept here: never, not any more, or by another process."""

    http_status = 404
    code = "response_not_found"


class PreviousResponseNotFound(RequestError):
    """The conversation that a request goes on is not kept here, or not all of it."""

    code = "previous_response_not_found"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """`input` is the JSON of the items that this request brought itself, `body` that of the whole
    response; `item_ids` are those of its output. `salt` is its tenant's.
    """

    id: str
    previous: str | None
    input: str
    body: str
    item_ids: tuple[str, ...] = ()
    salt: str = ""

    @property
    def n_bytes(self) -> int:
        return len(self.input.encode()) + len(self.body.encode())


class ResponseStore(Protocol):
    """Used from the event loop; every method takes no time."""

    def put(self, response: StoredResponse) -> None:
        """Keep it, for as long as there is room."""

    def get(self, id: str) -> StoredResponse:
        """Raises `ResponseNotFound`."""

    def delete(self, id: str) -> None:
        """Raises `ResponseNotFound`."""

    def chain(self, id: str) -> list[StoredResponse]:
        """The conversation up to this response, the first one first. Raises
        `PreviousResponseNotFound`.
        """

    def holder(self, item_id: str) -> StoredResponse | None:
        """The response whose output has this item."""


class MemoryStore:
    """Keeps `max_bytes`; those that were not used for longest go first."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._responses: OrderedDict[str, tuple[StoredResponse, int]] = OrderedDict()
        self._holders: dict[str, str] = {}

    def put(self, response: StoredResponse) -> None:
        n_bytes = response.n_bytes
        if n_bytes > self._max_bytes:
            return
        self._responses[response.id] = (response, n_bytes)
        self._n_bytes += n_bytes
        self._holders |= dict.fromkeys(response.item_ids, response.id)
        while self._n_bytes > self._max_bytes:
            self._drop(next(iter(self._responses)))

    def get(self, id: str) -> StoredResponse:
        found = self._responses.get(id)
        if found is None:
            raise _not_found(id)
        self._responses.move_to_end(id)
        return found[0]

    def delete(self, id: str) -> None:
        self.get(id)
        self._drop(id)

    def chain(self, id: str) -> list[StoredResponse]:
        found: list[StoredResponse] = []
        wanted: str | None = id
        while wanted is not None:
            try:
                found.append(self.get(wanted))
            except ResponseNotFound:
                raise _no_previous(wanted) from None
            wanted = found[-1].previous
        return found[::-1]

    def holder(self, item_id: str) -> StoredResponse | None:
        id = self._holders.get(item_id)
        return None if id is None else self.get(id)

    def _drop(self, id: str) -> None:
        response, n_bytes = self._responses.pop(id)
        self._n_bytes -= n_bytes
        for item_id in response.item_ids:
            del self._holders[item_id]


class TenantResponses:
    """What one tenant sees of a store: the responses of its salt."""

    def __init__(self, store: ResponseStore, salt: str) -> None:
        self._store = store
        self._salt = salt

    def put(self, response: StoredResponse) -> None:
        self._store.put(replace(response, salt=self._salt))

    def get(self, id: str) -> StoredResponse:
        found = self._store.get(id)
        if found.salt != self._salt:
            raise _not_found(id)
        return found

    def delete(self, id: str) -> None:
        self.get(id)
        self._store.delete(id)

    def chain(self, id: str) -> list[StoredResponse]:
        chain = self._store.chain(id)
        if any(response.salt != self._salt for response in chain):
            raise _no_previous(id)
        return chain

    def holder(self, item_id: str) -> StoredResponse | None:
        found = self._store.holder(item_id)
        return found if found is not None and found.salt == self._salt else None


def _not_found(id: str) -> ResponseNotFound:
    return ResponseNotFound(f"Response with id '{id[:80]}' is not kept here (any more).")


def _no_previous(id: str) -> PreviousResponseNotFound:
    return PreviousResponseNotFound(
        f"Previous response with id '{id[:80]}' is not kept here (any more): this server keeps the last "
        f"{MAX_BYTES // 2**20} MiB of each ingress, so send the whole conversation as input.",
        param="previous_response_id",
    )


@dataclass(frozen=True, slots=True)
class Past:
    """What a request refers to: the conversation before it, and responses that hold an item each."""

    chain: tuple[StoredResponse, ...] = ()
    holders: tuple[StoredResponse, ...] = ()

    @classmethod
    def of(cls, store: ResponseStore, previous: str | None, item_ids: Iterable[str]) -> Past:
        """Raises `PreviousResponseNotFound`; an item that nobody holds is missed where it is used."""
        holders = [holder for id in item_ids if (holder := store.holder(id)) is not None]
        return cls(tuple(store.chain(previous) if previous else ()), tuple(holders))
