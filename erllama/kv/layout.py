"""The KV of a sequence as rows: what a backend reads out and puts back, whatever llama.cpp's own
layout is.

A model is of one kind, and nothing above the codec needs to know more than this about its layers:

    ATTENTION  every layer's rows can be cut at any token
    WINDOW     full-attention layers have rows; layers with a sliding window only a checkpoint
    RECURRENT  a checkpoint only, no rows
    HYBRID     attention layers have rows; recurrent layers a checkpoint
    OPAQUE     a layout that the codec refuses: served, never stored or restored (`KvLayout.problem`
               says why)

Rows are bytes: (n_tokens, row_bytes) uint8 per column, by position. A checkpoint is opaque and
belongs to exactly one position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.uint8]


class KvKind(StrEnum):
    ATTENTION = "attention"
    WINDOW = "window"
    RECURRENT = "recurrent"
    HYBRID = "hybrid"
    OPAQUE = "opaque"

    @property
    def cuttable(self) -> bool:
        """Whether a prefix of any length can be taken from a longer state."""
        return self is KvKind.ATTENTION

    @property
    def has_checkpoint(self) -> bool:
        return self in (KvKind.WINDOW, KvKind.RECURRENT, KvKind.HYBRID)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """`columns` name the row buffers in order ("k0", "v0", "k1", ...), `row_bytes` their bytes per
    token.
    """

    kind: KvKind
    columns: tuple[str, ...] = ()
    row_bytes: tuple[int, ...] = ()
    problem: str = ""

    @property
    def bytes_per_token(self) -> int:
        return sum(self.row_bytes)

    def positions_of(self, start: int, columns: tuple[str, ...], rows: tuple[Rows, ...], n_room: int) -> slice:
        """Where rows from position `start` on go. Raises `ValueError` when columns, row bytes or
        positions do not fit into a state with room for `n_room` tokens.
        """
        if columns != self.columns or len(rows) != len(columns):
            raise ValueError(f"{len(rows)} rows of columns {columns} do not fit, expected {self.columns}")
        n_rows = len(rows[0]) if rows else 0
        if start < 0 or start + n_rows > n_room:
            raise ValueError(f"{n_rows} rows from position {start} do not fit into {n_room} tokens")
        for name, row_bytes, source in zip(columns, self.row_bytes, rows, strict=True):
            if source.shape != (n_rows, row_bytes) or source.dtype != np.uint8:
                raise ValueError(
                    f"column {name} has {source.dtype} of shape {source.shape}, expected {n_rows} rows of "
                    f"{row_bytes} bytes"
                )
        return slice(start, start + n_rows)


@dataclass(frozen=True, slots=True)
class KvReading:
    """The state of one sequence of `n_tokens` as it was read out. Views of the backend's buffer:
    valid until the backend's next call.

    `columns` hold a row per cell; `order` is the cell of each position, None where that is the
    position itself. `checkpoint` is the one at position n_tokens, 1-D; None for kinds without one.
    """

    n_tokens: int
    columns: tuple[Rows, ...]
    order: NDArray[np.intp] | None
    checkpoint: Rows | None

    def rows(self, start: int, stop: int) -> tuple[Rows, ...]:
        """Per column the rows of positions start .. stop - 1, shape (stop - start, row_bytes)."""
        assert 0 <= start <= stop <= self.n_tokens, (start, stop, self.n_tokens)
        at = slice(start, stop) if self.order is None else self.order[start:stop]
        return tuple(column[at] for column in self.columns)


class KvImage(Protocol):
    """A state under assembly, to be put into a sequence. Owned by one thread at a time, but for
    `memory`. Rows come by `put`, or into what `memory` lends (a `Destination` of the store).
    """

    def put(self, start: int, columns: tuple[str, ...], rows: tuple[Rows, ...]) -> None:
        """Copy rows of positions start .. into place. Raises `ValueError` when they do not fit."""

    def memory(
        self, start: int, n_tokens: int, columns: Sequence[str], row_bytes: Sequence[int]
    ) -> Sequence[memoryview] | None:
        """Where rows of positions start .. go, to be written there by anyone; None when they do not fit,
        or where rows have no place of their own. Any thread.
        """

    def received(self, start: int, n_tokens: int) -> None:
        """All rows of these positions are written, and may be used."""

    def abandon(self) -> None:
        """Somebody may still write into `memory` that was lent: from now on the image is elsewhere."""

    def put_checkpoint(self, data: Rows) -> None:
        """Copy a checkpoint into place. Raises `ValueError` when the codec does not recognise
        it.
        """

    def close(self) -> None:
        """Give the buffer back. Idempotent."""
