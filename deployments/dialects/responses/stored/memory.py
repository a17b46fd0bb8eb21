"""Responses that this process remembers: those that it made or read last."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from deployments.dialects.responses.stored.response import StoredResponse

MAX_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Remembered:
    """`checked_s`: when it was last known to be kept, by a monotonic clock, in seconds."""

    response: StoredResponse
    n_bytes: int
    checked_s: float


class MemoryStore:
    """Keeps `max_bytes`; those that were not used for longest go first. A `scope` sees its own
    alone. Used from the event loop; every method takes no time.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._known: OrderedDict[tuple[str, str], Remembered] = OrderedDict()

    def put(self, scope: str, response: StoredResponse, now_s: float = 0.0) -> None:
        n_bytes = response.n_bytes
        self.drop(scope, response.id)
        if n_bytes > self._max_bytes:
            return
        self._known[scope, response.id] = Remembered(response, n_bytes, now_s)
        self._n_bytes += n_bytes
        while self._n_bytes > self._max_bytes:
            self.drop(*next(iter(self._known)))

    def get(self, scope: str, id: str) -> Remembered | None:
        found = self._known.get((scope, id))
        if found is not None:
            self._known.move_to_end((scope, id))
        return found

    def drop(self, scope: str, id: str) -> bool:
        """False when it was not remembered."""
        found = self._known.pop((scope, id), None)
        if found is not None:
            self._n_bytes -= found.n_bytes
        return found is not None
