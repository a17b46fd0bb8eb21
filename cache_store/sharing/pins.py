"""The pins that this process knows, and how it learns of those that others made.

A pin that is made here holds here at once. It is published in every tier that can be written: by
`publish` for a caller who waits, else by the maintenance thread within a second. Others learn it where
they would evict: before a process evicts from a tier, or collects its garbage, it lists the pins of
that tier (`before_evicting`). The maintenance thread lists the other tiers now and then, since a pin
that a shared tier told counts in the private ones, too. A tier that fails costs nothing but news.

Objects that do not count any more are deleted by whoever lists them. `pin.py` says what a pin is and
which ones hold. Any thread; the lock is held for bookkeeping only.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial

from cache_store.errors import StoreError, StoreFull
from cache_store.records import PinInfo
from cache_store.sharing.pin import MAX_BYTES, PREFIX, Pin, decode, encode, holding, newest
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.stack import TierStack

log = logging.getLogger("cache_store")

_MOST_WANTED = 1024  # pins that wait to be made
_EVICTIONS_APART_S = 5.0  # sizes of what is pinned change as it is saved: how old the last look at them may be
_RENEW_SHARE = 0.2  # of its life: a pin that ends so little sooner or later than it should is left as it is


class Pins:
    """`share` of a tier's budget may be pinned, `owner_bytes` of it by one owner. `unix_s` is the wall
    clock, `clock` is monotonic, in ns.
    """

    def __init__(
        self,
        stack: TierStack,
        unix_s: Callable[[], float],
        clock: Callable[[], int],
        share: float,
        owner_bytes: int | None,
    ) -> None:
        self._stack = stack
        self._unix_s = unix_s
        self._clock = clock
        self._share = share
        self._owner_bytes = math.inf if owner_bytes is None else owner_bytes
        self._lock = threading.Lock()
        self._found: list[dict[str, Pin]] = [{} for _ in stack.tiers]  # by the name of the object
        self._pending: list[dict[str, Pin]] = [{} for _ in stack.tiers]  # ours, not published in that tier
        self._superseded: set[str] = set()  # names of objects that a pin of ours stands for now
        self._wanted: deque[Callable[[], object]] = deque(maxlen=_MOST_WANTED)
        self._listed_ns: dict[int, int] = {}
        self._judged_ns: int | None = None  # when what holds was found out; None: before the last change

    # --- making -----------------------------------------------------------------------------------

    def later(self, make: Callable[[], object]) -> None:
        """Have `make` called on the maintenance thread, within a second: it makes a pin that nobody waits
        for. The oldest of too many is dropped; what it raises costs the pin.
        """
        if len(self._wanted) == _MOST_WANTED:
            self._stack.tally.add("dropped", "pin")
        self._wanted.append(make)

    def make_wanted(self) -> None:
        """Call what `later` was given. Background."""
        while self._wanted:
            try:
                self._wanted.popleft()()
            except (StoreError, ValueError, IndexError) as error:
                log.info("a prefix was not pinned: %s", error)
                self._stack.tally.add("dropped", "pin")

    def put(self, pin: Pin, *, replaces_parts: bool = False) -> Pin:
        """This pin holds from now on, and is published soon; or the one that is there, if it does as
        well and ends at about the same time. `replaces_parts`: pins of this owner that keep a part of
        the same, and end no later, go. Raises `StoreFull` when it is too large for every tier.
        """
        known = [other for other in self.known() if other.owner == pin.owner]
        for other in known:
            if not pin.revoked and _is_as_good(other, pin, named=not replaces_parts):
                return other
        if not pin.revoked and self._stack.tiers and not any(self._fits(pin, tier) for tier in self._stack.tiers):
            raise StoreFull(f"{self._size(pin)} bytes are more than may be pinned in any tier")
        name = pin.object_name()
        with self._lock:
            for other in known if replaces_parts else ():
                if other.name == other.key and pin.covers(other) and other.expires_s <= pin.expires_s:
                    self._forget(other)
            for pending in self._pending:
                pending[name] = pin
            self._judged_ns = None
        return pin

    def revoke(self, owner: str, name: str) -> bool:
        """Take a pin back; False when there is none."""
        pin = next((pin for pin in self.known() if pin.of == (owner, name)), None)
        if pin is None:
            return False
        made_s = max(self._unix_s(), pin.made_s + 1e-6)
        self.put(Pin(name, owner, pin.root, pin.key, pin.n_tokens, made_s, pin.expires_s, (), revoked=True))
        return True

    def publish(self, deadline_ns: int) -> None:
        """Publish what is pending, in the tiers that take it in time."""
        for tier in self._stack.tiers:
            with suppress(StoreError):
                if tier.writable:
                    tier.run(partial(self.publish_now, tier), deadline_ns)

    def publish_now(self, tier: GuardedTier) -> None:
        """The same in one tier. Background. Raises `TierError`."""
        now_s = self._unix_s()
        with self._lock:
            pending = list(self._pending[tier.index].items())
        for name, pin in pending:
            if pin.counts(now_s):
                tier.publish_now(name, memoryview(encode(pin)))
            with self._lock:
                self._pending[tier.index].pop(name, None)
                self._found[tier.index][name] = pin

    # --- learning ---------------------------------------------------------------------------------

    def refresh(self, tier: GuardedTier) -> None:
        """Learn the pins of a tier, and delete those that do not count any more, if we write there at
        all. Background. Raises `TierError`.
        """
        with self._lock:
            before = dict(self._found[tier.index])
        listed = {stat.name: before.get(stat.name) or self._read(tier, stat.name) for stat in tier.list_now(PREFIX)}
        self._listed_ns[tier.index] = self._clock()
        with self._lock:
            # what was published while the listing ran is not forgotten
            meanwhile = {name: pin for name, pin in self._found[tier.index].items() if name not in before}
            found = {name: pin for name, pin in listed.items() if pin is not None} | meanwhile
            if found != self._found[tier.index]:
                self._found[tier.index], self._judged_ns = found, None
            useless = self._useless(listed)
        for name in useless if tier.counts["written_bytes"] else ():  # a read-only one would count as failing
            tier.delete_now(name)
            with self._lock:
                self._found[tier.index].pop(name, None)

    def before_evicting(self, tier: GuardedTier) -> None:
        """Know what is pinned in `tier`, as far as it can be asked. Background."""
        if tier.local or self.listing_age_s(tier) > _EVICTIONS_APART_S:
            with suppress(StoreError):
                self.refresh(tier)
        self.judge()

    def listing_age_s(self, tier: GuardedTier) -> float:
        listed_ns = self._listed_ns.get(tier.index)
        return math.inf if listed_ns is None else (self._clock() - listed_ns) / 1e9

    def judge(self, *, always: bool = False) -> None:
        """Tell the index which objects are pinned now."""
        now_ns = self._clock()
        with self._lock:
            if not always and self._judged_ns is not None and now_ns - self._judged_ns < _EVICTIONS_APART_S * 1e9:
                return
            self._judged_ns = now_ns
        pins = self.known()
        for tier in self._stack.tiers:
            ids = frozenset(id for pin in self._holding(tier, pins) for id in pin.ids)
            self._stack.index.hold(tier.index, ids)

    # --- knowing ----------------------------------------------------------------------------------

    def known(self) -> list[Pin]:
        """All pins that count, oldest first, whether they fit or not."""
        with self._lock:
            pins = [pin for held in (*self._found, *self._pending) for pin in held.values()]
        return newest(pins, self._unix_s())

    def infos(self) -> tuple[PinInfo, ...]:
        """All pins, oldest first, with what they hold."""
        pins = self.known()
        holds = {tier.label: {pin.of for pin in self._holding(tier, pins)} for tier in self._stack.tiers}
        return tuple(self._info(pin, [label for label, held in holds.items() if pin.of in held]) for pin in pins)

    def info(self, pin: Pin) -> PinInfo:
        """What one pin holds if no other needs the room."""
        return self._info(pin, [tier.label for tier in self._stack.tiers if self._fits(pin, tier)])

    def _info(self, pin: Pin, labels: Iterable[str]) -> PinInfo:
        about = (pin.name, pin.owner, pin.root, pin.key, pin.n_tokens, pin.expires_s)
        return PinInfo(*about, self._size(pin), tuple(labels))

    def _holding(self, tier: GuardedTier, pins: Sequence[Pin]) -> list[Pin]:
        if tier.max_bytes is None:
            return list(pins)
        sizes = self._stack.index.sizes((id for pin in pins for id in pin.ids), tier.index)
        return holding(pins, lambda id: sizes.get(id, 0), tier.max_bytes * self._share, self._owner_bytes)

    def _fits(self, pin: Pin, tier: GuardedTier) -> bool:
        if tier.max_bytes is None:
            return True
        return self._size(pin) <= min(tier.max_bytes * self._share, self._owner_bytes)

    def _size(self, pin: Pin) -> int:
        """Bytes of its objects, each in its fastest tier."""
        return sum(found.n_bytes for found in self._stack.index.stored(pin.ids))

    def _useless(self, listed: dict[str, Pin | None]) -> list[str]:
        """Lock held. Which of the objects of a tier do not count any more. A revocation is of use as long
        as another tier may hold what it revokes.
        """
        now_s, made_s = self._unix_s(), dict[tuple[str, str], float]()  # when the newest pin of a name was made
        for pin in (pin for found in self._found for pin in found.values()):
            made_s[pin.of] = max(pin.made_s, made_s.get(pin.of, pin.made_s))
        return [
            name
            for name, pin in listed.items()
            if name in self._superseded or pin is None or not pin.counts(now_s) or made_s[pin.of] > pin.made_s
        ]

    def _forget(self, pin: Pin) -> None:
        """Lock held."""
        for held in (*self._found, *self._pending):
            for name in [name for name, other in held.items() if other is pin or other == pin]:
                del held[name]
                self._superseded.add(name)

    def _read(self, tier: GuardedTier, name: str) -> Pin | None:
        loaded = tier.load(name, MAX_BYTES)
        if loaded is None:
            return None
        try:
            pin = decode(bytes(loaded.data))
        finally:
            loaded.free()
        if pin is None:
            self._stack.tally.add("corrupt", "pin")
        return pin


def _is_as_good(other: Pin, pin: Pin, *, named: bool) -> bool:
    """Whether `other` does what `pin` would do: as itself (`named`), or under any name."""
    slack_s = _RENEW_SHARE * (pin.expires_s - pin.made_s)
    if named:
        is_same = other.name == pin.name and other.ids == pin.ids
        return is_same and abs(other.expires_s - pin.expires_s) <= slack_s
    return other.expires_s >= pin.expires_s - slack_s and other.covers(pin)
