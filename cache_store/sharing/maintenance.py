"""Keeps the index and the tiers in agreement, on one slow thread: loads, lists, sweeps, writes
snapshots.

    every second    pins made here told, those of others learnt
    at start        the identity of each tier, its newest snapshots (a hint: tokens and hits), then
                    a listing of each; what no lower tier has is copied down
    every rescan_s  a listing again, sooner once we wrote a fair share of a budget: others then
                    probably did too. It adds what others wrote, forgets what vanished, and evicts
                    what all writers together have over the budget
    every snapshot_s, and at close    the index as Parquet, one file per store under `index/`,
                                      atomically; old ones go

A listing is a hint: what was published while it ran is not forgotten, because only what was known
before it began can be. Foreign files are neither counted nor touched. Objects of an older format
are not counted either, and are deleted: here a few each second, by a collection all at once. A
process of the older version that still runs then misses them, nothing worse.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable

from cache_store.config import StoreConfig
from cache_store.errors import StoreError
from cache_store.format.block import BlockId
from cache_store.index import snapshot
from cache_store.index.snapshot import BadSnapshot
from cache_store.sharing.claims import Claims
from cache_store.sharing.gossip import Gossip
from cache_store.sharing.pins import Pins
from cache_store.tiers.base import Stat
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack

log = logging.getLogger("cache_store")

SNAPSHOTS = "index/"
_SUFFIX = ".parquet"
_LOADED_SNAPSHOTS = 4  # replicas that share a tier know mostly the same; the newest few know nearly all
_KEPT_SNAPSHOTS = 16
TEMP_AGE_S = 3600.0  # no publish takes an hour; a temp file that old has no writer
_TICK_S = 1.0
_OUTDATED_PER_TICK = 64
_PINS_S = 10.0  # between two listings of the pins in a tier that is not local


class Maintenance:
    """`missing_below(id, tier)` is called at start for objects that no tier below has. `loaded` is
    set after the first listing. `clock` is monotonic, in ns.
    """

    def __init__(
        self,
        stack: TierStack,
        claims: Claims,
        pins: Pins,
        gossip: Gossip,
        owner: str,
        config: StoreConfig,
        missing_below: Callable[[BlockId, GuardedTier], None],
        loaded: threading.Event,
        clock: Callable[[], int],
    ) -> None:
        self._stack = stack
        self._claims = claims
        self._pins = pins
        self._gossip = gossip
        self._config = config
        self._name = f"{SNAPSHOTS}{owner}{_SUFFIX}"
        self._missing_below = missing_below
        self._loaded = loaded
        self._clock = clock
        self._stop = threading.Event()
        self._scanned_ns = [0] * len(stack.tiers)
        self._listed_ns: dict[int, int] = {}
        self._outdated: list[deque[str]] = [deque() for _ in stack.tiers]
        self._written_at_scan = [0] * len(stack.tiers)
        self._snapshot_ns = clock()
        self._thread = threading.Thread(target=self._run, name="cache-maintenance", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        self._stop.set()
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def rescan(self) -> None:
        """List every tier now, on the caller's thread."""
        for tier in self._stack.tiers:
            self._attempt(tier, self._scan)

    def is_listed(self, tier: GuardedTier) -> bool:
        """Whether a tier has ever been listed: of others a snapshot would tell only half."""
        return tier.index in self._listed_ns

    def listing_age_s(self, tier: GuardedTier) -> float:
        """For how long the index of a tier has gone without a listing."""
        return (self._clock() - self._listed_ns[tier.index]) / 1e9 if self.is_listed(tier) else math.inf

    def list_again(self, tier: GuardedTier) -> None:
        """Bring the index of a tier up to date. Background. Raises `TierError`."""
        began_ns = self._clock()
        outdated: deque[str] = deque()
        with self._stack.index.listing(tier.index) as is_there:
            for stat in tier.list_now():
                id = BlockId.parse(stat.name)
                if id is not None:
                    is_there(id, stat.n_bytes)
                elif BlockId.is_outdated(stat.name):
                    outdated.append(stat.name)
        self._outdated[tier.index] = outdated
        self._listed_ns[tier.index] = began_ns

    def sweep_outdated(self, tier: GuardedTier, at_most: int | None = None) -> int:
        """Delete objects of an older format that the last listing named; how many went. Raises
        `TierError` at the first that cannot be deleted; the next listing names those that are left.
        Background, any threads at once.
        """
        names = self._outdated[tier.index]
        n_deleted = 0
        try:
            while at_most is None or n_deleted < at_most:
                n_deleted += tier.delete_now(names.popleft())
        except IndexError:
            return n_deleted
        except StoreError:
            names.clear()
            raise
        return n_deleted

    def write_snapshot(self, tier: GuardedTier) -> None:
        """Background. Raises `TierError`."""
        data = snapshot.encode(self._stack.index.columns(tier.index))
        tier.publish_now(self._name, memoryview(data))
        for stat in self._snapshots(tier)[_KEPT_SNAPSHOTS:]:
            tier.delete_now(stat.name)

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for tier in self._stack.tiers:
                self._attempt(tier, self._pins.refresh)  # before anything may be evicted
                # before the listing: deltas that come too early are about what it will find
                self._attempt(tier, self._gossip.recognise)
                self._attempt(tier, self._load_snapshots)
            for tier in self._stack.tiers:
                self._attempt(tier, self._sweep_and_scan)
            self._copy_down_the_rest()
        finally:
            self._loaded.set()
        while not self._stop.wait(_TICK_S):
            self._tick()

    def _tick(self) -> None:
        self._pins.make_wanted()
        for tier in self._stack.tiers:
            self._attempt(tier, self._share_pins)
            if tier.available and self._clock() - self._scanned_ns[tier.index] >= self._config.rescan_s * 1e9:
                self._attempt(tier, self._gossip.recognise)
                self._attempt(tier, self._sweep_and_scan)
            elif tier.available and self._wrote_much(tier):
                self._attempt(tier, self._scan)
            self._attempt(tier, lambda tier: self.sweep_outdated(tier, _OUTDATED_PER_TICK))
        if self._clock() - self._snapshot_ns >= self._config.snapshot_s * 1e9:
            self._snapshot_ns = self._clock()
            for tier in self._stack.tiers:
                if tier.persistent and tier.writable:
                    self._attempt(tier, self.write_snapshot)

    def _share_pins(self, tier: GuardedTier) -> None:
        """Tell our pins, learn those of others."""
        if tier.writable:
            self._pins.publish_now(tier)
        if tier.available and (tier.local or self._pins.listing_age_s(tier) >= _PINS_S):
            self._pins.refresh(tier)

    def _attempt(self, tier: GuardedTier, action: Callable[[GuardedTier], object]) -> None:
        try:
            action(tier)
        except StoreError as error:
            log.warning("tier=%s housekeeping failed: %s", tier.label, error)
        except Exception:
            log.exception("tier=%s housekeeping failed", tier.label)

    def _wrote_much(self, tier: GuardedTier) -> bool:
        budget = tier.max_bytes
        written = tier.counts["written_bytes"] - self._written_at_scan[tier.index]
        return budget is not None and tier.local and written > budget * self._config.rescan_share

    # --- listings ---------------------------------------------------------------------------------

    def _sweep_and_scan(self, tier: GuardedTier) -> None:
        # a read-only tier cannot be swept, but it can be listed
        self._attempt(tier, lambda tier: tier.sweep_now(TEMP_AGE_S))
        self._scan(tier)

    def _scan(self, tier: GuardedTier) -> None:
        self._scanned_ns[tier.index] = self._clock()
        self._written_at_scan[tier.index] = tier.counts["written_bytes"]
        self.list_again(tier)
        self._stack.make_room(tier, 0)
        self._claims.sweep(tier)

    def _copy_down_the_rest(self) -> None:
        for tier in self._stack.tiers:
            for entry in self._stack.index.rows(tier.index):
                if max(self._stack.index.tiers_of(entry.id), default=0) == tier.index:
                    self._missing_below(entry.id, tier)

    # --- snapshots --------------------------------------------------------------------------------

    def _snapshots(self, tier: GuardedTier) -> list[Stat]:
        """Newest first."""
        found = [stat for stat in tier.list_now(SNAPSHOTS) if stat.name.endswith(_SUFFIX)]
        return sorted(found, key=lambda stat: stat.modified_s, reverse=True)

    def _load_snapshots(self, tier: GuardedTier) -> None:
        for stat in self._snapshots(tier)[:_LOADED_SNAPSHOTS]:
            loaded = tier.load(stat.name)
            if loaded is None:
                continue
            try:
                self._stack.index.load_columns(snapshot.decode(loaded.data), tier.index)
            except BadSnapshot as error:
                self._stack.tally.add("corrupt", "snapshot")
                log.warning("tier=%s snapshot=%s ignored: %s", tier.label, stat.name, error)
            finally:
                loaded.free()
