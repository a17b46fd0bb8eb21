"""States written by hand from the documented format: what the codec reads, what it writes, and what
it refuses by which name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.kv.codec import KvCodec, ModelTraits
from erllama.kv.image import BufferPool, StateImage
from erllama.kv.layout import KvKind
from erllama.kv.state_bytes import MAGIC, KvUnreadable, UnknownLayout

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
BLOCK = {F32: 4, F16: 2, Q4_0: 18, Q8_0: 34}
WINDOW = 8


def pack(codes: str, *values: int) -> bytes:
    return struct.pack(f"<{codes}", *values)


@dataclass(frozen=True)
class Cache:
    """A cache of `rows[field][position]` (all K, then all V) whose cells hold `positions` in this
    order.
    """

    rows: tuple[np.ndarray, ...]
    type: int
    n_layer: int
    positions: tuple[int, ...]
    n_stream: int = 1
    stream: int = 0
    seq_id: int = 0
    v_trans: int = 0
    ext: bytes = b""
    n_seq: int = 1

    def stream_bytes(self) -> bytes:
        cells = b"".join(pack("iI", p, self.n_seq) + self.ext + pack("i", self.seq_id) for p in self.positions)
        first = min(self.positions)
        fields = (
            pack("iQ", self.type, r.shape[1]) + b"".join(r[p - first].tobytes() for p in self.positions)
            for r in self.rows
        )
        return pack("I", len(self.positions)) + cells + pack("II", self.v_trans, self.n_layer) + b"".join(fields)

    def __bytes__(self) -> bytes:
        streams = [pack("I", 0)] * self.n_stream
        streams[self.stream] = self.stream_bytes()
        return pack("I", self.n_stream) + b"".join(streams)


@dataclass(frozen=True)
class Cell:
    """A recurrent state of one row per field."""

    rows: tuple[np.ndarray, ...]
    position: int
    n_layer: int = 2
    n_cells: int = 1
    n_seq: int = 0
    transposed: int = 0

    def __bytes__(self) -> bytes:
        head = pack("IiIII", self.n_cells, self.position, self.n_seq, self.transposed, self.n_layer)
        return head + b"".join(pack("iQ", F32, len(row)) + row.tobytes() for row in self.rows)


def state(*parts: Cache | Cell, seq_id: int = 0, magic: int = MAGIC) -> np.ndarray:
    return np.frombuffer(bytearray(pack("Ii", magic, seq_id) + b"".join(map(bytes, parts))), dtype=np.uint8)


def random_cache(
    n_tokens: int, *, seed: int = 0, n_layer: int = 2, kind: int = F16, n_stream: int = 1, blocks: int = 3
) -> Cache:
    rng = np.random.default_rng(seed)
    rows = tuple(rng.integers(0, 256, (n_tokens, BLOCK[kind] * blocks), dtype=np.uint8) for _ in range(2 * n_layer))
    return Cache(rows, kind, n_layer, tuple(range(n_tokens)), n_stream)


def random_cell(position: int, seed: int = 0) -> Cell:
    rng = np.random.default_rng(seed)
    return Cell(tuple(rng.integers(0, 256, n, dtype=np.uint8) for n in (24, 24, 64, 64)), position)


def window_cache(n_tokens: int, *, seed: int = 1, n_stream: int = 1) -> Cache:
    """The last `WINDOW` positions of `n_tokens`."""
    n_cells = min(n_tokens, WINDOW)
    return replace(
        random_cache(n_cells, seed=seed, n_stream=n_stream), positions=tuple(range(n_tokens - n_cells, n_tokens))
    )


def parts_of(kind: KvKind, n_tokens: int, n_stream: int = 1) -> tuple[Cache | Cell, ...]:
    cache = random_cache(n_tokens, n_stream=n_stream)
    tail = window_cache(n_tokens, n_stream=n_stream) if kind is KvKind.WINDOW else random_cell(n_tokens - 1)
    return {KvKind.ATTENTION: (cache,), KvKind.RECURRENT: (tail,)}.get(kind, (cache, tail))


def learned(kind: KvKind, n_stream: int = 1, **other: int) -> KvCodec:
    traits = ModelTraits(
        n_stream,
        recurrent=kind is KvKind.RECURRENT,
        hybrid=kind is KvKind.HYBRID,
        window=WINDOW if kind is KvKind.WINDOW else 0,
    )
    parts = parts_of(kind, 2, n_stream)
    return KvCodec.learn(state(*parts), state(parts[-1]), replace(traits, **other), 2)


KINDS = [KvKind.ATTENTION, KvKind.WINDOW, KvKind.RECURRENT, KvKind.HYBRID]


@pytest.mark.parametrize("n_stream", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_is_learned_from_two_tokens(kind, n_stream):
    layout = learned(kind, n_stream).layout
    assert (layout.kind, layout.problem) == (kind, "")
    assert layout.columns == (() if kind is KvKind.RECURRENT else ("k0", "v0", "k1", "v1"))
    assert layout.row_bytes == (6,) * len(layout.columns)


def test_columns_alternate_k_and_v_though_the_bytes_do_not():
    cache = random_cache(5)
    (k0, k1, v0, v1), rows = cache.rows, learned(KvKind.ATTENTION).parse(state(cache), 0, 5).rows(1, 4)
    for found, expected in zip(rows, (k0, v0, k1, v1), strict=True):
        assert np.array_equal(found, expected[1:4])


def test_a_cache_without_v_has_k_columns_only():
    cache = random_cache(2)
    keys = replace(cache, rows=cache.rows[:2])
    codec = KvCodec.learn(state(keys), state(keys), ModelTraits(1), 2)
    assert codec.layout.columns == ("k0", "k1")
    assert np.array_equal(codec.parse(state(keys), 0, 2).rows(0, 2)[1], keys.rows[1])


def test_a_window_that_llama_cpp_does_not_apply_is_none():
    cache = random_cache(2)
    codec = KvCodec.learn(state(cache), state(cache), ModelTraits(1, window=8), 2)
    assert codec.layout.kind is KvKind.ATTENTION
    assert codec.parse(state(random_cache(30)), 0, 30).checkpoint is None


@given(data=st.data())
def test_rows_come_by_position_whatever_the_order_of_the_cells(data):
    n_stream, kind = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([F16, Q8_0, Q4_0]))
    n_tokens, n_layer, seq_id = (
        data.draw(st.integers(1, 40)),
        data.draw(st.integers(1, 3)),
        data.draw(st.integers(0, 4)),
    )
    cache = random_cache(n_tokens, n_layer=n_layer, kind=kind, n_stream=n_stream, seed=n_tokens)
    two = random_cache(2, n_layer=n_layer, kind=kind, n_stream=n_stream)
    codec = KvCodec.learn(state(two), state(two), ModelTraits(n_stream), 2)
    order = tuple(data.draw(st.permutations(range(n_tokens))))
    moved = replace(cache, positions=order, stream=data.draw(st.integers(0, n_stream - 1)), seq_id=seq_id)
    start = data.draw(st.integers(0, n_tokens))
    stop = data.draw(st.integers(start, n_tokens))
    rows = codec.parse(state(moved, seq_id=seq_id), seq_id, n_tokens).rows(start, stop)
    expected = [cache.rows[at] for layer in range(n_layer) for at in (layer, n_layer + layer)]
    assert all(np.array_equal(found, wanted[start:stop]) for found, wanted in zip(rows, expected, strict=True))


def lend_and_write(image: StateImage, start: int, rows: tuple[np.ndarray, ...]) -> None:
    layout = image.codec.layout
    memory = image.memory(start, len(rows[0]), layout.columns, layout.row_bytes)
    assert memory is not None
    for piece, part in zip(memory, rows, strict=True):
        piece[:] = part.tobytes()
    image.received(start, len(rows[0]))


@given(data=st.data())
def test_an_image_of_any_length_is_the_state_that_llama_cpp_would_write(data):
    kind, n_stream = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(1, 3))
    n_room = data.draw(st.integers(1, 40))
    n_tokens = data.draw(st.integers(1, n_room))
    codec, room = learned(kind, n_stream), parts_of(kind, n_room, n_stream)
    expected = parts_of(kind, n_tokens, n_stream)
    image = StateImage(codec, n_room, BufferPool())
    if codec.cache is not None:
        rows = codec.parse(state(*room), 0, n_room).rows(0, n_room)
        edges = sorted({0, n_room, *data.draw(st.lists(st.integers(0, n_room), max_size=4))})
        for start, stop in data.draw(st.permutations(list(pairwise(edges)))):
            part = tuple(column[start:stop] for column in rows)
            if data.draw(st.booleans()):
                image.put(start, codec.layout.columns, part)
            else:
                lend_and_write(image, start, part)
        cache = room[0]
        assert isinstance(cache, Cache)
        cut = replace(cache, rows=tuple(r[:n_tokens] for r in cache.rows), positions=tuple(range(n_tokens)))
        expected = (cut, *expected[1:])
    if codec.tail is not None:
        image.put_checkpoint(codec.parse(state(*expected), 0, n_tokens).checkpoint)
    assert image.view(n_tokens).tobytes() == state(*expected).tobytes()
    assert image.view(n_tokens).tobytes() == state(*expected).tobytes()
    image.close()


@pytest.mark.parametrize("kind", [KvKind.WINDOW, KvKind.RECURRENT, KvKind.HYBRID])
@pytest.mark.parametrize("n_tokens", [3, WINDOW, 30])
def test_a_checkpoint_does_not_depend_on_the_sequence_nor_on_how_many_there_are(kind, n_tokens):
    alone = learned(kind).parse_checkpoint(state(parts_of(kind, n_tokens)[-1]), 0, n_tokens)
    tail = parts_of(kind, n_tokens, 4)[-1]
    among = replace(tail, stream=2, seq_id=2) if isinstance(tail, Cache) else tail
    codec = learned(kind, 4)
    checkpoint = codec.parse_checkpoint(state(among, seq_id=2), 2, n_tokens)
    assert checkpoint.tobytes() == alone.tobytes()
    assert codec.checkpoint_tokens(checkpoint) == n_tokens


def test_a_chunked_window_may_be_shorter_than_the_window():
    codec = learned(KvKind.WINDOW)
    chunk = replace(random_cache(3), positions=(16, 17, 18))  # the third chunk of 8
    assert codec.checkpoint_tokens(codec.parse_checkpoint(state(chunk), 0, 19)) == 19


CACHE, CELL = random_cache(6), random_cell(5)
REFUSED = {
    "magic": state(CACHE, magic=MAGIC + 1),
    "sequence": state(CACHE, seq_id=1),
    "stream_count": state(replace(CACHE, n_stream=2)),
    "empty": np.frombuffer(bytearray(pack("IiII", MAGIC, 0, 1, 0)), dtype=np.uint8),
    "shared_cells": state(replace(CACHE, n_seq=2)),
    "extended_cells": state(replace(CACHE, ext=pack("iii", 1, 2, 3))),
    "transposed_v": state(replace(CACHE, v_trans=1)),
    "layer_count": state(replace(CACHE, n_layer=3)),
    "buffer": state(random_cache(6, kind=F32)),
    "positions": state(replace(CACHE, positions=(0, 1, 2, 3, 5, 5))),
    "trailing_bytes": state(CACHE, CELL),
    "truncated": state(CACHE)[:-1],
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unknown_state_is_refused_by_name(name):
    with pytest.raises(UnknownLayout) as refusal:
        learned(KvKind.ATTENTION).parse(REFUSED[name], 0, 6)
    assert refusal.value.message.startswith(f"{name}:")


def test_cells_in_two_streams_are_refused():
    stream = CACHE.stream_bytes()
    data = np.frombuffer(bytearray(pack("IiI", MAGIC, 0, 2) + stream + stream), dtype=np.uint8)
    with pytest.raises(UnknownLayout, match="several_streams"):
        learned(KvKind.ATTENTION, 2).parse(data, 0, 6)


REFUSED_CELLS = {
    "recurrent_cell": [
        replace(CELL, n_cells=2),
        replace(CELL, n_cells=0),
        replace(CELL, position=-1),
        replace(CELL, n_seq=1),
    ],
    "transposed_s": [replace(CELL, transposed=1)],
    "layer_count": [replace(CELL, n_layer=3)],
    "buffer": [replace(CELL, rows=CELL.rows[::-1])],
    "positions": [replace(CELL, position=6)],
    "truncated": [replace(CELL, rows=CELL.rows[:3])],
    "trailing_bytes": [replace(CELL, rows=(*CELL.rows, CELL.rows[0]))],
}


@pytest.mark.parametrize(("name", "cell"), [(name, cell) for name, cells in REFUSED_CELLS.items() for cell in cells])
def test_an_unknown_recurrent_state_is_refused_by_name(name, cell):
    with pytest.raises(UnknownLayout) as refusal:
        learned(KvKind.RECURRENT).parse(state(cell), 0, 6)
    assert refusal.value.message.startswith(f"{name}:")


@pytest.mark.parametrize(
    "positions", [(3, 4, 5), tuple(range(9)), (0, 1, 2, 3, 4, 5, 6, 8), (-1, 0, 1, 2, 3, 4, 5, 6), (7,) * 8]
)
def test_a_window_with_gaps_or_of_another_size_is_refused(positions):
    codec = learned(KvKind.WINDOW)
    rows = tuple(np.zeros((20, 6), dtype=np.uint8) for _ in range(4))
    data = np.frombuffer(bytearray(replace(CACHE, rows=rows, positions=positions).stream_bytes()), dtype=np.uint8)
    with pytest.raises(UnknownLayout) as refusal:
        codec.checkpoint_tokens(data)
    assert refusal.value.message.startswith("positions:")


OPAQUE = {
    "transposed_v": (ModelTraits(1), (replace(random_cache(2), v_trans=1),)),
    "extended_cells": (ModelTraits(1, several_positions=True), (random_cache(2),)),
    "three_parts": (ModelTraits(1, hybrid=True, window=8), (random_cache(2), random_cell(1))),
    "positions": (ModelTraits(1), (random_cache(3),)),
    # a second cache, as models with an indexer have
    "trailing_bytes": (ModelTraits(1), (random_cache(2), random_cache(2))),
    "shared_cells": (ModelTraits(1, window=8), (random_cache(2), random_cell(1))),
    "transposed_s": (ModelTraits(1, recurrent=True), (random_cache(2),)),
}


@pytest.mark.parametrize("name", OPAQUE)
def test_a_model_whose_state_is_not_understood_is_opaque_with_the_reason(name):
    traits, parts = OPAQUE[name]
    codec = KvCodec.learn(state(*parts), state(parts[-1]), traits, 2)
    assert codec.layout.kind is KvKind.OPAQUE
    assert codec.layout.problem.startswith(f"{name}: ")
    for call in (lambda: codec.parse(state(*parts), 0, 2), lambda: StateImage(codec, 2, BufferPool())):
        with pytest.raises(KvUnreadable, match=name):
            call()


def test_a_partial_state_that_is_not_the_end_of_the_whole_makes_a_model_opaque():
    codec = KvCodec.learn(
        state(random_cache(2), random_cell(1)), state(random_cell(1, seed=5)), ModelTraits(1, hybrid=True), 2
    )
    assert codec.layout.problem.startswith("parts: ")


@given(st.binary(max_size=200), st.sampled_from(KINDS))
def test_any_bytes_are_refused_with_a_name_and_nothing_else(data, kind):
    codec, junk = learned(kind), np.frombuffer(bytearray(data), dtype=np.uint8)
    for call in (
        lambda: codec.parse(junk, 0, 2),
        lambda: codec.parse_checkpoint(junk, 0, 2),
        lambda: codec.checkpoint_tokens(junk),
    ):
        with pytest.raises(UnknownLayout):
            call()


@given(data=st.data())
def test_a_changed_byte_is_refused_or_changes_one_row(data):
    kind = data.draw(st.sampled_from(KINDS))
    parts, codec = parts_of(kind, 6), learned(kind)
    good = state(*parts)
    bad = good.copy()
    at = data.draw(st.integers(0, len(bad) - 1))
    bad[at] ^= data.draw(st.integers(1, 255))
    try:
        reading = codec.parse(bad, 0, 6)
    except UnknownLayout:
        return
    before = codec.parse(good, 0, 6)
    n_changed = sum(
        int((mine != theirs).any(axis=1).sum())
        for mine, theirs in zip(reading.rows(0, 6), before.rows(0, 6), strict=True)
    )
    if reading.checkpoint is not None and before.checkpoint is not None:
        n_changed += int(not np.array_equal(reading.checkpoint, before.checkpoint))
    assert n_changed == 1


def test_what_does_not_fit_into_an_image_is_refused_and_changes_nothing():
    codec, cache = learned(KvKind.ATTENTION), random_cache(6)
    image, columns = StateImage(codec, 6, BufferPool()), codec.layout.columns
    rows = codec.parse(state(cache), 0, 6).rows(0, 6)
    image.put(0, columns, rows)
    before = image.view(6).tobytes()
    zeros = tuple(np.zeros_like(column) for column in rows)
    for start, names, wrong, problem in (
        (1, columns, zeros, "do not fit"),
        (-1, columns, zeros, "do not fit"),
        (0, columns[::-1], zeros, "expected"),
        (0, columns, zeros[:3], "expected"),
        (0, columns, (*zeros[:3], zeros[3][:, :5]), "column v1"),
        (0, columns, (*zeros[:3], zeros[3][:5]), "column v1"),
    ):
        with pytest.raises(ValueError, match=problem):
            image.put(start, names, wrong)
    with pytest.raises(ValueError, match="have none"):
        image.put_checkpoint(np.zeros(8, dtype=np.uint8))
    assert image.view(6).tobytes() == before


def test_rows_or_a_checkpoint_that_are_missing_are_named():
    codec = learned(KvKind.HYBRID)
    image = StateImage(codec, 6, BufferPool())
    reading = codec.parse(state(*parts_of(KvKind.HYBRID, 6)), 0, 6)
    image.put(0, codec.layout.columns, reading.rows(0, 2))
    image.put(3, codec.layout.columns, reading.rows(3, 6))
    with pytest.raises(ValueError, match="rows are missing from position 2"):
        image.view(6)
    with pytest.raises(ValueError, match="the checkpoint is from after 0 tokens, expected 2"):
        image.view(2)
    image.put(2, codec.layout.columns, reading.rows(2, 3))
    image.put_checkpoint(reading.checkpoint)
    with pytest.raises(ValueError, match="the checkpoint is from after 6 tokens, expected 5"):
        image.view(5)
    assert image.view(6).tobytes() == state(*parts_of(KvKind.HYBRID, 6)).tobytes()


def test_the_buffer_of_a_closed_image_is_used_again():
    codec, pool = learned(KvKind.ATTENTION), BufferPool()
    first = StateImage(codec, 10, pool, reserve=100)
    second = StateImage(codec, 10, pool)
    address = first._whole().ctypes.data
    assert second._whole().ctypes.data != address
    second.close()
    first.close()
    first.close()
    third = StateImage(codec, 90, pool)
    assert third._whole().ctypes.data == address
    assert StateImage(codec, 90, pool)._whole().ctypes.data != address
