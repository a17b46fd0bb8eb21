"""What crosses the store's door: plans, results, statistics. Frozen; times in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import BlockId
from cache_store.format.keys import ChainKey, TokenChain
from cache_store.index.walk import Hop


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What could be restored. A promise of nothing: objects may be gone when they are read.

    `ends` begins with the END object at n_tokens: the checkpoint of a model that needs one
    (`need_end`), before shorter choices, longest first; else stored logits for the whole prompt,
    or nothing. `chain` is the whole prompt, of which the first n_tokens are stored. `n_known` of it
    are in the index, also those that no tier can be asked for now; `branch` are the ids that follow
    them on the stored prefix that shares most, as far as they are known: none where it ends.
    """

    chain: TokenChain
    n_tokens: int
    hops: tuple[Hop, ...]
    ends: tuple[BlockId, ...]
    estimated_s: float
    need_end: bool
    n_known: int
    branch: NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """What `read` brought. `n_tokens` may be used; with `need_end` the rows that `consume` saw may
    reach further.

    `logits` and `checkpoint` (copies) belong to exactly n_tokens; None if there are none. `tier` is
    the slowest one used ("" for none).
    """

    n_tokens: int
    logits: NDArray[np.float32] | None
    checkpoint: NDArray[np.uint8] | None
    seconds: float
    tier: str


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The longest stored prefix of one branch, as `list_cached_prefixes` shows it. `last_used_s` is
    unix seconds; `head` are its first token ids, as far as the index knows them; `pins` names the
    pins that keep all of it.
    """

    root: ChainKey
    key: ChainKey
    n_tokens: int
    tiers: tuple[str, ...]
    n_bytes: int
    hits: int
    last_used_s: float = 0.0
    head: tuple[int, ...] = ()
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PinInfo:
    """A pin as it is told: until `expires_s` (unix) the objects of the prefix `key` stay in `tiers`,
    those of the tiers into which it fits. `n_bytes` is what is stored of it.
    """

    name: str
    owner: str
    root: ChainKey
    key: ChainKey
    n_tokens: int
    expires_s: float
    n_bytes: int
    tiers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import published: the prefix `key` of `n_tokens`, in `n_objects` of `n_bytes` as they
    lay in the file.
    """

    root: ChainKey
    key: ChainKey
    n_tokens: int
    n_objects: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class GarbageReport:
    """What a garbage collection did. Bytes are those of objects, as the index counts them after it
    was brought up to date.

    `is_done`: the tier holds at most `target_bytes` (None: it has no budget) and was listed. Else
    `failure` tells why not; "" when what is left may not go. `evicted_bytes` counts what this
    collection deleted, not what was gone already. `swept`: files of dead writers, and objects of an
    older format.
    """

    n_bytes: int
    target_bytes: int | None
    evicted: int
    evicted_bytes: int
    swept: int
    is_done: bool
    failure: str = ""


@dataclass(frozen=True, slots=True)
class TierStats:
    """`available`: neither the tier nor writing to it is left alone after failures."""

    label: str
    n_bytes: int
    objects: int
    max_bytes: int | None
    read_bytes: int
    written_bytes: int
    read_bytes_per_s: float
    read_latency_s: float
    hits: int
    errors: int
    available: bool


@dataclass(frozen=True, slots=True)
class StoreStats:
    """`saved` by reason of the save; `dropped` and `evicted` by cause; `corrupt` by `Damage`.
    Counts since start.
    """

    tiers: tuple[TierStats, ...]
    queue_bytes: int
    pending: int
    saved: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    corrupt: dict[str, int] = field(default_factory=dict)
    evicted: dict[str, int] = field(default_factory=dict)
    probes: int = 0
    hit_tokens: int = 0
    looked_up_tokens: int = 0
