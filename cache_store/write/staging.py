"""Memory in which accepted blocks wait for the writer. Bounded, reused, safe to read while it
waits.

`StagingPool.copy` runs on the engine thread between two decodes, so it must not touch fresh memory
where that can be avoided: the first touch costs about 2 ms per MB, a copy into memory that was
touched before 0.2 ms. Buffers are therefore kept after use.

Invariants: bytes in use plus bytes kept never exceed `max_bytes`; a buffer is reused only when its
writer and every reader has released it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_store.format.block import Block

_ALIGN = 64
# capacities are rounded up to 1/8 of a power of two: blocks of nearly one size share buffers
_SIZE_CLASS_BITS = 3


class Staged:
    """A block whose arrays are views of a pool's buffer. Starts with one holder (the writer); the
    last `release` gives the buffer back.
    """

    def __init__(self, pool: StagingPool, memory: NDArray[np.uint8], block: Block) -> None:
        self._pool = pool
        self._memory = memory
        self._holders = 1
        self.block = block

    def hold(self) -> bool:
        """Keep the buffer; False when it is gone already. Every True wants one `release`."""
        with self._pool.lock:
            if self._holders == 0:
                return False
            self._holders += 1
            return True

    def release(self) -> None:
        with self._pool.lock:
            assert self._holders > 0
            self._holders -= 1
            if self._holders == 0:
                self._pool.take_back(self._memory)


class StagingPool:
    def __init__(self, max_bytes: int) -> None:
        self.lock = threading.Lock()
        self._room = threading.Condition(self.lock)
        self._max_bytes = max_bytes
        self._free: list[NDArray[np.uint8]] = []
        self._free_bytes = 0
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def copy(self, block: Block, wait_s: float = 0.0) -> Staged | None:
        """A copy that outlives the caller's buffers; None when the pool stays full for `wait_s`."""
        memory = self._take(sum(_padded(part.nbytes) for part in (block.tokens, *block.payload)), wait_s)
        if memory is None:
            return None
        rest = memory

        def copy_behind(source: NDArray[Any]) -> NDArray[Any]:
            nonlocal rest
            target = rest[: source.nbytes].view(source.dtype).reshape(source.shape)
            rest = rest[_padded(source.nbytes) :]
            target[...] = source
            return target

        return Staged(self, memory, block.with_arrays(copy_behind))

    def take_back(self, memory: NDArray[np.uint8]) -> None:
        """Called by `Staged` under `lock`."""
        self._used_bytes -= memory.nbytes
        self._free_bytes += memory.nbytes
        self._free.append(memory)
        self._room.notify_all()

    def _take(self, n_bytes: int, wait_s: float) -> NDArray[np.uint8] | None:
        capacity = _size_class(n_bytes)
        with self._room:
            if capacity > self._max_bytes or not self._room.wait_for(
                lambda: self._used_bytes + capacity <= self._max_bytes, wait_s
            ):
                return None
            memory = self._reused(capacity)
            if memory is None:
                while self._used_bytes + self._free_bytes + capacity > self._max_bytes:
                    self._free_bytes -= self._free.pop(0).nbytes
            self._used_bytes += capacity if memory is None else memory.nbytes
        return np.empty(capacity, np.uint8) if memory is None else memory

    def _reused(self, capacity: int) -> NDArray[np.uint8] | None:
        for i, memory in enumerate(self._free):
            if capacity <= memory.nbytes <= 2 * capacity and self._used_bytes + memory.nbytes <= self._max_bytes:
                del self._free[i]
                self._free_bytes -= memory.nbytes
                return memory
        return None


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGN) * _ALIGN


def _size_class(n_bytes: int) -> int:
    step = max(4096, 1 << max(0, n_bytes.bit_length() - 1 - _SIZE_CLASS_BITS))
    return max(step, -(-n_bytes // step) * step)


def copied(block: Block) -> Block:
    """A block whose arrays are its own."""
    return block.with_arrays(np.copy)
