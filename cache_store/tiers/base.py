"""What every tier is: a place of immutable objects under names, and the few types its callers share
with it.

A name is a relative path with `/` between its parts; a part never begins with `.` (those are a
tier's own temp files). Objects are content-addressed: two publishers of one name hold the same
bytes, so the last one may win. Listings are hints, never truth. Nothing here verifies content:
whoever reads does.

All methods of a tier are thread-safe; a `ReadBuffer` belongs to one thread at a time. Sizes are
bytes, times unix seconds by the clock of the file system.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cache_store.errors import TierError

MISSING = (FileNotFoundError, NotADirectoryError)
TEMP_PREFIX = ".tmp-"
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_ALIGN = 64  # what Arrow wants of its buffers
_SMALLEST = 1 << 16
_LARGEST = 4 << 30  # keeps a damaged (sparse) file from taking all memory


class NoSpace(TierError):
    """The file system is full, or the quota is used up."""


@dataclass(frozen=True, slots=True)
class Stat:
    """An object as its file system lists it."""

    name: str
    n_bytes: int
    modified_s: float


class ReadBuffer:
    """Memory that reads go into and that is used again: the first touch of fresh memory costs about
    2 ms per MB, reading over it 0.1.

    One thread at a time. A view is valid until the next `take`.
    """

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def take(self, n_bytes: int) -> memoryview:
        """A writable view of `n_bytes`, aligned for Arrow; its content is what was there before."""
        if n_bytes > _LARGEST:
            raise TierError(f"an object of {n_bytes} bytes exceeds the limit of {_LARGEST} bytes for one read")
        if n_bytes > len(self._memory):
            self._memory = _aligned(max(_SMALLEST, 1 << (n_bytes - 1).bit_length()))
        return self._memory[:n_bytes]


def _aligned(n_bytes: int) -> memoryview:
    memory = np.empty(n_bytes + _ALIGN, np.uint8)
    skip = -memory.ctypes.data % _ALIGN
    return memory[skip : skip + n_bytes].data


class Placer(Protocol):
    """Takes a span out of the middle of an object that is read, so that it need not pass through the
    reader's buffer. One object, one thread.
    """

    @property
    def memory(self) -> Sequence[memoryview]:
        """Where the span goes, one piece behind the other; none where nothing was placed."""

    def place(self, head: memoryview, n_bytes: int) -> int | None:
        """Where in an object of `n_bytes`, which begins with `head`, the span begins: inside of `head`
        or at its end. None: the object is wanted whole, as without a placer.
        """

    @property
    def seen(self) -> Callable[[memoryview], object]:
        """To be called with each part of `memory` that is filled, in order, and at once: its bytes are
        in the core's cache.
        """


class Tier(Protocol):
    """One directory-like place of objects. A failure of the file system is a `TierError`; a missing
    object is not a failure.
    """

    @property
    def url(self) -> str:
        """Where it is; holds no credentials."""

    @property
    def label(self) -> str:
        """For logs and metrics: "ram_file", "disk", "memory", or the scheme of its URL ("s3")."""

    @property
    def local(self) -> bool:
        """On this machine, reached by system calls."""

    @property
    def max_bytes(self) -> int | None:
        """The budget it was configured with; whoever fills the tier keeps it."""

    def read(
        self, name: str, buffer: ReadBuffer, head_bytes: int | None = None, placer: Placer | None = None
    ) -> memoryview | None:
        """The object, or at most its first `head_bytes`; None when there is none. Valid until
        `buffer` is used again. An object cut while it is read comes short.

        A tier may ask `placer`, whose span then goes where it says and is missing in the result.
        """

    def publish(self, name: str, data: memoryview) -> None:
        """Make the object visible, whole or not at all; an existing one is replaced atomically.

        `NoSpace` when the file system is full. After a failure nothing new is left behind, but the
        object may be visible if the failure came last (it is whole then).
        """

    def delete(self, name: str) -> bool:
        """False when it was not there. Two callers at once may both see True on an object store."""

    def stat(self, name: str) -> Stat | None:
        """None when there is no such object."""

    def list(self, prefix: str = "") -> Iterator[Stat]:
        """Objects whose name starts with `prefix`, foreign files included, temp files not. What
        vanishes meanwhile may appear or not.
        """

    def sweep(self, older_than_s: float) -> int:
        """Remove what dead writers left behind, at least `older_than_s` old; the number of files
        removed. Safe beside live writers.
        """

    def close(self) -> None:
        """Let go of connections. Idempotent; later calls fail or work, as the tier needs."""


def check_name(name: str) -> str:
    """`name`, or ValueError: a name that leaves the tier or hides in it is a bug of a caller."""
    if any(not part or part.startswith(".") for part in name.split("/")) or "\0" in name:
        raise ValueError(f"not a name of an object: {name!r}")
    return name


def split_prefix(prefix: str) -> tuple[str, str]:
    """The directory of all names that start with `prefix`, and how the entries in it start."""
    directory, _, name_prefix = prefix.rpartition("/")
    if directory:
        check_name(directory)
    return directory, name_prefix


def is_hidden(name: str) -> bool:
    """Not an object: a temp file, or something below a hidden directory."""
    return name.startswith(".") or "/." in name


def temp_path(directory: str) -> str:
    return f"{directory}/{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"


@contextmanager
def tier_errors(tier: Tier, operation: str, name: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """What of `kind` is raised inside leaves as `TierError`, or as `NoSpace`."""
    try:
        yield
    except TierError:
        raise
    except kind as failure:
        is_full = isinstance(failure, OSError) and failure.errno in _NO_SPACE
        told = f"{operation} {name or '(everything)'} in {tier.url}: {failure or type(failure).__name__}"
        raise (NoSpace if is_full else TierError)(told) from failure
