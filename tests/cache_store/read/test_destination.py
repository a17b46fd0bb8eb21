"""Rows read to where somebody wants them: what arrives, what does not, and who may still write."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store import BlockId, Store, StoreConfig, TierConfig, TokenChain, root_key
from cache_store.format.block import Block
from cache_store.format.file import BlockEncoder
from cache_store.format.rows_decoder import RowsDecoder
from cache_store.read.destination import Lending
from cache_store.testing import Fault, FaultyTier
from cache_store.tiers.base import Placer, ReadBuffer
from cache_store.tiers.local import LocalTier
from tests.support.store_kit import (
    BLOCK,
    COLUMNS,
    ROW_BYTES,
    FaultyTiers,
    Restored,
    opened,
    prompt,
    rows_block,
    rows_of,
    written,
)

TOKENS = prompt(4 * BLOCK + 100)
LONG_S = 20.0


class Memory:
    """A destination with room for `n_tokens` of the kit's columns."""

    def __init__(self, n_tokens: int, columns: Sequence[str] = COLUMNS) -> None:
        self.columns = [np.zeros((n_tokens, width), np.uint8) for width in ROW_BYTES]
        self.names = tuple(columns)
        self.n_tokens = 0
        self.abandoned = 0

    def memory(
        self, start: int, n_tokens: int, columns: Sequence[str], row_bytes: Sequence[int]
    ) -> Sequence[memoryview] | None:
        if tuple(columns) != self.names or tuple(row_bytes) != ROW_BYTES:
            return None
        return [column[start : start + n_tokens].reshape(-1).data for column in self.columns]

    def received(self, start: int, n_tokens: int) -> None:
        assert start == self.n_tokens, "rows come in order, without a gap"
        self.n_tokens += n_tokens

    def abandon(self) -> None:
        self.abandoned += 1

    def check(self, tokens: np.ndarray) -> None:
        for got, want in zip(self.columns, rows_of(tokens, 0, self.n_tokens), strict=True):
            assert np.array_equal(got[: self.n_tokens], want)


class Consumed(list[int]):
    """A consumer that notes where each block starts."""

    def __call__(self, block: Block, n_use: int) -> None:
        self.append(block.id.start)


def plan_of(store: Store, tokens: np.ndarray):
    return store.lookup(TokenChain(store.root("model"), tokens), deadline_s=LONG_S)


def reopened(config: StoreConfig, **options: object) -> Store:
    """With TOKENS on its tiers, and nothing in staging memory."""
    with opened(config) as store:
        written(store, TOKENS)
    return opened(config, **options)


TIERS = {
    "local": lambda path: TierConfig(str(path / "disk")),
    "zstd": lambda path: TierConfig(str(path / "disk"), compression="zstd"),
    "lz4": lambda path: TierConfig(str(path / "disk"), compression="lz4"),
    "remote": lambda path: TierConfig(f"memory://{secrets.token_hex(4)}"),
    "remote zstd": lambda path: TierConfig(f"memory://{secrets.token_hex(4)}", compression="zstd"),
}


@pytest.mark.parametrize("kind", TIERS)
def test_whole_objects_arrive_where_they_are_wanted_and_a_shared_beginning_is_consumed(kind, tmp_path):
    with reopened(StoreConfig(tiers=(TIERS[kind](tmp_path),))) as store:
        other = TOKENS.copy()
        other[3 * BLOCK + 7 :] += 1  # shares seven tokens of the fourth block
        memory, consumed = Memory(len(TOKENS)), Consumed()
        fetched = store.read(plan_of(store, other), consumed, LONG_S, memory)
        assert (fetched.n_tokens, memory.n_tokens, consumed) == (3 * BLOCK + 7, 3 * BLOCK, [3 * BLOCK])
        memory.check(TOKENS)
        assert memory.abandoned == 0


