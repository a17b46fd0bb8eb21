"""One model's sequence state taken apart into rows and a checkpoint, and put together again. The
bytes themselves are in `state_bytes.py`.

`KvCodec.learn` takes the shapes from a state of a few tokens; everything later must match them to
the byte. That is the second line of defence behind digest and namespace of a file. llama.cpp
refuses much by itself, but a recurrent state of two cells ends the process, one at a negative
position stays in the context for ever (no removal reaches it), and a cache with positions missing
is taken without a word. Rows cannot do harm, because all numbers around them are written here.

A checkpoint is the part that LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY gives, without head, stream count,
empty streams and sequence id: it does not depend on how many sequences the context has.

Pure: no llama.cpp here. A `KvCodec` is immutable and safe from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from erllama.kv.layout import KvKind, KvLayout, KvReading, Rows
from erllama.kv.state_bytes import (
    CELL,
    HEAD,
    U32,
    CacheShape,
    Cursor,
    KvUnreadable,
    StateShape,
    Stream,
    UnknownLayout,
    read_cache,
    read_cell,
    read_head,
    read_stream,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelTraits:
    """What llama.cpp's API tells of a model and its context. `window`: tokens of the sliding
    window, 0 without one.
    """

    n_stream: int
    recurrent: bool = False
    hybrid: bool = False
    window: int = 0
    several_positions: bool = False

    @property
    def kind(self) -> KvKind:
        if self.recurrent:
            return KvKind.RECURRENT
        if self.hybrid:
            return KvKind.HYBRID
        return KvKind.WINDOW if self.window else KvKind.ATTENTION


@dataclass(frozen=True, slots=True)
class KvCodec:
    """The layout of one model in one context. `cache` holds the rows, `tail` is what a checkpoint
    is made of.
    """

    layout: KvLayout
    traits: ModelTraits
    cache: CacheShape | None = None
    tail: CacheShape | StateShape | None = None

    @classmethod
    def opaque(cls, traits: ModelTraits, problem: str) -> KvCodec:
        return cls(KvLayout(KvKind.OPAQUE, problem=problem), traits)

    @classmethod
    def learn(cls, whole: Rows, partial: Rows, traits: ModelTraits, n_tokens: int) -> KvCodec:
        """From the state of sequence 0 after `n_tokens`, whole and PARTIAL_ONLY. What is not
        understood gives an opaque codec.
        """
        if traits.kind is KvKind.WINDOW and len(partial) == len(whole):
            # a window that llama.cpp does not apply: all layers are in one plain cache
            traits = replace(traits, window=0)
        try:
            codec = cls._learn(whole, partial, traits)
            codec.parse(whole, 0, n_tokens)
        except UnknownLayout as unknown:
            return cls.opaque(traits, unknown.message)
        return codec

    @classmethod
    def _learn(cls, whole: Rows, partial: Rows, traits: ModelTraits) -> KvCodec:
        if traits.several_positions:
            raise UnknownLayout("extended_cells: tokens have several positions each (M-RoPE)")
        if traits.window and (traits.recurrent or traits.hybrid):
            raise UnknownLayout("three_parts: recurrent layers beside a sliding window")
        cache: CacheShape | None = None
        tail: CacheShape | StateShape | None = None
        n_tail = len(partial) - HEAD.size if traits.kind.has_checkpoint else 0
        split = len(whole) - n_tail
        if (
            n_tail < 0
            or split < HEAD.size
            or not np.array_equal(whole[split:], partial[HEAD.size : HEAD.size + n_tail])
        ):
            raise UnknownLayout("parts: the partial state is not the end of the whole one")
        if traits.kind is not KvKind.RECURRENT:
            cache = _learn_cache(whole[:split], traits.n_stream)
        if traits.kind is KvKind.WINDOW:
            tail = _learn_cache(partial, traits.n_stream)
        elif traits.kind.has_checkpoint:
            cursor = Cursor(partial, HEAD.size)
            tail = read_cell(cursor)[1]
        return cls(_layout(traits.kind, cache), traits, cache, tail)

    # --- reading ----------------------------------------------------------------------------------

    def parse(self, state: Rows, seq_id: int, n_tokens: int) -> KvReading:
        """Raises `KvUnreadable` unless this is the whole state of the sequence at exactly this
        length.
        """
        self.check_readable()
        cursor = Cursor(state)
        read_head(cursor, seq_id)
        columns: tuple[Rows, ...] = ()
        order = None
        if self.cache is not None:
            stream = read_cache(cursor, self.traits.n_stream, seq_id, self.cache)
            order = _order(stream.positions, n_tokens)
            columns = self.columns(state[stream.start : stream.stop], n_tokens)
        checkpoint = None if self.tail is None else self._read_tail(cursor, seq_id, n_tokens)
        cursor.check_end()
        return KvReading(n_tokens, columns, order, checkpoint)

    def parse_checkpoint(self, state: Rows, seq_id: int, n_tokens: int) -> Rows:
        """The checkpoint in a PARTIAL_ONLY state. Like `parse` it writes 0 over the sequence ids in
        there.
        """
        self.check_readable()
        cursor = Cursor(state)
        read_head(cursor, seq_id)
        checkpoint = self._read_tail(cursor, seq_id, n_tokens)
        cursor.check_end()
        return checkpoint

    def check_readable(self) -> None:
        if self.layout.kind is KvKind.OPAQUE:
            raise KvUnreadable(f"the state of this model cannot be read as rows: {self.layout.problem}")

    def _read_tail(self, cursor: Cursor, seq_id: int, n_tokens: int) -> Rows:
        start = cursor.at
        if isinstance(self.tail, CacheShape):
            stream = read_cache(cursor, self.traits.n_stream, seq_id, self.tail)
            checkpoint = cursor.data[stream.start : stream.stop]
            n_cells = len(stream.positions)
            checkpoint[U32.size : U32.size + n_cells * CELL.itemsize].view(CELL)["seq"] = 0
            found = self._window_tokens(stream)
        else:
            found = read_cell(cursor, self.tail)[0] + 1
            checkpoint = cursor.data[start : cursor.at]
        if found != n_tokens:
            raise UnknownLayout(f"positions: a checkpoint after {found} tokens, expected {n_tokens}")
        return checkpoint

    def _window_tokens(self, stream: Stream) -> int:
        """Tokens of the sequence when this window was taken; its positions must be the last ones,
        without a gap.
        """
        positions = np.sort(stream.positions)
        n_cells, n_tokens = len(positions), int(positions[-1]) + 1
        # a sliding window, a chunk (llama4)
        in_full = min(n_tokens, self.traits.window), (n_tokens - 1) % self.traits.window + 1
        if (
            n_tokens < 1
            or n_cells not in in_full
            or not np.array_equal(positions, np.arange(n_tokens - n_cells, n_tokens))
        ):
            raise UnknownLayout(
                f"positions: a window of {n_cells} cells that are not the last positions up to {n_tokens - 1}"
            )
        return n_tokens

    def checkpoint_tokens(self, data: Rows) -> int:
        """After how many tokens a checkpoint was taken. Raises `UnknownLayout` unless llama.cpp
        would take it.
        """
        cursor = Cursor(data)
        if isinstance(self.tail, CacheShape):
            n_tokens = self._window_tokens(read_stream(cursor, 0, self.tail))
        elif self.tail is not None:
            n_tokens = read_cell(cursor, self.tail)[0] + 1
        else:
            raise UnknownLayout(f"checkpoint: {self.layout.kind} models have none")
        cursor.check_end()
        return n_tokens

    # --- places in a state of n cells -------------------------------------------------------------

    def columns(self, stream: Rows, n_cells: int) -> tuple[Rows, ...]:
        """Per column a view of its rows within a stream of the cache, in the order of the cells."""
        if self.cache is None:
            return ()
        places = zip(_by_layer(self.cache.offsets(n_cells), self.cache), self.layout.row_bytes, strict=True)
        return tuple(stream[at : at + n_cells * size].reshape(n_cells, size) for at, size in places)

    @property
    def empty_streams_bytes(self) -> int:
        return U32.size * (self.traits.n_stream - 1)

    def checkpoint_at(self, n_tokens: int) -> int:
        """Where the checkpoint begins, or the state ends."""
        at = HEAD.size
        if self.cache is not None:
            at += U32.size + self.cache.size(n_tokens) + self.empty_streams_bytes
        return at + (U32.size if isinstance(self.tail, CacheShape) else 0)

    def state_bytes(self, n_tokens: int) -> int:
        """The most that the state of a sequence of this length takes."""
        at = self.checkpoint_at(n_tokens)
        if isinstance(self.tail, CacheShape):
            return at + self.tail.size(min(n_tokens, self.traits.window)) + self.empty_streams_bytes
        return at + (0 if self.tail is None else self.tail.size)


def _learn_cache(state: Rows, n_stream: int) -> CacheShape:
    cursor = Cursor(state, HEAD.size)
    shape = read_cache(cursor, n_stream, 0).shape
    cursor.check_end()
    return shape


def _layout(kind: KvKind, cache: CacheShape | None) -> KvLayout:
    if cache is None:
        return KvLayout(kind)
    names = [f"{part}{layer}" for part in "kv" for layer in range(cache.n_layer)][: len(cache.fields)]
    return KvLayout(kind, _by_layer(names, cache), _by_layer([field.row_bytes for field in cache.fields], cache))


def _by_layer(items: Sequence[T], cache: CacheShape) -> tuple[T, ...]:
    """From the order of the bytes (all K, all V) to that of the columns (k0, v0, k1, ...)."""
    return tuple(items[at] for layer in range(cache.n_layer) for at in range(layer, len(items), cache.n_layer))


def _order(positions: NDArray[np.int32], n_tokens: int) -> NDArray[np.intp] | None:
    wanted = np.arange(n_tokens)
    if np.array_equal(positions, wanted):
        return None
    order = np.argsort(positions)
    if not np.array_equal(positions[order], wanted):
        raise UnknownLayout(f"positions: {len(positions)} cells that are not positions 0 to {n_tokens - 1}, each once")
    return order
