"""The store as the engine uses it: one object per process, any number of models and threads.

    lookup -> read       what of a prompt is stored, and the rows themselves
                         (reader threads; bounded by their deadlines)
    missing -> save      what a save would have to write, and handing it over
                         (engine thread; no I/O, no waiting)
    flush, close         until everything accepted is where it survives (whoever drains)
    take_delta, apply_deltas    what other stores should know, and what they told
                         (a scheduler, if there is one; no I/O)
    collect_garbage      keeping a shared tier to its budget for everybody
                         (a scheduler, on one process at a time)

Nothing here raises for what a file system does: reads come back shorter, saves are dropped, both
are counted in `stats`. `deadline_s` is a duration from the call on.

    Store -- PrefixSearch, Reader               foreground; through each tier's deadline pool
          -- Writer, TierCopiers, Maintenance   background; one thread each, which may hang with its
                                                tier
          -- TierStack                          the tiers and their index: the only code that
                                                changes both
          -- Gossip, GarbageCollection          on behalf of all processes that share the tiers
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from cache_store.config import StoreConfig, TierConfig
from cache_store.errors import StoreError
from cache_store.format.block import Block, BlockId
from cache_store.format.keys import BLOCK_TOKENS, ChainKey, TokenChain, root_key
from cache_store.index.delta import DeltaLog, IndexDelta
from cache_store.index.index import Index
from cache_store.read.destination import Destination
from cache_store.read.pinning import Pinning
from cache_store.read.prefix_search import PrefixSearch
from cache_store.read.prefixes import Hottest, leaf_prefixes, prefix_of
from cache_store.read.read_ahead import ByteBudget
from cache_store.read.reader import Consume, Reader
from cache_store.records import CachedPrefix, Fetched, GarbageReport, PinInfo, Plan, StoreStats
from cache_store.sharing.claims import Claims
from cache_store.sharing.garbage import GarbageCollection, garbage_pool
from cache_store.sharing.gossip import Gossip
from cache_store.sharing.maintenance import Maintenance
from cache_store.sharing.pins import Pins
from cache_store.tiers.base import Tier
from cache_store.tiers.guarded import GuardedTier, open_tiers
from cache_store.tiers.open import open_tier
from cache_store.tiers.stack import TierStack
from cache_store.transfer import Transfer
from cache_store.write.copier import Copy, TierCopier
from cache_store.write.worker import deadline_in, seconds_left
from cache_store.write.writer import Writer

_CLAIM_S = 1.0  # for a call about claims: requests wait for it, and a hint may at best spare them work


class Store:
    """`open` opens a tier, `clock` is monotonic in ns, `unix_s` the wall clock; all for tests."""

    def __init__(
        self,
        config: StoreConfig,
        *,
        open: Callable[[TierConfig], Tier] = open_tier,
        clock: Callable[[], int] = time.monotonic_ns,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        """Raises `TierError` for a tier that can never work. Usable at once: what the index does
        not know yet is found by probing.
        """
        self._config = config
        tiers = open_tiers(config, open)
        owner = secrets.token_hex(8)
        delta_log = DeltaLog(len(tiers))
        self._stack = TierStack(tiers, Index(len(tiers) + 1, unix_s), delta_log, clock)
        self._gossip = Gossip(self._stack, delta_log, owner)
        self._loaded = threading.Event()
        self._closing = threading.Event()
        self._close_lock = threading.Lock()
        self._pins = Pins(self._stack, unix_s, clock, config.pin_share, config.owner_pin_bytes)
        self._stack.before_evicting = self._pins.before_evicting
        self._pinning = Pinning(self._stack, self._pins, self.missing, unix_s)
        self._claims = Claims(next((tier for tier in tiers if tier.local), None), owner, unix_s)
        self._garbage_pools = [garbage_pool(tier) for tier in tiers]
        self._copiers = [
            TierCopier(self._stack, tier, self._copy_down, config) for tier in (tiers if len(tiers) > 1 else [])
        ]
        self._writer = Writer(self._stack, self._copy_down, config)
        self._prefix_search = PrefixSearch(
            self._stack, self._claims, self._loaded, self._closing, min_probe_tokens=config.min_probe_tokens
        )
        promoter = self._copiers[0] if self._copiers else None
        budget = ByteBudget(config.read_ahead_bytes)
        self._reader = Reader(self._stack, self._writer, promoter, budget, config.reads_in_flight)
        save = partial(self.save, wait_s=config.op_timeout_s)
        self.transfer = Transfer(self._stack, self._reader, save, self.flush, config.op_timeout_s)
        late = (self._copy_down_late, self._loaded, clock)
        self._maintenance = Maintenance(self._stack, self._claims, self._pins, self._gossip, owner, config, *late)

    def __repr__(self) -> str:
        state = "closed" if self._closing.is_set() else "open"
        return f"<Store {state} {list(self._stack.tiers)} {self._stack.index!r} {len(self._stack.in_flight)} in flight>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close(self._config.op_timeout_s)

    @property
    def salt(self) -> str:
        return self._config.salt

    @property
    def tier_labels(self) -> tuple[str, ...]:
        """Fastest first; unique."""
        return tuple(tier.label for tier in self._stack.tiers)

    def root(self, namespace: str) -> ChainKey:
        return root_key(namespace, self._config.salt)

    # --- reading ----------------------------------------------------------------------------------

    def lookup(
        self, chain: TokenChain, *, need_end: bool = False, deadline_s: float, share_wait_s: float = 0.0
    ) -> Plan:
        """The longest prefix of a prompt that can be restored.

        `need_end`: of a model whose state cannot be cut, so only lengths with an END object count.
        What this store accepted and has not written yet is included, and read from memory.
        `share_wait_s` is how long to wait, beyond `deadline_s`, for blocks that another process of
        this machine claims to be computing.
        """
        deadline_ns = deadline_in(deadline_s)
        return self._prefix_search.lookup(chain, need_end=need_end, share_wait_s=share_wait_s, deadline_ns=deadline_ns)

    def read(self, plan: Plan, consume: Consume, deadline_s: float, destination: Destination | None = None) -> Fetched:
        """Read what `plan` names and call `consume(block, n_use)` in order of position; arrays are
        valid during that call only. What fits into `destination` is read to there instead.

        Stops where an object cannot be had in time. What `consume` raises passes; nothing else
        does.
        """
        return self._reader.read(plan, consume, deadline_in(deadline_s), destination)

    def get(self, id: BlockId, deadline_s: float) -> Block | None:
        """A copy of one object of any kind from whichever tier has it, indexed or not."""
        return self._reader.get(id, deadline_in(deadline_s))

    def has(self, id: BlockId) -> bool:
        """Whether the object is stored or on its way, as far as the index knows. No I/O."""
        return self._stack.index.has(id)

    # --- writing ----------------------------------------------------------------------------------

    def missing(self, chain: TokenChain, upto: int | None = None) -> list[BlockId]:
        """The ROWS objects that a save of the first `upto` tokens (None: all) would write: beyond
        what is stored, cut at block boundaries.

        No I/O.
        """
        chain = chain if upto is None else chain.prefix(upto)
        start = self._stack.index.longest_prefix(chain).n_whole
        cuts = [start, *range((start // BLOCK_TOKENS + 1) * BLOCK_TOKENS, len(chain), BLOCK_TOKENS), len(chain)]
        return [BlockId.of_rows(chain, start, stop) for start, stop in pairwise(cuts) if start < stop]

    def save(self, blocks: Sequence[Block], *, wait_s: float = 0.0) -> int:
        """Copy `blocks` and write them in the background; how many were accepted, from the first on
        (what is stored already counts).

        The caller's arrays are free again on return. One that finds no room in the queue within
        `wait_s` (in total) is dropped and counted, and so are those after it: a chain is of no use
        beyond a gap.
        """
        give_up_ns = deadline_in(wait_s)
        for n_accepted, block in enumerate(blocks):
            failure = "closed" if self._closing.is_set() else self._writer.accept(block, seconds_left(give_up_ns))
            if failure:
                self._stack.tally.add("dropped", failure, len(blocks) - n_accepted)
                return n_accepted
        return len(blocks)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything accepted so far is in a tier that survives this process and
        machine, or was dropped; False on timeout.
        """
        return self._stack.in_flight.wait(timeout_s)

    # --- keeping ----------------------------------------------------------------------------------

    def pin(
        self, prefix: TokenChain | ChainKey, ttl_s: float, *, name: str = "", owner: str = "", wait_s: float = 0.0
    ) -> PinInfo | None:
        """Never evict the rows of a prompt, or of a stored prefix, for `ttl_s`, in any process that shares
        a tier: what holds them now, and what a save would make of the rest. None for an unknown key.
        `name` tells the pins of an owner apart; "" is the key, and then pins of shorter parts go.
        `wait_s` is how long to wait until the tiers have it. Raises `ValueError` for a bad name or
        time, `StoreFull` for what is beyond the owner's quota.
        """
        return self._pinning.pin(prefix, ttl_s, name, owner, deadline_in(wait_s) if wait_s > 0 else None)

    def pin_soon(self, chain: TokenChain, ttl_s: float, owner: str = "") -> None:
        """`pin` on a thread of ours: takes no time here, and what fails is counted (`dropped`)."""
        self._pinning.pin_soon(chain, ttl_s, owner)

    def unpin(self, name: str, owner: str = "", wait_s: float = 0.0) -> bool:
        """Take a pin back; False when there is none of that name."""
        return self._pinning.unpin(name, owner, deadline_in(wait_s) if wait_s > 0 else None)

    def pins(self) -> tuple[PinInfo, ...]:
        """All that are known here, oldest first."""
        return self._pins.infos()

    def evict_bytes(self, label: str, n_bytes: int, *, only_if_lower: bool = False) -> int:
        """Delete at least `n_bytes` from the tier `label`, least worth first, or what may go; the
        bytes that went within `op_timeout_s`. `only_if_lower`: only what a lower tier has, too. Raises
        `ValueError` for a tier that there is not.
        """
        tier = self._tier(label)
        before = self._stack.index.bytes_in(tier.index)
        evict = partial(self._stack.evict, tier, n_bytes, "asked", only_if_lower=only_if_lower)
        try:
            return tier.run(evict, deadline_in(self._config.op_timeout_s))
        except StoreError:
            return max(0, before - self._stack.index.bytes_in(tier.index))

    def claim(self, keys: Sequence[ChainKey], expires_s: float) -> bool:
        """Tell this machine that `keys` are computed here; False if others say so of the first."""
        return self._claims.claim(keys, expires_s, self._claim_deadline())

    def claimed(self, key: ChainKey) -> float:
        """Seconds for which another process's claim still counts; 0.0 without one."""
        return self._claims.claimed(key, self._claim_deadline())

    def release(self, keys: Sequence[ChainKey]) -> None:
        """Take back claims that begin with one of `keys`. Others' stay."""
        self._claims.release(keys, self._claim_deadline())

    def prefixes(
        self, root: ChainKey | None = None, limit: int = 1000, order: str = "recent"
    ) -> tuple[CachedPrefix, ...]:
        """Stored prefixes that nothing longer continues, in one of `read.prefixes.ORDERS`."""
        return leaf_prefixes(self._stack, root, limit, order, self._pins.known())

    def prefix(self, key: ChainKey) -> CachedPrefix | None:
        """One stored prefix; None when it is not stored whole."""
        return prefix_of(self._stack, key, self._pins.known())

    def hottest(self, root: ChainKey, limit: int, deadline_s: float | None = None) -> list[NDArray[np.uint32]]:
        """The token ids of the `limit` prefixes of a root that are worth most, best first: the
        longest, none the beginning of another. Ids that the index does not know are read, within
        `op_timeout_s` by default; a prefix whose ids cannot be had in time is left out.
        """
        deadline_ns = deadline_in(self._config.op_timeout_s if deadline_s is None else deadline_s)
        return Hottest(
            self._stack, root, lambda id: seconds_left(deadline_ns) > 0 and self._prefix_search.learn(id, deadline_ns)
        ).take(limit)

    # --- with others ------------------------------------------------------------------------------

    def take_delta(self) -> IndexDelta:
        """What was written, removed and used here since the last call, the newest few thousand. No I/O."""
        return self._gossip.take()

    def apply_deltas(self, deltas: Iterable[IndexDelta]) -> int:
        """Take over what other stores told; how many objects came or went. No I/O; what is not true
        costs a miss.

        Only what a delta says of tiers that we have, too, counts. A store ignores its own delta, so
        everybody may get all of them.
        """
        return self._gossip.apply(deltas)

    def collect_garbage(
        self, label: str, *, target_share: float = 0.9, listing_age_s: float = 0.0, deadline_s: float
    ) -> GarbageReport:
        """Bring a tier that several processes share down to `target_share` of its budget, least
        worth first, chains from their tails.

        For one process at a time. The tier is listed before, unless it was within `listing_age_s`.
        Raises `ValueError` for a tier that does not exist and for a share out of (0, 1], nothing
        for what a file system does.
        """
        tier = self._tier(label)
        if not 0 < target_share <= 1:
            raise ValueError(f"target_share={target_share}: must be in (0, 1]")
        pool = self._garbage_pools[tier.index]
        return GarbageCollection(
            self._stack, self._maintenance, tier, pool, target_share, listing_age_s, deadline_in(deadline_s)
        ).run()

    def leave_garbage(self, label: str, for_s: float) -> None:
        """Another process collects the garbage of a tier: for `for_s`, evict here only 5 % above
        its budget, and only what a write needs.

        To be repeated while it is true; 0 takes it back. `ValueError` for a tier that there is not.
        """
        self._stack.leave_garbage(self._tier(label), for_s)

    def stats(self) -> StoreStats:
        counts, index = self._stack.tally, self._stack.index
        return StoreStats(
            tiers=tuple(tier.stats(index.bytes_in(i), index.objects_in(i)) for i, tier in enumerate(self._stack.tiers)),
            queue_bytes=self._writer.queue_bytes,
            pending=len(self._stack.in_flight),
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
        self._stack.index.check_integrity()

    def rescan(self) -> None:
        """List all tiers now instead of at the next `rescan_s`. Waits for the file systems."""
        self._maintenance.rescan()

    def close(self, timeout_s: float) -> None:
        """Flush, copy down what can be within `timeout_s`, write the index down, stop. A tier that
        hangs is left behind. Idempotent.
        """
        with self._close_lock:
            if self._closing.is_set():
                return
            self._closing.set()
        deadline_ns = deadline_in(timeout_s)
        self._stack.in_flight.wait(timeout_s)
        self._claims.release_all(max(deadline_ns, deadline_in(self._config.retry_s)))
        for copier in self._copiers:
            copier.drain(seconds_left(deadline_ns))
        parts: list[Writer | TierCopier | Maintenance] = [self._writer, *self._copiers, self._maintenance]
        for part in parts:
            part.stop(seconds_left(deadline_ns))
        self._pins.make_wanted()
        self._pins.publish(max(deadline_ns, deadline_in(self._config.retry_s)))
        for tier in self._stack.tiers:
            if tier.persistent and tier.writable and self._maintenance.is_listed(tier):
                self._write_snapshot(tier, deadline_ns)
        for pool in self._garbage_pools:
            pool.close()
        for tier in self._stack.tiers:
            tier.close()

    # --- wiring -----------------------------------------------------------------------------------

    def _copy_down(self, id: BlockId, tier: GuardedTier) -> None:
        """`id` has arrived on `tier`: the next one gets it, awaited until one is persistent."""
        if tier.index + 1 < len(self._copiers):
            first_persistent = next((other.index for other in self._stack.tiers if other.persistent), 0)
            self._copiers[tier.index + 1].submit(Copy(id, awaited=tier.index < first_persistent))

    def _copy_down_late(self, id: BlockId, tier: GuardedTier) -> None:
        """`id` was found on `tier` alone: a copy is pending if it would be lost with the machine,
        else best effort.
        """
        if tier.index + 1 < len(self._copiers):
            self._copiers[tier.index + 1].submit(Copy(id, best_effort=tier.persistent))

    def _write_snapshot(self, tier: GuardedTier, deadline_ns: int) -> None:
        try:
            tier.run(
                lambda: self._maintenance.write_snapshot(tier), max(deadline_ns, deadline_in(self._config.retry_s))
            )
        except StoreError:
            self._stack.tally.add("dropped", "snapshot")

    def _tier(self, label: str) -> GuardedTier:
        for tier in self._stack.tiers:
            if tier.label == label:
                return tier
        raise ValueError(f"label={label!r}: none of {self.tier_labels}")

    def _claim_deadline(self) -> int:
        return deadline_in(min(self._config.op_timeout_s, _CLAIM_S))
