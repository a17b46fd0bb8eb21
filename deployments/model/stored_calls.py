"""The calls of a replica that concern what it keeps: stored prefixes, sessions and its last requests, for
people and other nodes, and memory, for the scheduler. None of them computes, none blocks the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cache_store import CachedPrefix, ChainKey, GarbageReport, ImportState, IndexDelta, PinInfo
from deployments.memory.messages import GarbageOrder, ReleaseOrder, ReleaseResult, ReplicaReport
from deployments.memory.replica import ReplicaMemory
from erllama.diagnosis.record import PromptRecord
from erllama.model import Model
from erllama.prompts.next_turn import NextTurn


class StoredCalls:
    """A part of `ModelReplica`. What `PrefixMethods` and `ReplicaMemory` offer, under their names."""

    _model: Model
    _memory: ReplicaMemory
    _draining: bool

    # --- stored prefixes: see `PrefixMethods` -----------------------------------------------------

    async def list_cached_prefixes(
        self, limit: int = 1000, order: str = "recent", salt: str = ""
    ) -> tuple[CachedPrefix, ...]:
        return await asyncio.to_thread(self._model.list_cached_prefixes, limit, order, salt=salt)

    async def cached_prefix(self, key: str, salt: str = "") -> CachedPrefix:
        return await asyncio.to_thread(self._model.cached_prefix, key, salt=salt)

    async def pin_prefix(
        self, prefix: str | Sequence[int], ttl_s: float, name: str = "", owner: str = "", salt: str = ""
    ) -> PinInfo:
        return await asyncio.to_thread(self._model.pin_prefix, prefix, ttl_s, name=name, owner=owner, salt=salt)

    async def unpin(self, name: str, owner: str = "", salt: str = "") -> bool:
        return await asyncio.to_thread(self._model.unpin, name, owner, salt=salt)

    async def pins(self, salt: str = "") -> tuple[PinInfo, ...]:
        return await asyncio.to_thread(self._model.pins, salt=salt)

    async def evict_prefix(self, key: str, salt: str = "") -> int:
        return await asyncio.to_thread(self._model.evict_prefix, key, salt=salt)

    async def export_plan(self, key: str, salt: str = "") -> tuple[str, ...]:
        return await asyncio.to_thread(self._model.export_plan, key, salt=salt)

    async def export_object(self, key: str, name: str, salt: str = "") -> bytes | None:
        """An object of the prefix `key`: the router keeps the parts of one export together by it."""
        return await asyncio.to_thread(self._model.export_object, name, salt=salt)

    async def import_part(
        self, id: str, state: ImportState | None, entries: Sequence[tuple[str, bytes]], last: bool, salt: str = ""
    ) -> ImportState:
        """A part of the import `id`, by which the router keeps its parts together."""
        return await asyncio.to_thread(self._model.import_part, state, entries, last=last, salt=salt)

    async def fork_session(self, session_id: str, new_session_id: str, salt: str = "") -> bool:
        return await asyncio.to_thread(self._model.fork_session, session_id, new_session_id, salt=salt)

    # --- the last requests: see `RequestMethods` --------------------------------------------------

    async def requests(self, limit: int, salt: str | None = "") -> list[PromptRecord]:
        return await asyncio.to_thread(self._model.requests, limit, salt=salt)

    async def why(self, request_id: str, salt: str | None = "") -> PromptRecord:
        return await asyncio.to_thread(self._model.why, request_id, salt=salt)

    async def n_seen(self, keys: Sequence[ChainKey], first_at: int, before_s: float) -> int:
        return await asyncio.to_thread(self._model.n_seen, keys, first_at, before_s)

    async def expect(self, turn: NextTurn) -> None:
        """See `ModelPort.expect`."""
        if not self._draining:
            self._model.expect(turn)

    # --- for the memory scheduler; see `ReplicaMemory` --------------------------------------------

    async def memory_report(self, with_delta: bool) -> ReplicaReport:
        return await asyncio.to_thread(self._memory.report, with_delta=with_delta)

    async def release(self, order: ReleaseOrder) -> ReleaseResult | None:
        return await asyncio.to_thread(self._memory.release, order)

    async def apply_deltas(self, deltas: Sequence[IndexDelta]) -> None:
        await asyncio.to_thread(self._memory.apply_deltas, deltas)

    async def collect_garbage(self, order: GarbageOrder) -> GarbageReport | None:
        return await asyncio.to_thread(self._memory.collect_garbage, order)
