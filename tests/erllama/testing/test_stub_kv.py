"""The stub keeps the contract of a backend's states, and a wrong restore in a test of the engine is
an assertion.
"""

from __future__ import annotations

import numpy as np
import pytest

from erllama.backend.batch_plan import BatchPlan, PlanRow
from erllama.errors import DecodeFailed
from erllama.kv.layout import KvKind
from erllama.kv.state_bytes import KvUnreadable
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import adapter_set, make_sequence

KINDS = [KvKind.ATTENTION, KvKind.WINDOW, KvKind.RECURRENT, KvKind.HYBRID]


def fill(stub: StubBackend, seq_id: int, text: bytes, adapters=()) -> np.ndarray:
    """Logits after decoding `text` at the end of what the sequence holds."""
    start = len(stub.kv[seq_id])
    sequence = make_sequence(seq_id=seq_id)
    sequence.tokens[:] = [*stub.kv[seq_id], *text]
    ((logits,),) = stub.decode(BatchPlan((PlanRow(sequence, start, len(text), 1),), adapters))
    return logits


def test_a_row_may_want_the_logits_after_several_of_its_tokens():
    together, singly = StubBackend(n_ctx=64, n_parallel=3), StubBackend(n_ctx=64, n_parallel=1)
    sequence = make_sequence(seq_id=0)
    sequence.tokens[:] = list(b"abcde")
    (rows,) = together.decode(BatchPlan((PlanRow(sequence, 0, 5, 3),), ()))
    expected = [fill(singly, 0, text) for text in (b"abc", b"d", b"e")]
    assert all(np.array_equal(row, one) for row, one in zip(rows, expected, strict=True))
    (none,) = StubBackend(n_ctx=64, n_parallel=1).decode(BatchPlan((PlanRow(sequence, 0, 5, 0),), ()))
    assert none == ()


def saved(stub: StubBackend, seq_id: int):
    """Copies, as a block file holds them: rows, checkpoint, length."""
    reading = stub.read_kv(seq_id, len(stub.kv[seq_id]))
    checkpoint = None if reading.checkpoint is None else reading.checkpoint.copy()
    return tuple(rows.copy() for rows in reading.rows(0, reading.n_tokens)), checkpoint, reading.n_tokens


def put_back(stub: StubBackend, seq_id: int, rows, checkpoint, n_tokens: int) -> None:
    image = stub.new_image(n_tokens)
    try:
        image.put(0, stub.kv_layout.columns, rows)
        if checkpoint is not None:
            image.put_checkpoint(checkpoint)
        stub.restore(seq_id, image, n_tokens)
    finally:
        image.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_goes_on_in_another_stub(kind):
    stub, other = StubBackend(kind=kind), StubBackend(kind=kind)
    fill(stub, 0, b"hello")
    put_back(other, 3, *saved(stub, 0))
    assert other.kv[3] == list(b"hello")
    assert np.array_equal(fill(other, 3, b" you"), fill(stub, 0, b" you"))
    assert (stub.calls["read_kv"], other.calls["restore"]) == (1, 1)


def test_rows_of_two_prefixes_are_an_assertion():
    stub = StubBackend()
    fill(stub, 0, b"hello")
    fill(stub, 1, b"jello")
    (mine, theirs), _, _ = saved(stub, 0)
    (others, links), _, _ = saved(stub, 1)
    for rows in ((mine, links), (others, theirs), (mine[::-1], theirs[::-1])):
        with pytest.raises(AssertionError, match="row 0 is not"):
            put_back(stub, 2, rows, None, 5)
        stub.drop(2)
    with pytest.raises(AssertionError, match="row 3 is not"):
        put_back(stub, 2, (np.concatenate([mine[:3], others[3:]]), np.concatenate([theirs[:3], links[3:]])), None, 5)


def test_a_state_goes_on_only_under_its_own_adapters():
    stub = StubBackend()
    stub.load_adapter("a", "a.gguf")
    fill(stub, 0, b"hello", adapter_set("a"))
    put_back(stub, 1, *saved(stub, 0))
    with pytest.raises(AssertionError, match="adapter"):
        fill(stub, 1, b"!")
    fill(stub, 0, b"!", adapter_set("a"))


def test_a_reading_is_spoilt_by_the_next_call():
    stub = StubBackend(kind=KvKind.HYBRID)
    fill(stub, 0, b"hello")
    reading = stub.read_kv(0, 5)
    rows = reading.rows(0, 5)
    assert rows[0][:, 0].tobytes() == b"hello"
    fill(stub, 1, b"x")
    assert (rows[0] == 0xEE).all()
    assert (reading.checkpoint == 0xEE).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_attention_is_cut_between_its_ends(kind):
    stub = StubBackend(kind=kind)
    fill(stub, 0, b"hello")
    assert stub.copy_prefix(0, 1, 5)
    assert stub.copy_prefix(0, 2, 3) == kind.cuttable
    assert stub.cut(0, 3) == kind.cuttable
    assert [bytes(tokens) for tokens in stub.kv] == [
        b"hel" if kind.cuttable else b"hello",
        b"hello",
        b"hel" if kind.cuttable else b"",
        b"",
    ]
    assert stub.cut(0, 0)
    stub.swap(0, 1)
    assert [bytes(tokens) for tokens in stub.kv[:2]] == [b"hello", b""]


def test_a_restore_fails_when_told_so_or_when_something_is_missing():
    stub = StubBackend(kind=KvKind.HYBRID)
    fill(stub, 0, b"hello")
    rows, checkpoint, n_tokens = saved(stub, 0)
    stub.fail_restores = 1
    with pytest.raises(DecodeFailed, match="told"):
        put_back(stub, 1, rows, checkpoint, n_tokens)
    with pytest.raises(DecodeFailed, match="no checkpoint"):
        put_back(stub, 1, rows, None, n_tokens)
    with pytest.raises(ValueError, match="do not fit"):
        put_back(stub, 1, rows[:1], checkpoint, n_tokens)
    with pytest.raises(ValueError, match="not a checkpoint"):
        put_back(stub, 1, rows, checkpoint[1:], n_tokens)
    assert stub.kv[1] == []
    assert all(image.closed for image in stub.images)
    put_back(stub, 1, rows, checkpoint, n_tokens)


def test_what_cannot_be_read_says_so():
    stub = StubBackend()
    fill(stub, 0, b"hello")
    with pytest.raises(KvUnreadable):
        stub.read_kv(0, 4)
    with pytest.raises(KvUnreadable):
        StubBackend(kind=KvKind.OPAQUE).new_image(4)


def test_without_a_context_there_is_no_kv_until_it_is_made_again():
    stub = StubBackend()
    fill(stub, 0, b"hello")
    assert stub.release_context() > 0
    assert stub.release_context() == 0
    assert not stub.has_context
    with pytest.raises(AssertionError, match="without a context"):
        fill(stub, 0, b"x")
    stub.drop(0)
    assert stub.ensure_context()
    assert not stub.ensure_context()
    assert stub.kv == [[], [], [], []]
