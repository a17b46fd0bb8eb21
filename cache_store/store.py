"""The store as the engine uses it: one object per process, any number of models and threads.

    lookup -> read      what of a prompt is stored, and the rows themselves       (reader threads; bounded by their deadlines)
    missing -> save     what a save would have to write, and handing it over      (engine thread; no I/O, no waiting)
    flush, close        until everything accepted is where it survives            (whoever drains)
    news, hear          what others should know, and what they told               (a scheduler, if there is one; no I/O)
    collect             keeping a shared tier to its budget for everybody         (a scheduler, on one process at a time)

Nothing here raises for what a file system does: reads come back shorter, saves are dropped, both are counted in `stats`.
`deadline_s` is a duration from the call on.

    Store -- Finder, Reader            foreground; tiers through the lanes of their shelves
          -- Writer, Movers, Keeper    background; one thread each, which may hang with its tier
          -- Stockroom                 shelves + catalogue: the only place where both change
          -- Relay, Collection         on behalf of all processes that share the tiers
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache_store.config import StoreConfig, TierConfig
from cache_store.errors import StoreError
from cache_store.format.block import Block, BlockId
from cache_store.format.keys import BLOCK_TOKENS, ChainKey, TokenChain, root_key
from cache_store.in_flight import Pending
from cache_store.index.catalogue import Catalogue
from cache_store.index.delta import News, NewsLog
from cache_store.read.prefix_search import Finder
from cache_store.read.prefixes import Hottest, leaf_prefixes
from cache_store.read.reader import Consume, Reader
from cache_store.records import CachedPrefix, Collected, Fetched, Piece, Plan, StoreStats
from cache_store.sharing.claims import Claims
from cache_store.sharing.garbage import Collection, collector_lane
from cache_store.sharing.gossip import Relay
from cache_store.sharing.identity import Places
from cache_store.sharing.maintenance import Keeper
from cache_store.tiers.base import Tier
from cache_store.tiers.guarded import Shelf, open_shelves
from cache_store.tiers.open import open_tier
from cache_store.tiers.stack import Stockroom
from cache_store.write.copier import Move, Mover
from cache_store.write.worker import seconds_left
from cache_store.write.writer import Writer

_CLAIM_S = 1.0  # for a call about claims: requests wait for it, and a hint may at best spare them work


class Store:
    """`open` opens a tier, `clock` is monotonic in ns, `unix_s` the wall clock; tests bring their own."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        open: Callable[[TierConfig], Tier] = open_tier,
        clock: Callable[[], int] = time.monotonic_ns,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """Raises `TierError` for a tier that can never work. Usable at once: what the index does not know yet is found by probing."""
        self._config = config
        shelves = open_shelves(config, open)
        owner = secrets.token_hex(8)
        self._pending = Pending()
        news_log, places = NewsLog(len(shelves)), Places(shelves)
        self._stock = Stockroom(shelves, Catalogue(len(shelves) + 1, unix_s, news_log.used), news_log, clock)
        self._relay = Relay(self._stock, news_log, places, owner)
        self._loaded = threading.Event()
        self._closing = threading.Event()
        self._close_lock = threading.Lock()
        self._pin_lock = threading.Lock()
        self._pins: dict[tuple[ChainKey, int], list[list[BlockId]]] = {}  # what each pin pinned: later saves may cut the chain otherwise
        self._claims = Claims(next((shelf for shelf in shelves if shelf.tier.local), None), owner, unix_s)
        self._collector_lanes = [collector_lane(shelf) for shelf in shelves]
        self._movers = [self._mover(shelf) for shelf in shelves] if len(shelves) > 1 else []
        self._writer = Writer(
            self._stock,
            self._pending,
            self._copy_down,
            queue_bytes=config.queue_bytes,
            attempts=config.write_attempts,
            retry_s=config.retry_s,
        )
        self._finder = Finder(self._stock, self._claims, self._loaded, self._closing, min_probe_tokens=config.min_probe_tokens)
        self._reader = Reader(self._stock, self._writer, self._movers[0] if self._movers else None)
        self._keeper = Keeper(
            self._stock,
            self._claims,
            places,
            owner,
            self._copy_down_late,
            self._loaded,
            rescan_s=config.rescan_s,
            rescan_share=config.rescan_share,
            checkpoint_s=config.checkpoint_s,
            clock=clock,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closing.is_set() else "open"
        return f"<Store {state} {list(self._stock.shelves)} {self._stock.catalogue!r} {len(self._pending)} pending>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(self._config.op_timeout_s)

    @property
    def salt(self) -> str:
        return self._config.salt

    @property
    def tier_labels(self) -> tuple[str, ...]:
        """Fastest first; unique."""
        return tuple(shelf.label for shelf in self._stock.shelves)

    def root(self, namespace: str) -> ChainKey:
        return root_key(namespace, self._config.salt)

    # --- reading -----------------------------------------------------------------------------------------------------------

    def lookup(self, chain: TokenChain, *, need_end: bool = False, deadline_s: float, share_wait_s: float = 0.0) -> Plan:
        """The longest prefix of a prompt that can be restored.

        `need_end`: of a model whose state cannot be cut, so only lengths with an END object count. What this store accepted and has not
        written yet is included, and read from memory. `share_wait_s` is how long to wait, beyond `deadline_s`, for blocks that another
        process of this machine claims to be computing.
        """
        deadline_ns = _deadline(deadline_s)
        return self._finder.lookup(chain, need_end=need_end, share_wait_s=share_wait_s, deadline_ns=deadline_ns)

    def read(self, plan: Plan, consume: Consume, deadline_s: float) -> Fetched:
        """Read what `plan` names and call `consume(block, n_use)` in order of position; arrays are valid during that call only.

        Stops where an object cannot be had in time. What `consume` raises passes; nothing else does.
        """
        return self._reader.read(plan, consume, _deadline(deadline_s))

    def get(self, id: BlockId, deadline_s: float) -> Block | None:
        """A copy of one object, END and REPLAY too, from whichever tier has it, whether the index knows it or not."""
        return self._reader.get(id, _deadline(deadline_s))

    def has(self, id: BlockId) -> bool:
        """Whether the object is stored or on its way, as far as the index knows. No I/O."""
        return self._stock.catalogue.has(id)

    # --- writing -----------------------------------------------------------------------------------------------------------

    def missing(self, chain: TokenChain, upto: int | None = None) -> list[Piece]:
        """The ROWS objects that a save of the first `upto` tokens (None: all) would write: beyond what is stored, cut at block boundaries.

        No I/O.
        """
        chain = chain if upto is None else chain.prefix(upto)
        start = self._stock.catalogue.node_at(chain.root, chain.ids, len(chain))
        cuts = [start, *range((start // BLOCK_TOKENS + 1) * BLOCK_TOKENS, len(chain), BLOCK_TOKENS), len(chain)]
        return [Piece(start, stop - start, BlockId.of_rows(chain, start, stop)) for start, stop in pairwise(cuts) if start < stop]

    def save(self, blocks: Sequence[Block], *, wait_s: float = 0.0) -> int:
        """Copy `blocks` and write them in the background; how many were accepted, from the first on (what is stored already counts).

        The caller's arrays are free again on return. One that finds no room in the queue within `wait_s` (in total) is dropped and counted,
        and so are those after it: a chain is of no use beyond a hole.
        """
        give_up_ns = _deadline(wait_s)
        for n_accepted, block in enumerate(blocks):
            failure = "closed" if self._closing.is_set() else self._writer.accept(block, seconds_left(give_up_ns))
            if failure:
                self._stock.tally.add("dropped", failure, len(blocks) - n_accepted)
                return n_accepted
        return len(blocks)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything accepted so far is in a tier that survives this process and machine, or was dropped; False on timeout."""
        return self._pending.wait(timeout_s)

    # --- keeping -----------------------------------------------------------------------------------------------------------

    def pin(self, chain: TokenChain, upto: int) -> None:
        """Never evict the rows of the first `upto` tokens: the objects that hold them now, and those that a save would make of the rest.

        Counted: every pin wants one `unpin` of the same tokens.
        """
        chain = chain.prefix(upto)
        stored = self._stock.catalogue.longest_prefix(chain.root, chain.ids).hops
        ids = [hop.id for hop in stored] + [piece.id for piece in self.missing(chain)]
        self._stock.catalogue.pin(ids)
        with self._pin_lock:
            self._pins.setdefault((chain.key_at(len(chain)), len(chain)), []).append(ids)

    def unpin(self, chain: TokenChain, upto: int) -> None:
        """Raises `ValueError` for what is not pinned."""
        chain = chain.prefix(upto)
        pin = (chain.key_at(len(chain)), len(chain))
        with self._pin_lock:
            pinned = self._pins.get(pin)
            if not pinned:
                raise ValueError(f"the first {len(chain)} tokens are not pinned")
            ids = pinned.pop()
            if not pinned:
                del self._pins[pin]
        self._stock.catalogue.unpin(ids)

    def evict_bytes(self, tier: str | int, n_bytes: int, *, only_if_lower: bool = False) -> int:
        """Delete at least `n_bytes` from a tier, least worth first, or what may go; the bytes that went within `op_timeout_s`.

        `only_if_lower`: only what a lower tier has, too. Raises `ValueError` for a tier that there is not.
        """
        shelf = self._shelf(tier)
        before = self._stock.catalogue.bytes_in(shelf.level)
        try:
            return shelf.run(lambda: self._stock.evict(shelf, n_bytes, "asked", only_if_lower=only_if_lower), self._op_deadline())
        except StoreError:
            return max(0, before - self._stock.catalogue.bytes_in(shelf.level))

    def claim(self, keys: Sequence[ChainKey], expires_s: float) -> bool:
        """Tell other processes of this machine that the blocks `keys` are being computed here. False when another says so of the first."""
        return self._claims.claim(keys, expires_s, self._claim_deadline())

    def claimed(self, key: ChainKey) -> float:
        """Seconds for which another process's claim still counts; 0.0 without one."""
        return self._claims.claimed(key, self._claim_deadline())

    def release(self, keys: Sequence[ChainKey]) -> None:
        """Take back claims that begin with one of `keys`. Others' stay."""
        self._claims.release(keys, self._claim_deadline())

    def prefixes(self, root: ChainKey | None = None, limit: int = 1000) -> tuple[CachedPrefix, ...]:
        """Stored prefixes that nothing longer continues, most recently used first."""
        return leaf_prefixes(self._stock, root, limit)

    def hottest(self, root: ChainKey, limit: int, deadline_s: float | None = None) -> list[NDArray[np.uint32]]:
        """The token ids of the `limit` prefixes of a root that are worth most, best first: the longest, none the beginning of another.

        Ids that the index does not know are read, within `op_timeout_s` by default; a prefix whose ids cannot be had in time is left out.
        """
        deadline_ns = _deadline(self._config.op_timeout_s if deadline_s is None else deadline_s)
        return Hottest(self._stock, root, lambda id: seconds_left(deadline_ns) > 0 and self._finder.learn(id, deadline_ns)).take(limit)

    # --- with others ---------------------------------------------------------------------------------------------------------

    def news(self) -> News:
        """What this store wrote, removed and used since the last call, or since its start; the newest few thousand objects. No I/O."""
        return self._relay.tell()

    def hear(self, news: Iterable[News]) -> int:
        """Take over what other stores told; how many objects came or went. No I/O; what is not true costs a miss.

        Only news about places count that are a tier of ours, too. Our own news are ignored, so everybody may hear everything.
        """
        return self._relay.hear(news)

    def collect(self, tier: str | int, *, target_share: float = 0.9, listing_age_s: float = 0.0, deadline_s: float) -> Collected:
        """Bring a tier that several processes share down to `target_share` of its budget, least worth first, chains from their tails.

        For one process at a time. The tier is listed before, unless it was within `listing_age_s`. Raises `ValueError` for a tier that does
        not exist and for a share out of (0, 1], nothing for what a file system does.
        """
        shelf = self._shelf(tier)
        if not 0 < target_share <= 1:
            raise ValueError(f"target_share={target_share}: must be in (0, 1]")
        lane = self._collector_lanes[shelf.level]
        return Collection(self._stock, self._keeper, shelf, lane, target_share, listing_age_s, _deadline(deadline_s)).run()

    def collected_elsewhere(self, tier: str | int, for_s: float) -> None:
        """Another process collects this tier: for `for_s` from now, evict here only 5 % above the budget, and only what a write needs.

        To be repeated while it is true; 0 takes it back. `ValueError` for a tier that there is not.
        """
        self._stock.collected_elsewhere(self._shelf(tier), for_s)

    def stats(self) -> StoreStats:
        counts = self._stock.tally
        objects = [self._stock.catalogue.objects_in(shelf.level) for shelf in self._stock.shelves]
        sizes = [self._stock.catalogue.bytes_in(shelf.level) for shelf in self._stock.shelves]
        return StoreStats(
            tiers=tuple(shelf.stats(*figures) for shelf, *figures in zip(self._stock.shelves, sizes, objects, strict=True)),
            queue_bytes=self._writer.queue_bytes,
            pending=len(self._pending),
            saved=counts.of("saved"),
            dropped=counts.of("dropped"),
            corrupt=counts.of("corrupt"),
            evicted=counts.of("evicted"),
            probes=counts.total("probes"),
            hit_tokens=counts.of("tokens").get("hit", 0),
            looked_up_tokens=counts.of("tokens").get("looked_up", 0),
        )

    def wait_loaded(self, timeout_s: float) -> bool:
        """Wait until the index has seen every tier once; False on timeout. Nobody has to."""
        return self._loaded.wait(timeout_s)

    def check_integrity(self) -> None:
        """Raise AssertionError where two parts of the bookkeeping disagree."""
        self._stock.catalogue.check_integrity()

    def rescan(self) -> None:
        """List all tiers now instead of at the next `rescan_s`. Waits for the file systems."""
        self._keeper.rescan()

    def close(self, timeout_s: float) -> None:
        """Flush, copy down what can be within `timeout_s`, write the index down, stop. A tier that hangs is left behind. Idempotent."""
        with self._close_lock:
            if self._closing.is_set():
                return
            self._closing.set()
        deadline_ns = _deadline(timeout_s)
        self._pending.wait(timeout_s)
        self._claims.release_all(max(deadline_ns, _deadline(self._config.retry_s)))
        for mover in self._movers:
            mover.drain(seconds_left(deadline_ns))
        parts: list[Writer | Mover | Keeper] = [self._writer, *self._movers, self._keeper]
        for part in parts:
            part.stop(seconds_left(deadline_ns))
        for shelf in self._stock.shelves:
            if shelf.persistent and shelf.available and shelf.level in self._keeper.scanned:
                self._checkpoint(shelf, deadline_ns)
        for lane in self._collector_lanes:
            lane.close()
        for shelf in self._stock.shelves:
            shelf.close()

    # --- wiring ------------------------------------------------------------------------------------------------------------

    def _mover(self, shelf: Shelf) -> Mover:
        config = self._config
        return Mover(
            self._stock,
            shelf,
            self._pending,
            self._copy_down,
            copy_queue=config.copy_queue,
            promote_bytes=config.promote_bytes,
            attempts=config.write_attempts,
            retry_s=config.retry_s,
        )

    def _copy_down(self, id: BlockId, shelf: Shelf) -> None:
        """`id` has arrived on `shelf`: the next one below gets it; awaited until it lies on a persistent one."""
        if shelf.level + 1 < len(self._movers):
            below = self._stock.shelves[shelf.level + 1 :]
            safe = any(upper.persistent for upper in self._stock.shelves[: shelf.level + 1]) or not any(s.persistent for s in below)
            self._movers[shelf.level + 1].submit(Move(id, awaited=not safe))

    def _copy_down_late(self, id: BlockId, shelf: Shelf) -> None:
        """`id` was found on `shelf` alone: owed if it would be lost with the machine, else a favour if there is room."""
        if shelf.level + 1 < len(self._movers):
            self._movers[shelf.level + 1].submit(Move(id, owed=not shelf.persistent))

    def _checkpoint(self, shelf: Shelf, deadline_ns: int) -> None:
        try:
            shelf.run(lambda: self._keeper.write_checkpoint(shelf), max(deadline_ns, _deadline(self._config.retry_s)))
        except StoreError:
            self._stock.tally.add("dropped", "checkpoint")

    def _shelf(self, tier: str | int) -> Shelf:
        found = [shelf for shelf in self._stock.shelves if tier in (shelf.label, shelf.level)]
        if not found:
            raise ValueError(f"tier={tier!r}: none of {self.tier_labels}")
        return found[0]

    def _op_deadline(self) -> int:
        return _deadline(self._config.op_timeout_s)

    def _claim_deadline(self) -> int:
        return _deadline(min(self._config.op_timeout_s, _CLAIM_S))


def _deadline(seconds: float) -> int:
    return time.monotonic_ns() + int(seconds * 1e9)
