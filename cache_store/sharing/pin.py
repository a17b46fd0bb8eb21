"""A pin: "these objects stay", by name, for an owner, until a time. The value, its file, and which
pins hold in a tier. Pure.

A pin is a small immutable object in the tiers, `pins/<digest of owner and name>-<when made>-<random>`:
JSON with the fields of `Pin`. Whoever pins the same name again, or takes a pin back (`revoked`), makes
a newer object: of those of one name the newest counts, wherever it lies. So a pin that was taken back
does not return from a tier that the one who took it back could not reach. An object that has expired
does not count, which is also the end of a revocation.

Pins hold in a tier with a budget as long as they fit into a share of it, so that a tier can always
evict. What is beyond an owner's quota goes first, its oldest pins before newer ones; what is beyond
the share is taken from whoever has most.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import ChainKey

PREFIX = "pins/"
LONGEST_S = 366 * 86_400.0  # nobody pins for longer; what lies further ahead was written by a broken clock
MAX_BYTES = 8 << 20  # the objects of 10 million tokens
MAX_NAME_CHARS = 256


@dataclass(frozen=True, slots=True)
class Pin:
    """`key` is the prefix of `n_tokens` that is kept, `ids` the objects that hold it; some may not be
    stored yet. Times are unix seconds.
    """

    name: str
    owner: str
    root: ChainKey
    key: ChainKey
    n_tokens: int
    made_s: float
    expires_s: float
    ids: tuple[BlockId, ...] = field(repr=False)
    revoked: bool = False
    rows: tuple[BlockId, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(id for id in self.ids if id.kind is Kind.ROWS))

    def covers(self, other: Pin) -> bool:
        """Whether it keeps all rows of another pin: a name stands for everything before it, too."""
        n = len(other.rows)
        return n == 0 or (n <= len(self.rows) and self.rows[n - 1] == other.rows[n - 1])

    @property
    def of(self) -> tuple[str, str]:
        """Owner and name: what tells pins apart."""
        return self.owner, self.name

    def object_name(self) -> str:
        """A new name for the object of this pin."""
        digest = hashlib.sha256(json.dumps(self.of).encode()).hexdigest()[:32]
        return f"{PREFIX}{digest}-{int(self.made_s * 1e6):016x}-{secrets.token_hex(4)}"

    def counts(self, now_s: float) -> bool:
        return now_s < self.expires_s <= now_s + LONGEST_S


def encode(pin: Pin) -> bytes:
    ids = [[id.kind, id.parent, id.key, id.start, id.n_tokens] for id in pin.ids]
    about = {"name": pin.name, "owner": pin.owner, "root": pin.root, "key": pin.key, "n_tokens": pin.n_tokens}
    times = {"made_s": pin.made_s, "expires_s": pin.expires_s, "revoked": pin.revoked}
    return json.dumps({**about, **times, "ids": ids}, separators=(",", ":")).encode()


def decode(data: bytes) -> Pin | None:
    """The pin in `data`; None for what is none."""
    try:
        found = json.loads(data)
        root = ChainKey(str(found["root"]))
        ids = tuple(
            BlockId(root, Kind(kind), ChainKey(parent), ChainKey(key), int(start), int(n))
            for kind, parent, key, start, n in found["ids"]
        )
        if any(BlockId.parse(id.name) != id for id in ids):
            return None
        made_s, expires_s = float(found["made_s"]), float(found["expires_s"])
        if not (math.isfinite(made_s) and math.isfinite(expires_s)):
            return None
        name, owner = str(found["name"]), str(found["owner"])
        key, n_tokens = ChainKey(str(found["key"])), int(found["n_tokens"])
        return Pin(name, owner, root, key, n_tokens, made_s, expires_s, ids, found["revoked"] is True)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, AttributeError):
        return None


def newest(pins: Iterable[Pin], now_s: float) -> list[Pin]:
    """The pins that count, oldest first: of each owner's name the newest one, unless it is revoked."""
    latest: dict[tuple[str, str], Pin] = {}
    for pin in pins:
        other = latest.get(pin.of)
        if pin.counts(now_s) and (other is None or (pin.made_s, pin.revoked) > (other.made_s, other.revoked)):
            latest[pin.of] = pin
    return sorted((pin for pin in latest.values() if not pin.revoked), key=lambda pin: (pin.made_s, pin.of))


class _Kept:
    """Objects that some pins name, each counted once."""

    def __init__(self, size_of: Callable[[BlockId], int]) -> None:
        self._size_of = size_of
        self._n_pins: Counter[BlockId] = Counter()
        self.pins: list[Pin] = []
        self.n_bytes = 0

    def add(self, pin: Pin) -> None:
        self.pins.append(pin)
        for id in pin.ids:
            self.n_bytes += 0 if self._n_pins[id] else self._size_of(id)
            self._n_pins[id] += 1

    def remove(self, pin: Pin) -> None:
        self.pins.remove(pin)
        for id in pin.ids:
            self._n_pins[id] -= 1
            self.n_bytes -= 0 if self._n_pins[id] else self._size_of(id)


def holding(
    pins: Iterable[Pin], size_of: Callable[[BlockId], int], max_bytes: float, owner_bytes: float = math.inf
) -> list[Pin]:
    """Those of `pins` (oldest first) that hold in a tier that gives `max_bytes` to pins, at most
    `owner_bytes` to those of one owner. `size_of` an object that is not there is 0.
    """
    limit = min(max_bytes, owner_bytes)
    by_owner: dict[str, _Kept] = {}
    together = _Kept(size_of)
    for pin in pins:
        if sum(map(size_of, pin.ids)) > limit:
            continue  # it alone would be too much: the others need not go for it
        own = by_owner.setdefault(pin.owner, _Kept(size_of))
        own.add(pin)
        together.add(pin)
        while own.n_bytes > owner_bytes:
            together.remove(oldest := own.pins[0])
            own.remove(oldest)
    while together.n_bytes > max_bytes:
        most = max(by_owner.values(), key=lambda own: own.n_bytes)
        together.remove(oldest := most.pins[0])
        most.remove(oldest)
    return together.pins
