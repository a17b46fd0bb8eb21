"""What a replica tells the routers, twice a second by default: hashes of what its context holds,
its sessions, its load.

The engine thread only hands over references to arrays of token ids that never change; hashing
happens here, on the loop that Serve polls, and only for tokens that were not there the last time.
The size is bounded: with more chunks than `max_published` every second, fourth, ... of each chain
is left out, which makes matches shorter and never wrong. An idle replica publishes equal bytes, so
Serve sends nothing on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from cache_store import TokenChain, n_common
from deployments.config import RoutingSpec
from deployments.routing.prompt import chunk_chain, chunk_hashes, pack_hashes, session_hash, unpack_hashes
from erllama.cache.live import Ids, LivePrefixes
from erllama.errors import ErllamaError
from erllama.stats import EngineStats


@dataclass(frozen=True, slots=True)
class Published:
    """A replica's own account. `prefixes` are chunk hashes, `tails` those at the ends of sequences:
    a prompt that has one goes on in place.

    `n_empty` sequence ids hold nothing. `whole`: its KV cannot be cut, so that only ends count.
    `all_sessions`: there are no others.
    """

    prefixes: frozenset[int] = frozenset()
    tails: frozenset[int] = frozenset()
    sessions: frozenset[int] = frozenset()
    all_sessions: bool = True
    load: int = 0
    n_parallel: int = 1
    n_empty: int = 1
    whole: bool = False

    @classmethod
    def parse(cls, stats: Mapping[str, Any]) -> Self:
        """From what `RoutingStats.gather` made. A replica that has published nothing yet is empty.
        Raises `ValueError` for other bytes."""
        values = {name: stats[name] for name in cls.__dataclass_fields__ if name in stats}
        for name in ("prefixes", "tails", "sessions"):
            values[name] = unpack_hashes(values.get(name, b""))
        return cls(**values)


class RoutingStats:
    """Gathers what one replica publishes. `snapshot` asks the engine thread for its prefixes."""

    def __init__(self, snapshot: Callable[[], Future[LivePrefixes]], routing: RoutingSpec) -> None:
        self._snapshot = snapshot
        self._routing = routing
        self._pending: asyncio.Future[LivePrefixes] | None = None
        self._chains: dict[int, TokenChain] = {}
        self._held: dict[str, Any] = {}

    async def gather(self, stats: EngineStats) -> dict[str, Any]:
        """What to publish now. While a long step holds the engine, its prefixes are those of the
        last time."""
        try:
            if self._pending is None:
                self._pending = asyncio.wrap_future(self._snapshot())
            await asyncio.wait([self._pending], timeout=self._routing.stats_period_s)
            if self._pending.done():
                pending, self._pending = self._pending, None
                self._held = self._published(pending.result())
        except ErllamaError:  # the engine has stopped: nothing is in its context, and the health check says the rest
            self._held = {}
        return {**self._held, "load": stats.n_running + stats.n_queued, "n_parallel": stats.n_parallel}

    def _published(self, live: LivePrefixes) -> dict[str, Any]:
        held = (*live.running, *live.idle)
        self._chains = {seq_id: self._chain(seq_id, tokens, live.salts.get(seq_id, "")) for seq_id, tokens in held}
        chains = [chunk_hashes(chain) for chain in self._chains.values()]
        tails = [chain[-1] for chain in chains if chain]
        most = self._routing.max_published
        sessions = live.sessions[:most]
        return {
            "prefixes": pack_hashes(tails if live.whole else thinned(chains, most)),
            "tails": pack_hashes(tails),
            "sessions": pack_hashes(session_hash(session_id) for session_id in sessions),
            "all_sessions": len(sessions) == len(live.sessions),
            "n_empty": live.n_empty,
            "whole": live.whole,
        }

    def _chain(self, seq_id: int, tokens: Ids, salt: str) -> TokenChain:
        """The chain of `tokens`, which mostly are the ones of before and some more."""
        before, empty = self._chains.get(seq_id), chunk_chain((), self._routing.chunk_tokens, salt)
        if before is None or before.root != empty.root:
            return empty.extended(tokens)
        same = n_common(before.ids, tokens)
        return before if same == len(before) == len(tokens) else before.prefix(same).extended(tokens[same:])


def thinned(chains: Sequence[Sequence[int]], limit: int) -> list[int]:
    """At most `limit` different hashes of `chains`: all of them, or every 2nd, 4th, ... of each and
    its last one."""
    step = 1
    while True:
        kept = dict.fromkeys(h for chain in chains for h in (*chain[step - 1 :: step], *chain[-1:]))
        if len(kept) <= limit or step > max(map(len, chains)):
            return list(kept)[:limit]
        step *= 2
