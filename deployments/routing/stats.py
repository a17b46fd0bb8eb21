"""What a replica tells the routers, twice a second by default: hashes of what its context holds, its sessions, its load.

The engine thread only hands over references to arrays of token ids that never change; hashing happens here, on the loop that Serve polls,
and only for tokens that were not there the last time. The size is bounded: with more chunks than `max_published` every second, fourth, ...
of each chain is left out, which makes matches shorter and never wrong. An idle replica publishes equal bytes, so Serve sends nothing on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from deployments.config import RoutingSpec
from deployments.routing.prompt import extend_chain, pack_hashes, session_hash, unpack_hashes
from erllama.cache.live import Ids, LivePrefixes, common_prefix
from erllama.errors import ErllamaError
from erllama.stats import EngineStats

_NOTHING: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Published:
    """A replica's own account. `prefixes` are chunk hashes, `tails` those at the ends of sequences: a prompt that has one goes on in place.

    `n_empty` sequence ids hold nothing. `whole`: its KV cannot be cut, so that only ends count. `all_sessions`: there are no others.
    """

    prefixes: frozenset[int] = _NOTHING
    tails: frozenset[int] = _NOTHING
    sessions: frozenset[int] = _NOTHING
    all_sessions: bool = True
    load: int = 0
    n_parallel: int = 1
    n_empty: int = 1
    whole: bool = False

    @classmethod
    def parse(cls, stats: Mapping[str, Any]) -> Self:
        """From what `RoutingStats.gather` made. A replica that has published nothing yet is empty. Raises `ValueError` for other bytes."""
        values = {name: stats[name] for name in cls.__dataclass_fields__ if name in stats}
        for name in ("prefixes", "tails", "sessions"):
            values[name] = unpack_hashes(values.get(name, b""))
        return cls(**values)


@dataclass(slots=True)
class _Chain:
    tokens: Ids
    hashes: list[int] = field(default_factory=list)

    def update(self, tokens: Ids, chunk_tokens: int) -> list[int]:
        """The chain of `tokens`, which mostly are the ones of before and some more."""
        if tokens is not self.tokens:
            same = common_prefix(self.tokens, tokens) // chunk_tokens
            self.tokens, self.hashes = tokens, extend_chain(self.hashes[:same], tokens, chunk_tokens)
        return self.hashes


class RoutingStats:
    """Gathers what one replica publishes. `snapshot` asks the engine thread for its prefixes."""

    def __init__(self, snapshot: Callable[[], Future[LivePrefixes]], routing: RoutingSpec) -> None:
        self._snapshot = snapshot
        self._chunk_tokens = routing.chunk_tokens
        self._max = routing.max_published
        self._wait_s = routing.stats_period_s
        self._pending: asyncio.Future[LivePrefixes] | None = None
        self._chains: dict[int, _Chain] = {}
        self._held: dict[str, Any] = {}

    async def gather(self, stats: EngineStats) -> dict[str, Any]:
        """What to publish now. While a long step holds the engine, its prefixes are those of the last time."""
        try:
            await self._refresh()
        except ErllamaError:  # the engine has stopped: nothing is in its context, and the health check says the rest
            self._held = {}
        return {**self._held, "load": stats.n_running + stats.n_queued, "n_parallel": stats.n_parallel}

    async def _refresh(self) -> None:
        if self._pending is None:
            self._pending = asyncio.wrap_future(self._snapshot())
        await asyncio.wait([self._pending], timeout=self._wait_s)
        if self._pending.done():
            pending, self._pending = self._pending, None
            self._held = self._published(pending.result())

    def _published(self, live: LivePrefixes) -> dict[str, Any]:
        held = [*live.running, *live.idle]
        chains = [self._chain(seq_id, tokens) for seq_id, tokens in held]
        self._chains = {seq_id: self._chains[seq_id] for seq_id, _ in held}
        tails = [chain[-1] for chain in chains if chain]
        sessions = live.sessions[: self._max]
        return {
            "prefixes": pack_hashes(tails if live.whole else thinned(chains, self._max)),
            "tails": pack_hashes(tails),
            "sessions": pack_hashes(session_hash(session_id) for session_id in sessions),
            "all_sessions": len(sessions) == len(live.sessions),
            "n_empty": live.n_empty,
            "whole": live.whole,
        }

    def _chain(self, seq_id: int, tokens: Ids) -> list[int]:
        chain = self._chains.setdefault(seq_id, _Chain(np.empty(0, np.uint32)))
        return chain.update(tokens, self._chunk_tokens)


def thinned(chains: Sequence[Sequence[int]], limit: int) -> list[int]:
    """At most `limit` different hashes of `chains`: all of them, or every 2nd, 4th, ... of each and its last one."""
    step = 1
    while True:
        kept = dict.fromkeys(h for chain in chains for h in (*chain[step - 1 :: step], *chain[-1:]))
        if len(kept) <= limit or step > max(map(len, chains)):
            return list(kept)[:limit]
        step *= 2