def test_what_is_promoted_arrives_too_and_is_whole_in_the_faster_tier(tmp_path):
    slow = TierConfig(str(tmp_path / "slow"))
    reopened(StoreConfig(tiers=(slow,))).close(LONG_S)
    with opened(StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")), slow))) as store:
        memory = Memory(len(TOKENS))
        assert store.read(plan_of(store, TOKENS), Consumed(), LONG_S, memory).n_tokens == len(TOKENS)
        memory.check(TOKENS)
    with opened(StoreConfig(tiers=(TierConfig(str(tmp_path / "fast")),))) as store:
        again = Memory(len(TOKENS))
        assert store.read(plan_of(store, TOKENS), Consumed(), LONG_S, again).n_tokens == len(TOKENS)
        again.check(TOKENS)


def test_rows_of_another_layout_are_handed_to_the_consumer(tmp_path):
    with reopened(StoreConfig(tiers=(TierConfig(str(tmp_path)),))) as store:
        memory, restored = Memory(len(TOKENS), columns=("k0", "v1")), Restored(TOKENS)
        assert store.read(plan_of(store, TOKENS), restored, LONG_S, memory).n_tokens == len(TOKENS)
        assert (restored.n_tokens, memory.n_tokens) == (len(TOKENS), 0)


@pytest.mark.parametrize("at", ["head", "rows", "tail"])
def test_a_damaged_object_is_never_received(at, tmp_path):
    with reopened(StoreConfig(tiers=(TierConfig(str(tmp_path)),))) as store:
        plan = plan_of(store, TOKENS)
        path = tmp_path / plan.hops[2].id.name
        data = bytearray(path.read_bytes())
        data[{"head": 40, "rows": len(data) // 2, "tail": -20}[at]] ^= 1
        path.write_bytes(data)
        memory = Memory(len(TOKENS))
        assert store.read(plan, Consumed(), LONG_S, memory).n_tokens == memory.n_tokens == 2 * BLOCK
        memory.check(TOKENS)
        assert (sum(store.stats().corrupt.values()), memory.abandoned, path.exists()) == (1, 0, False)


@pytest.mark.parametrize("n_bytes", [0, 100, 3000, 8000])
def test_an_object_that_is_cut_while_it_is_read_is_never_received(n_bytes, tmp_path):
    faulty = FaultyTiers()
    with reopened(StoreConfig(tiers=(TierConfig(str(tmp_path)),)), open=faulty) as store:
        path = tmp_path / plan_of(store, TOKENS).hops[1].id.name
        path.write_bytes(path.read_bytes()[:n_bytes])
        memory = Memory(len(TOKENS))
        assert store.read(plan_of(store, TOKENS), Consumed(), LONG_S, memory).n_tokens == memory.n_tokens == BLOCK


class HangsInside(LocalTier):
    """Hangs when memory was lent, before it is written to."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.hangs, self.go = False, threading.Event()
        self.lent = threading.Event()

    def read(
        self, name: str, buffer: ReadBuffer, head_bytes: int | None = None, placer: Placer | None = None
    ) -> memoryview | None:
        return super().read(name, buffer, head_bytes, placer and Slow(self, placer))


class Slow:
    def __init__(self, tier: HangsInside, placer: Placer) -> None:
        self._tier, self._placer = tier, placer

    @property
    def memory(self) -> Sequence[memoryview]:
        return self._placer.memory

    def place(self, head: memoryview, n_bytes: int) -> int | None:
        start = self._placer.place(head, n_bytes)
        if self._tier.hangs and start is not None:
            self._tier.lent.set()
            self._tier.go.wait(LONG_S)
        return start

    @property
    def seen(self) -> Callable[[memoryview], object]:
        return self._placer.seen


def test_memory_that_a_hanging_read_may_still_write_to_is_given_up(tmp_path):
    tiers: list[HangsInside] = []

    def open_hanging(config: TierConfig) -> HangsInside:
        tiers.append(HangsInside(config.path))
        return tiers[-1]

    with reopened(StoreConfig(tiers=(TierConfig(str(tmp_path)),)), open=open_hanging) as store:
        plan, memory = plan_of(store, TOKENS), Memory(len(TOKENS))
        tiers[0].hangs = True
        assert store.read(plan, Consumed(), 0.2, memory).n_tokens == 0
        assert tiers[0].lent.is_set()
        assert memory.abandoned == 1
        tiers[0].go.set()
        tiers[0].hangs = False
        again = Memory(len(TOKENS))
        assert store.read(plan, Consumed(), LONG_S, again).n_tokens == len(TOKENS)
        again.check(TOKENS)
        assert again.abandoned == 0


def test_a_read_that_hangs_before_it_has_memory_never_gets_any(tmp_path):
    faulty = FaultyTiers()
    with reopened(StoreConfig(tiers=(TierConfig(str(tmp_path)),)), open=faulty) as store:
        memory = Memory(len(TOKENS))
        faulty.tiers[0].inject("read", Fault.HANG, times=None)
        assert store.read(plan_of(store, TOKENS), Consumed(), 0.2, memory).n_tokens == 0
        faulty.tiers[0].heal()
        assert restored_after(store) == len(TOKENS)
        assert memory.abandoned == 0
        assert not any(column.any() for column in memory.columns)


def restored_after(store: Store) -> int:
    """Once the breaker has closed again and what hung has ended."""
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        memory = Memory(len(TOKENS))
        if store.read(plan_of(store, TOKENS), Consumed(), LONG_S, memory).n_tokens == len(TOKENS):
            return memory.n_tokens
    return 0


def test_the_end_of_a_restore_waits_for_who_writes_and_lends_no_more():
    memory = Memory(BLOCK)
    lending = Lending(memory, nullcontext())
    id = BlockId.of_rows(TokenChain(root_key("x", ""), TOKENS), 0, BLOCK)
    loan = lending.loan(id)
    assert loan.lend(COLUMNS, ROW_BYTES) is not None
    ending = threading.Thread(target=lending.end, args=(time.monotonic_ns() + int(LONG_S * 1e9),))
    ending.start()
    late = lending.loan(id)
    while late.lend(COLUMNS, ROW_BYTES) is not None:  # until the thread is there
        late.close()
    assert ending.is_alive()
    loan.close()
    loan.close()
    ending.join(LONG_S)
    assert (ending.is_alive(), memory.abandoned) == (False, 0)


def test_who_was_lent_memory_before_the_end_gets_none_of_what_the_destination_moved_to():
    memory = Memory(BLOCK)
    lending = Lending(memory, nullcontext())
    loan = lending.loan(BlockId.of_rows(TokenChain(root_key("x", ""), TOKENS), 0, BLOCK))
    assert loan.lend(COLUMNS, ROW_BYTES) is not None
    lending.end(time.monotonic_ns())
    assert memory.abandoned == 1
    assert loan.lend(COLUMNS, ROW_BYTES) is None


def test_a_loan_that_is_declined_keeps_nobody_waiting():
    memory = Memory(BLOCK)
    lending = Lending(memory, nullcontext())
    loan = lending.loan(BlockId.of_rows(TokenChain(root_key("x", ""), TOKENS), 0, BLOCK))
    assert loan.lend(COLUMNS[::-1], ROW_BYTES) is None
    lending.end(time.monotonic_ns())
    assert memory.abandoned == 0


@pytest.mark.parametrize(("settings", "n_due"), [({}, 5), ({"reads_in_flight": 2}, 2), ({"read_ahead_bytes": 0}, 1)])
def test_as_many_objects_are_in_flight_as_the_bounds_allow(settings, n_due):
    tier = TierConfig(f"memory://{secrets.token_hex(4)}")
    reopened(StoreConfig(tiers=(tier,))).close(LONG_S)
    faulty = FaultyTiers()
    with opened(StoreConfig(tiers=(tier,), **settings), open=faulty) as store:
        plan = plan_of(store, TOKENS)
        assert len(plan.hops) == 5
        faulty.tiers[0].inject("read", Fault.HANG, times=None)
        reader = threading.Thread(target=store.read, args=(plan, Consumed(), LONG_S, Memory(len(TOKENS))))
        reader.start()
        assert faulty.tiers[0].wait_hanging(n_due)
        assert not faulty.tiers[0].wait_hanging(n_due + 1, timeout_s=0.05)
        assert store._reader.budget.used_bytes > 0
        faulty.tiers[0].heal()
        reader.join(LONG_S)
        assert not reader.is_alive()
        assert store._reader.budget.used_bytes == 0


@given(
    row_bytes=st.lists(st.integers(1, 3000), min_size=1, max_size=9),
    n_tokens=st.integers(1, BLOCK),
    compression=st.sampled_from([None, "zstd", "lz4"]),
)
def test_a_decoder_fills_the_memory_with_what_was_encoded(tmp_path_factory, row_bytes, n_tokens, compression):
    random = np.random.default_rng(n_tokens)
    chain = TokenChain(root_key("x", ""), prompt(n_tokens))
    rows = tuple(random.integers(0, 255, (n_tokens, width), np.uint8) for width in row_bytes)
    names = tuple(f"c{i}" for i in range(len(rows)))
    block = Block(BlockId.of_rows(chain, 0, n_tokens), chain.ids, names, rows)
    tier = LocalTier(str(tmp_path_factory.mktemp("tier")))
    tier.publish(block.id.name, BlockEncoder(compression).encode(block))
    memory = [np.zeros(part.nbytes, np.uint8) for part in rows]
    decoder = RowsDecoder(block.id, lambda columns, widths: [part.data for part in memory])
    data = tier.read(block.id.name, ReadBuffer(), None, decoder)
    assert data is not None
    if compression is None:
        assert len(data) < 20_000, "the rows came through the buffer"
    found = decoder.block(data)
    assert np.array_equal(found.tokens, chain.ids)
    assert all(np.array_equal(got, want.reshape(-1)) for got, want in zip(memory, rows, strict=True))


def test_tiers_that_cannot_place_an_object_give_it_whole():
    block = rows_block(root_key("x", ""), TOKENS, 0, BLOCK)
    faulty = FaultyTier(FaultyTiers()(TierConfig(f"memory://{secrets.token_hex(4)}")))
    faulty.publish(block.id.name, BlockEncoder().encode(block))
    memory = Memory(BLOCK)
    decoder = RowsDecoder(block.id, lambda columns, widths: memory.memory(0, BLOCK, columns, widths))
    data = faulty.read(block.id.name, ReadBuffer(), None, decoder)
    assert data is not None
    assert len(data) == len(BlockEncoder().encode(block))
    decoder.block(data)
    memory.n_tokens = BLOCK
    memory.check(TOKENS)
