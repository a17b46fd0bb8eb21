"""The memory that an image lends to whoever reads rows."""

from __future__ import annotations

import numpy as np
import pytest

from erllama.kv.codec import KvCodec, ModelTraits
from erllama.kv.image import BufferPool, StateImage
from erllama.kv.layout import KvKind, KvLayout
from erllama.kv.state_bytes import CacheShape, Field

COLUMNS, ROW_BYTES = ("k0", "v0"), (4, 6)
CODEC = KvCodec(
    KvLayout(KvKind.ATTENTION, COLUMNS, ROW_BYTES),
    ModelTraits(n_stream=1),
    CacheShape(1, tuple(Field(1, n_bytes) for n_bytes in ROW_BYTES)),
)


def filled(image: StateImage, start: int, n_tokens: int, value: int) -> list[memoryview]:
    memory = image.memory(start, n_tokens, COLUMNS, ROW_BYTES)
    assert memory is not None
    for piece in memory:
        piece[:] = bytes([value]) * len(piece)
    return list(memory)


def put(image: StateImage, start: int, n_tokens: int, value: int) -> None:
    rows = tuple(np.full((n_tokens, width), value, np.uint8) for width in ROW_BYTES)
    image.put(start, COLUMNS, rows)


@pytest.mark.parametrize(
    ("start", "n_tokens", "columns", "row_bytes"),
    [
        (-1, 2, COLUMNS, ROW_BYTES),
        (9, 2, COLUMNS, ROW_BYTES),
        (0, 0, COLUMNS, ROW_BYTES),
        (0, 2, COLUMNS[::-1], ROW_BYTES),
        (0, 2, COLUMNS[:1], ROW_BYTES[:1]),
        (0, 2, COLUMNS, (4, 4)),
        (0, 2, [*COLUMNS, "k1"], [*ROW_BYTES, 4]),
    ],
)
def test_nothing_is_lent_for_rows_that_do_not_fit(start, n_tokens, columns, row_bytes):
    image = StateImage(CODEC, 10, BufferPool())
    assert image.memory(0, 10, list(COLUMNS), list(ROW_BYTES)) is not None
    assert image.memory(start, n_tokens, columns, row_bytes) is None


def test_what_is_written_counts_only_when_it_was_received():
    image = StateImage(CODEC, 10, BufferPool())
    filled(image, 0, 10, 7)
    with pytest.raises(ValueError, match="missing from position 0"):
        image.view(10)
    image.received(0, 4)
    with pytest.raises(ValueError, match="missing from position 4"):
        image.view(5)
    expected = StateImage(CODEC, 4, BufferPool())
    put(expected, 0, 4, 7)
    assert image.view(4).tobytes() == expected.view(4).tobytes()


def test_an_abandoned_image_is_out_of_reach_of_who_was_lent_its_memory():
    pool = BufferPool()
    image = StateImage(CODEC, 10, pool)
    memory = filled(image, 0, 10, 7)
    image.received(0, 8)
    image.abandon()
    for piece in memory:
        piece[:] = bytes(len(piece))
    expected = StateImage(CODEC, 8, BufferPool())
    put(expected, 0, 8, 7)
    assert image.view(8).tobytes() == expected.view(8).tobytes()
    image.close()
    again = StateImage(CODEC, 10, pool)
    given = again.memory(0, 10, COLUMNS, ROW_BYTES)
    assert given is not None
    for piece in memory:
        piece[:] = bytes([9]) * len(piece)
    assert all(9 not in bytes(piece) for piece in given), "the old memory is in use again"


def test_memory_that_was_lent_is_not_pooled_where_there_is_none_to_move_to(monkeypatch: pytest.MonkeyPatch):
    pool = BufferPool()
    image = StateImage(CODEC, 10, pool)
    memory = filled(image, 0, 10, 7)

    def full(like: np.ndarray) -> np.ndarray:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(np, "empty_like", full)
        with pytest.raises(MemoryError):
            image.abandon()
    image.close()
    given = StateImage(CODEC, 10, pool).memory(0, 10, COLUMNS, ROW_BYTES)
    assert given is not None
    pairs = [(np.asarray(old), np.asarray(new)) for old in memory for new in given]
    assert not any(np.shares_memory(old, new) for old, new in pairs), "the old memory is in use again"
