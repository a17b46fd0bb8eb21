"""Claims: "I am computing these blocks", so that two replicas of one node that need a prefix at the
same moment compute it once.

A claim is a small file in the first local tier, `claims/<first key>.<owner>`: JSON with `keys`,
`expires_s` (unix seconds) and `owner`. There are as many as prefills under way on the machine, so
who wants to know lists and reads them all. A claim is a hint, never a lock: two may claim at once
(both compute and save the same bytes), and a claimer that dies costs the others at most the expiry.
One that has expired, that expires further ahead than anyone may ask for, or that cannot be read
does not count and is swept. Without a local tier nobody sees claims.

Any thread; calls take a deadline (monotonic ns) and never raise for what a file system does.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cache_store.errors import StoreError
from cache_store.format.keys import ChainKey
from cache_store.tiers.guarded import GuardedTier, Loaded

PREFIX = "claims/"
LONGEST_S = 600.0  # nobody may claim for longer; what lies further ahead was written by a broken clock
_MAX_BYTES = 1 << 20  # the keys of 4 million tokens


@dataclass(frozen=True, slots=True)
class _Claim:
    """`left_s` is 0.0 for a claim that does not count."""

    owner: str
    keys: frozenset[str]
    left_s: float


_NONE = _Claim("", frozenset(), 0.0)


class Claims:
    """`unix_s` is the wall clock: the only one that processes share."""

    def __init__(self, tier: GuardedTier | None, owner: str, unix_s: Callable[[], float]) -> None:
        self.tier = tier
        self._owner = owner
        self._unix_s = unix_s
        self._lock = threading.Lock()
        self._ours: set[str] = set()

    def claim(self, keys: Sequence[ChainKey], expires_s: float, deadline_ns: int) -> bool:
        """Say that we compute the blocks `keys`, for `expires_s` from now. False when someone else
        says so of the first.
        """
        if not keys or self.tier is None or not self.tier.available:
            return True
        if self.claimed(keys[0], deadline_ns) > 0:
            return False
        content = {"keys": list(keys), "expires_s": self._unix_s() + min(expires_s, LONGEST_S), "owner": self._owner}
        name = self._name(keys[0])
        with self._lock:
            self._ours.add(name)
        try:
            self.tier.publish(name, memoryview(json.dumps(content).encode()), deadline_ns)
        except StoreError:
            return True  # unseen, but nobody else's
        return True

    def claimed(self, key: ChainKey, deadline_ns: int) -> float:
        """Seconds for which someone else's claim still counts; 0.0 when there is none."""
        if self.tier is None or not self.tier.available:
            return 0.0
        try:
            names = [stat.name for stat in self.tier.listing(PREFIX, deadline_ns)]
            others = [self._read(self.tier, name, deadline_ns) for name in names if not name.endswith(self._owner)]
        except StoreError:
            return 0.0
        return max((claim.left_s for claim in others if key in claim.keys), default=0.0)

    def release(self, keys: Sequence[ChainKey], deadline_ns: int) -> None:
        """Take back our claims that begin with one of `keys`."""
        self._release({self._name(key) for key in keys}, deadline_ns)

    def release_all(self, deadline_ns: int) -> None:
        with self._lock:
            names = set(self._ours)
        self._release(names, deadline_ns)

    def sweep(self) -> int:
        """Remove claims that do not count. Background; raises `TierError`."""
        if self.tier is None:
            return 0
        n_removed = 0
        for found in self.tier.list_now(PREFIX):
            if self._judge(self.tier.load(found.name, _MAX_BYTES)).left_s <= 0:
                n_removed += self.tier.delete_now(found.name)
        return n_removed

    def _release(self, names: set[str], deadline_ns: int) -> None:
        with self._lock:
            names &= self._ours
            self._ours -= names
        if self.tier is None or not self.tier.available:
            return
        for name in names:
            try:
                self.tier.delete(name, deadline_ns)
            except StoreError:
                return  # they expire by themselves

    def _name(self, key: ChainKey) -> str:
        return f"{PREFIX}{key}.{self._owner}"

    def _read(self, tier: GuardedTier, name: str, deadline_ns: int) -> _Claim:
        return self._judge(tier.wait(tier.start_read(name, _MAX_BYTES), deadline_ns))

    def _judge(self, loaded: Loaded | None) -> _Claim:
        if loaded is None:
            return _NONE
        try:
            content = json.loads(bytes(loaded.data))
            left_s = float(content["expires_s"]) - self._unix_s()
            claim = _Claim(str(content["owner"]), frozenset(map(str, content["keys"])), left_s)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return _NONE
        finally:
            loaded.free()
        return claim if 0.0 < left_s <= LONGEST_S else _NONE
