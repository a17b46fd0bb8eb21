"""Reads every object of a tier and says which are not what they claim to be.

It reads past any index, and changes nothing unless told to: a store deletes such objects itself when
it meets them, so this is for whoever wants to know before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from cache_store.config import TierConfig
from cache_store.errors import CorruptBlock, TierError
from cache_store.format.block import BlockId
from cache_store.format.file import decode
from cache_store.tiers.base import ReadBuffer, Stat, Tier
from cache_store.tiers.open import open_tier


@dataclass(frozen=True, slots=True)
class Verified:
    """One object. `problem` "" means that all its digests hold. An `outdated` one was written in another
    version of the format; it is not read.
    """

    name: str
    n_bytes: int
    problem: str = ""
    outdated: bool = False


def verify_tier(
    config: TierConfig, *, delete: bool = False, make: Callable[[TierConfig], Tier] = open_tier
) -> Iterator[Verified]:
    """Every object of a tier, in the order of its listing, read as the next one is asked for. With
    `delete` those with a problem go. Raises `TierError` when the tier cannot be used.
    """
    with closing(make(config)) as tier:
        buffer = ReadBuffer()
        for stat in tier.list():
            id = BlockId.parse(stat.name)
            if id is None:
                if BlockId.is_outdated(stat.name):
                    yield Verified(stat.name, stat.n_bytes, outdated=True)
                continue
            problem = _problem(tier, stat, id, buffer)
            if problem and delete:
                tier.delete(stat.name)
            yield Verified(stat.name, stat.n_bytes, problem)


def _problem(tier: Tier, stat: Stat, id: BlockId, buffer: ReadBuffer) -> str:
    try:
        data = tier.read(stat.name, buffer)
        if data is None:  # deleted since it was listed
            return ""
        decode(data, id)
    except (CorruptBlock, TierError) as error:
        return str(error)
    return ""
