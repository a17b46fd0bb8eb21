"""The book of replies: bounded, patient with no store for longer than its budget, and quick to
forget that something was missing.
"""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache_store.errors import StoreError, TierError
from cache_store.format.block import Block, BlockId, Kind
from cache_store.format.keys import ChainKey, root_key
from erllama.chat.transcript_book import ENTRY_BYTES, MAX_ABSENT, TranscriptBook

ROOT = root_key("test")


def name(n):
    return BlockId(ROOT, Kind.REPLAY, ROOT, ChainKey(f"{n:064x}"))


def block(n, ids=(1, 2, 3)):
    return Block(name(n), np.asarray(ids, dtype=np.uint32))


class Clock:
    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns

    def advance(self, seconds):
        self.now_ns += round(seconds * 1e9)


class Store:
    """Answers after `takes_s` of the clock."""

    def __init__(self, clock, *blocks, takes_s=0.0):
        self.blocks = {block.id: block for block in blocks}
        self.clock, self.takes_s = clock, takes_s
        self.asked = []

    def get(self, id, deadline_s):
        self.asked.append((id, deadline_s))
        self.clock.advance(min(self.takes_s, deadline_s))
        return self.blocks.get(id) if self.takes_s <= deadline_s else None


def book_of(store, **kwargs):
    return TranscriptBook(store.get, clock=store.clock, **kwargs)


def test_what_was_recorded_is_found_without_the_store():
    store = Store(Clock())
    book = book_of(store)
    book.record(block(1, (7, 8)))
    assert book.finder()(name(1)) == [7, 8]
    assert store.asked == []
    assert repr(book) == f"<TranscriptBook 1 replies, {ENTRY_BYTES + 8} of {64 * 2**20} bytes>"


def test_without_a_store_a_miss_is_a_miss():
    book = TranscriptBook()
    assert not book.has_store
    assert book.finder()(name(1)) is None


def test_a_recorded_array_may_be_reused_by_its_owner():
    book, ids = TranscriptBook(), np.array([1, 2], dtype=np.uint32)
    book.record(Block(name(1), ids))
    ids[:] = 9
    assert book.finder()(name(1)) == [1, 2]


def test_the_least_recently_used_replies_go_first():
    book = TranscriptBook(max_bytes=3 * (ENTRY_BYTES + 12))
    for n in (1, 2, 3):
        book.record(block(n))
    assert book.finder()(name(1)) == [1, 2, 3]
    book.record(block(4))
    assert [n for n in (1, 2, 3, 4) if book.finder()(name(n))] == [1, 3, 4]
    book.record(block(5, range(10_000)))
    assert book.finder()(name(5)) is None
    assert [n for n in (1, 2, 3, 4) if book.finder()(name(n))] == [1, 3, 4]
    book.check_integrity()


def test_what_the_store_has_is_asked_for_once():
    store = Store(Clock(), block(1))
    book = book_of(store)
    for _ in range(3):
        assert book.finder()(name(1)) == [1, 2, 3]
    assert len(store.asked) == 1


def test_a_miss_counts_for_a_while_and_recording_ends_it():
    store = Store(Clock())
    book = book_of(store, absent_s=10)
    for after_s, n_asked in ((0, 1), (9.9, 1), (0.2, 2), (5, 2)):
        store.clock.advance(after_s)
        assert book.finder()(name(1)) is None
        assert len(store.asked) == n_asked
    book.record(block(1))
    assert book.finder()(name(1)) == [1, 2, 3]
    book.check_integrity()


def test_look_ups_of_one_prompt_share_a_time_budget_and_known_replies_stay_free():
    store = Store(Clock(), *map(block, range(4)), takes_s=0.1)
    book = book_of(store, lookup_ms=250)
    book.record(block(9))
    find = book.finder()
    assert [find(name(n)) is not None for n in range(4)] == [True, True, False, False]
    assert [round(deadline_s, 3) for _, deadline_s in store.asked] == [0.25, 0.15, 0.05]
    assert find(name(9)) is not None
    assert book.finder()(name(3)) is not None


def test_a_store_that_was_too_slow_was_not_asked_in_vain():
    store = Store(Clock(), block(1), takes_s=1)
    book = book_of(store, lookup_ms=250)
    assert book.finder()(name(1)) is None
    store.takes_s = 0.1
    assert book.finder()(name(1)) == [1, 2, 3]


def test_a_store_that_fails_is_a_miss_and_said_in_the_log(caplog):
    def fail(id, deadline_s):
        raise TierError("disk on fire")

    assert TranscriptBook(fail).finder()(name(1)) is None
    assert "disk on fire" in caplog.text
    assert issubclass(TierError, StoreError)


def test_another_object_than_was_asked_for_is_a_miss():
    assert TranscriptBook(lambda id, deadline_s: block(2)).finder()(name(1)) is None


def test_only_transcripts_can_be_recorded():
    with pytest.raises(ValueError, match="not a transcript"):
        TranscriptBook().record(Block(BlockId(ROOT, Kind.END, ROOT, ROOT), np.empty(0, np.uint32)))


def test_misses_take_bounded_memory():
    store = Store(Clock())
    book = book_of(store)
    find = book.finder()
    for n in range(MAX_ABSENT + 10):
        find(name(n))
    book.check_integrity()
    store.asked.clear()
    find(name(0))
    find(name(MAX_ABSENT))
    assert [id for id, _ in store.asked] == [name(0)]


def test_threads_may_share_a_book():
    book = TranscriptBook(lambda id, deadline_s: block(int(id.key, 16)), max_bytes=20 * (ENTRY_BYTES + 12))
    wrong = []

    def work(step):
        find = book.finder()
        wrong.extend(n for n in range(300) if find(name(n * step % 50)) != [1, 2, 3])

    threads = [threading.Thread(target=work, args=(step,)) for step in (1, 3, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    book.check_integrity()


class BookMachine(RuleBasedStateMachine):
    """Whatever happens, a found reply is the last one recorded or stored under its name, and the
    bounds hold.
    """

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.store = Store(self.clock)
        self.book = book_of(self.store, max_bytes=4 * (ENTRY_BYTES + 40))
        self.truth = {}

    @rule(n=st.integers(0, 8), size=st.integers(0, 10))
    def record(self, n, size):
        self.truth[n] = [size] * size
        self.book.record(block(n, self.truth[n]))
        self.store.blocks[name(n)] = block(n, self.truth[n])

    @rule(n=st.integers(0, 8))
    def find(self, n):
        assert self.book.finder()(name(n)) in (None, self.truth.get(n))

    @rule(seconds=st.sampled_from([1, 20]))
    def wait(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def holds(self):
        self.book.check_integrity()


TestBook = BookMachine.TestCase


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_ids_come_back_as_they_went_in(ids):
    book = TranscriptBook()
    book.record(block(1, ids))
    assert book.finder()(name(1)) == ids
