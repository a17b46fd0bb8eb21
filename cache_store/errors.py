"""Every error that leaves the store.

File systems raise `OSError` (and, for object stores, whatever their fsspec driver raises): the
methods of a `Tier` let those through as `TierError`.
"""

from __future__ import annotations

from enum import StrEnum


class StoreError(Exception):
    """Base class."""


class Damage(StrEnum):
    """What is wrong with an object; the counter of corrupt rows is kept by these."""

    SHORT = "short"  # truncated, empty
    NOT_ARROW = "not_arrow"  # not an Arrow file of ours
    VERSION = "version"  # another format version
    MISLABELLED = "mislabelled"  # a good object under another object's name
    DIGEST = "digest"  # some of its bytes do not hash to what the file says


class CorruptBlock(StoreError):
    """An object does not verify. Readers count a miss and remove it."""

    def __init__(self, reason: Damage, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class TierError(StoreError):
    """A file system refused, failed or did not answer in time; the cause is chained."""


class StoreFull(StoreError):
    """No room in a tier, and nothing in it that may be evicted."""


class BadTransfer(StoreError):
    """The file of an exported prefix is cut or damaged, or of another model, build or tenant."""


class StoreClosed(StoreError):
    """The store has been closed and takes no more work."""
