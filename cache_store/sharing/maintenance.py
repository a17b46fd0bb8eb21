"""Keeps the index and the shelves in agreement, on one slow thread: loads, lists, sweeps, writes checkpoints.

    at start        the marks of each shelf's place, the newest checkpoints (a hint: tokens and hits), then a listing of each; what no
                    lower tier has is copied down
    every rescan_s  a listing again, sooner once we wrote a fair share of a budget: others then probably did too. It adds what others
                    wrote, forgets what vanished, and evicts what all writers together have over the budget
    every checkpoint_s, and at close    the index as Parquet, one file per store under `index/`, atomically; old ones go

A listing is a hint: what was published while it ran is not forgotten, because only what was known before it began can be. Foreign files are
neither counted nor touched. Objects of an older format are not counted either, and are deleted: here
a few each second, by a collection all at once. A process of the older version that still runs then
misses them, nothing worse.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable

from cache_store.errors import StoreError
from cache_store.format.block import BlockId
from cache_store.index import snapshot as index_checkpoint
from cache_store.index.snapshot import BadCheckpoint
from cache_store.sharing.claims import Claims
from cache_store.sharing.identity import Places
from cache_store.tiers.base import Stat
from cache_store.tiers.guarded import Shelf
from cache_store.tiers.stack import Stockroom

log = logging.getLogger("cache_store")

CHECKPOINTS = "index/"
_SUFFIX = ".parquet"
_LOADED_CHECKPOINTS = 4  # replicas that share a tier know mostly the same; the newest few know nearly all
_KEPT_CHECKPOINTS = 16
TEMP_AGE_S = 3600.0  # no publish takes an hour; a temp file that old has no writer
_TICK_S = 1.0
_OUTDATED_PER_TICK = 64


class Keeper:
    """`missing_below(id, shelf)` hears at start of objects that no shelf below has. `loaded` is set after the first listing.

    `scanned` are the levels of shelves that have been listed: of others a checkpoint would tell only half.
    """

    def __init__(
        self,
        stock: Stockroom,
        claims: Claims,
        places: Places,
        owner: str,
        missing_below: Callable[[BlockId, Shelf], None],
        loaded: threading.Event,
        *,
        rescan_s: float,
        rescan_share: float,
        checkpoint_s: float,
        clock: Callable[[], int],
    ) -> None:
        self._stock = stock
        self._claims = claims
        self._places = places
        self._name = f"{CHECKPOINTS}{owner}{_SUFFIX}"
        self._missing_below = missing_below
        self._loaded = loaded
        self._rescan_s, self._rescan_share, self._checkpoint_s = rescan_s, rescan_share, checkpoint_s
        self._clock = clock
        self._wake = threading.Condition()
        self._stopping = False
        self.scanned: set[int] = set()
        self._scanned_ns = [0] * len(stock.shelves)
        self._listed_ns: dict[int, int] = {}
        self._outdated: list[deque[str]] = [deque() for _ in stock.shelves]
        self._written_at_scan = [0] * len(stock.shelves)
        self._checkpoint_ns = clock()
        self._thread = threading.Thread(target=self._run, name="cache-keeper", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        self._thread.join(max(0.0, timeout_s))
        return not self._thread.is_alive()

    def rescan(self) -> None:
        """List every shelf now, on the caller's thread."""
        for shelf in self._stock.shelves:
            self._attempt(shelf, self._scan)

    def listing_age_s(self, shelf: Shelf) -> float:
        """For how long the index of a shelf has gone without a listing."""
        listed_ns = self._listed_ns.get(shelf.level)
        return math.inf if listed_ns is None else (self._clock() - listed_ns) / 1e9

    def list_again(self, shelf: Shelf) -> None:
        """Bring the index of a shelf up to date. Background. Raises `TierError`."""
        began_ns = self._clock()
        known = {entry.id: entry.n_bytes for entry in self._stock.catalogue.entries(shelf.level)}
        outdated: deque[str] = deque()
        for stat in shelf.list_now():
            id = BlockId.parse(stat.name)
            if id is None:
                if BlockId.is_outdated(stat.name):
                    outdated.append(stat.name)
            elif known.pop(id, -1) != stat.n_bytes:
                self._stock.catalogue.add(id, shelf.level, stat.n_bytes)
        for id in known:
            self._stock.catalogue.remove(id, shelf.level)
        self._outdated[shelf.level] = outdated
        self._listed_ns[shelf.level] = began_ns
        self.scanned.add(shelf.level)

    def sweep_outdated(self, shelf: Shelf, at_most: int | None = None) -> int:
        """Delete objects of an older format that the last listing named; how many went. Background, any threads at once.

        Raises `TierError` at the first that cannot be deleted; the next listing names those that are left.
        """
        names = self._outdated[shelf.level]
        n_deleted = 0
        try:
            while at_most is None or n_deleted < at_most:
                n_deleted += shelf.delete_now(names.popleft())
        except IndexError:
            return n_deleted
        except StoreError:
            names.clear()
            raise
        return n_deleted

    def write_checkpoint(self, shelf: Shelf) -> None:
        """Background. Raises `TierError`."""
        data = index_checkpoint.encode(self._stock.catalogue.entries(shelf.level))
        shelf.publish_now(self._name, memoryview(data))
        for stat in self._checkpoints(shelf)[_KEPT_CHECKPOINTS:]:
            shelf.delete_now(stat.name)

    # --- the thread --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for shelf in self._stock.shelves:
                self._attempt(shelf, self._places.settle)  # before the listing: news that come too early are about what it will find
                self._attempt(shelf, self._load_checkpoints)
            for shelf in self._stock.shelves:
                self._attempt(shelf, self._sweep_and_scan)
            self._copy_down_the_rest()
        finally:
            self._loaded.set()
        while not self._pause():
            self._tick()

    def _pause(self) -> bool:
        """True when it is time to stop."""
        with self._wake:
            return self._wake.wait_for(lambda: self._stopping, _TICK_S)

    def _tick(self) -> None:
        for shelf in self._stock.shelves:
            if shelf.available and self._clock() - self._scanned_ns[shelf.level] >= self._rescan_s * 1e9:
                self._attempt(shelf, self._places.settle)
                self._attempt(shelf, self._sweep_and_scan)
            elif shelf.available and self._wrote_much(shelf):
                self._attempt(shelf, self._scan)
            self._attempt(shelf, lambda shelf: self.sweep_outdated(shelf, _OUTDATED_PER_TICK))
        if self._clock() - self._checkpoint_ns >= self._checkpoint_s * 1e9:
            self._checkpoint_ns = self._clock()
            for shelf in self._stock.shelves:
                if shelf.persistent and shelf.available:
                    self._attempt(shelf, self.write_checkpoint)

    def _attempt(self, shelf: Shelf, action: Callable[[Shelf], object]) -> None:
        try:
            action(shelf)
        except StoreError as error:
            log.warning("tier=%s housekeeping failed: %s", shelf.label, error)
        except Exception:
            log.exception("tier=%s housekeeping failed", shelf.label)

    def _wrote_much(self, shelf: Shelf) -> bool:
        budget = shelf.tier.max_bytes
        written = shelf.counts["written_bytes"] - self._written_at_scan[shelf.level]
        return budget is not None and shelf.tier.local and written > budget * self._rescan_share

    # --- listings ----------------------------------------------------------------------------------------------------------

    def _sweep_and_scan(self, shelf: Shelf) -> None:
        self._attempt(shelf, lambda shelf: shelf.sweep_now(TEMP_AGE_S))  # a read-only tier cannot be swept, but it can be listed
        self._scan(shelf)

    def _scan(self, shelf: Shelf) -> None:
        self._scanned_ns[shelf.level] = self._clock()
        self._written_at_scan[shelf.level] = shelf.counts["written_bytes"]
        self.list_again(shelf)
        self._stock.make_room(shelf, 0)
        if shelf is self._claims.shelf:
            self._claims.sweep()

    def _copy_down_the_rest(self) -> None:
        for shelf in self._stock.shelves:
            for entry in self._stock.catalogue.entries(shelf.level):
                if max(self._stock.catalogue.tiers_of(entry.id), default=0) == shelf.level:
                    self._missing_below(entry.id, shelf)

    # --- checkpoints -------------------------------------------------------------------------------------------------------

    def _checkpoints(self, shelf: Shelf) -> list[Stat]:
        """Newest first."""
        found = [stat for stat in shelf.list_now(CHECKPOINTS) if stat.name.endswith(_SUFFIX)]
        return sorted(found, key=lambda stat: stat.modified_s, reverse=True)

    def _load_checkpoints(self, shelf: Shelf) -> None:
        for stat in self._checkpoints(shelf)[:_LOADED_CHECKPOINTS]:
            loaded = shelf.load(stat.name)
            if loaded is None:
                continue
            try:
                self._stock.catalogue.restore(index_checkpoint.decode(loaded.data), shelf.level)
            except BadCheckpoint as error:
                self._stock.tally.add("corrupt", "checkpoint")
                log.warning("tier=%s checkpoint=%s ignored: %s", shelf.label, stat.name, error)
            finally:
                loaded.free()
