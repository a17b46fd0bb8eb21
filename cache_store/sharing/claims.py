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
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from cache_store.errors import StoreError
from cache_store.format.keys import ChainKey
from cache_store.tiers.guarded import GuardedTier, Loaded

PREFIX = "claims/"
LONGEST_S = 600.0  # nobody may claim for longer; what lies further ahead was written by a broken clock
_MAX_BYTES = 1 << 20  # the keys of 4 million tokens


class Claims:
    """`unix_s` is the wall clock: the only one that processes share."""

    def __init__(self, tier: GuardedTier | None, owner: str, unix_s: Callable[[], float]) -> None:
        self._tier = tier
        self._owner = owner
        self._unix_s = unix_s
        self._lock = threading.Lock()
        self._ours: set[ChainKey] = set()  # the first keys of our claims

    def claim(self, keys: Sequence[ChainKey], expires_s: float, deadline_ns: int) -> bool:
        """Say that we compute the blocks `keys`, for `expires_s` from now. False when someone else
        says so of the first.
        """
        if not keys or self._tier is None or not self._tier.available:
            return True
        if self.claimed(keys[0], deadline_ns) > 0:
            return False
        if not self._tier.writable:
            return True
        content = {"keys": list(keys), "expires_s": self._unix_s() + min(expires_s, LONGEST_S), "owner": self._owner}
        with self._lock:
            self._ours.add(keys[0])
        with suppress(StoreError):  # then it is unseen, but nobody else's
            self._tier.publish(self._name(keys[0]), memoryview(json.dumps(content).encode()), deadline_ns)
        return True

    def claimed(self, key: ChainKey, deadline_ns: int) -> float:
        """Seconds for which someone else's claim still counts; 0.0 when there is none."""
        if self._tier is None or not self._tier.available:
            return 0.0
        try:
            names = [stat.name for stat in self._tier.listing(PREFIX, deadline_ns)]
            others = [self._read(self._tier, name, deadline_ns) for name in names if not name.endswith(self._owner)]
        except StoreError:
            return 0.0
        return max((left_s.get(key, 0.0) for left_s in others), default=0.0)

    def release(self, keys: Iterable[ChainKey], deadline_ns: int) -> None:
        """Take back our claims that begin with one of `keys`, also where the tier is left alone
        after failed writes: deleting may work, and others would wait for what nobody saves.
        """
        with self._lock:
            ours = self._ours.intersection(keys)
            self._ours -= ours
        if self._tier is None:
            return
        with suppress(StoreError):  # they expire by themselves
            for key in ours:
                self._tier.delete(self._name(key), deadline_ns)

    def release_all(self, deadline_ns: int) -> None:
        self.release(self._ours.copy(), deadline_ns)

    def sweep(self, tier: GuardedTier) -> None:
        """Remove claims that do not count from `tier`. Background; raises `TierError`."""
        if tier is not self._tier:
            return
        for found in tier.list_now(PREFIX):
            if not self._judge(tier.load(found.name, _MAX_BYTES)):
                tier.delete_now(found.name)

    def _name(self, key: ChainKey) -> str:
        return f"{PREFIX}{key}.{self._owner}"

    def _read(self, tier: GuardedTier, name: str, deadline_ns: int) -> dict[str, float]:
        return self._judge(tier.wait(tier.start_read(name, _MAX_BYTES), deadline_ns))

    def _judge(self, loaded: Loaded | None) -> dict[str, float]:
        """For how many seconds each key is still claimed; {} for a claim that does not count."""
        if loaded is None:
            return {}
        try:
            content = json.loads(bytes(loaded.data))
            left_s = float(content["expires_s"]) - self._unix_s()
            return dict.fromkeys(map(str, content["keys"]), left_s) if 0.0 < left_s <= LONGEST_S else {}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return {}
        finally:
            loaded.free()
