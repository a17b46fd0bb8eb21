"""The snapshot: what comes back is what went in, and no damage gets further than BadSnapshot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import ChainKey
from cache_store.index import columns, snapshot
from cache_store.index import index as index_module
from cache_store.index.columns import Columns, IndexRow
from cache_store.index.hot_tokens import fingerprint
from cache_store.index.index import Index
from cache_store.index.snapshot import MAGIC, BadSnapshot, decode, encode

NOW_S = 1.7e9
HOUR = 3600.0
HEAD = len(MAGIC) + 16

keys = st.sampled_from("0123456789abcdef").map(lambda digit: ChainKey(digit * 64))


@st.composite
def entries(draw: st.DrawFn) -> IndexRow:
    kind = draw(st.sampled_from(Kind))
    start = draw(st.integers(0, 2**32 - 257))
    parent, key = draw(keys), draw(keys)
    tokens = None
    if kind is Kind.ROWS:
        id = BlockId(draw(keys), kind, parent, key, start, draw(st.integers(1, 256 - start % 256)))
        tokens = draw(st.none() | st.binary(min_size=4 * id.n_tokens, max_size=4 * id.n_tokens))
    elif kind is Kind.END:
        id = BlockId(draw(keys), kind, key, key, start)
    else:
        id = BlockId(draw(keys), kind, parent, key)
    return IndexRow(id, draw(st.integers(0, 1 << 40)), tokens, draw(st.integers(0, 1000)), draw(st.floats(0, NOW_S)))


def make_index(now_s: float = NOW_S) -> Index:
    return Index(2, lambda: now_s)


def edge(n: int, **changes: object) -> IndexRow:
    tokens = np.arange(n, n + 200, dtype=">u4").tobytes()
    return replace(
        IndexRow(
            BlockId(ChainKey("a" * 64), Kind.ROWS, ChainKey("a" * 64), ChainKey(f"{n:064x}"), 0, 200),
            7,
            tokens,
            n,
            NOW_S - n,
        ),
        **changes,
    )


def filled_index(n: int = 5) -> Index:
    index = make_index()
    for i in range(n):
        index.load([edge(i)], 0)
    return index


def encoded(rows: list[IndexRow]) -> bytes:
    return encode([Columns.of(rows)])


def decoded(data: bytes) -> list[IndexRow]:
    return [row for some in decode(data) for row in some.rows()]


def sealed(table: pa.Table) -> bytes:
    """A snapshot with a true digest around any table."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    file = sink.getvalue()
    return b"".join((MAGIC, xxhash.xxh3_128_digest(file), file))


def table_of(*rows: IndexRow) -> pa.Table:
    return pq.read_table(pa.py_buffer(encoded(list(rows))[HEAD:]))


@given(st.lists(entries(), max_size=20))
@settings(max_examples=50)
def test_entries_survive_the_file(rows: list[IndexRow]):
    assert decoded(encoded(rows)) == rows


@given(st.lists(entries(), max_size=20, unique_by=lambda entry: entry.id))
@settings(max_examples=50)
def test_an_index_survives_its_snapshot(rows: list[IndexRow]):
    first, second = make_index(), make_index()
    for row in rows:
        first.load([row], 1)
    assert second.load_columns(decode(encode(first.columns(1))), 1) == len(rows)
    second.check_integrity()
    ids = {row.id for row in rows}
    assert victim_ids(second, 1, 1 << 62) == victim_ids(first, 1, 1 << 62) == ids
    for before, after in zip(by_name(first), by_name(second), strict=True):
        assert after == replace(before, last_used_s=after.last_used_s)
        assert after.last_used_s == pytest.approx(before.last_used_s, abs=1e-3)


def victim_ids(index: Index, tier_index: int, n_bytes: int) -> set[BlockId]:
    return {victim.id for victim in index.victims(tier_index, n_bytes)}


def by_name(index: Index) -> list[IndexRow]:
    return sorted(index.rows(1), key=lambda entry: entry.id.name)


def test_many_batches_make_one_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(snapshot, "_BATCH_ROWS", 3)
    monkeypatch.setattr(index_module, "_BATCH", 3)
    data = encode(filled_index(10).columns(0))
    assert sorted(entry.hits for entry in decoded(data)) == list(range(10))
    index = make_index()
    assert index.load_columns(decode(data), 0) == 10
    index.check_integrity()


def test_an_empty_index_has_a_snapshot():
    assert make_index().load_columns(decode(encode(make_index().columns(0))), 0) == 0


def test_only_the_tier_asked_for_is_kept():
    index = filled_index(3)
    index.load([edge(9)], 1)
    assert [entry.id.key for entry in decoded(encode(index.columns(1)))] == [edge(9).id.key]


def test_hits_persist_and_age_goes_on():
    clock = [NOW_S]
    index = Index(1, lambda: clock[0])
    popular, fresh = edge(1).id, edge(2).id
    index.add(popular, 0, 1)
    for _ in range(7):
        index.touch([popular])
    data = encode(index.columns(0))
    for hours, first in ((17, fresh), (19, popular)):
        later = make_index(NOW_S + hours * HOUR)
        later.load_columns(decode(data), 0)
        later.add(fresh, 0, 1)
        assert [victim.id for victim in later.victims(0, 1)] == [first]


def test_a_clock_that_was_ahead_does_not_reach_other_machines():
    clock = [NOW_S + 1e8]
    index = Index(1, lambda: clock[0])
    index.add(edge(1).id, 0, 1)
    clock[0] = NOW_S
    index.add(edge(2).id, 0, 1)
    assert [entry.last_used_s for entry in index.rows(0)] == pytest.approx([NOW_S, NOW_S])


def test_entries_show_the_index_as_it_is_when_their_turn_comes():
    index = filled_index(3)
    rows = index.rows(0)
    first = next(rows)
    for i in range(3):
        index.remove(edge(i).id, 0)
    assert first.id == edge(0).id
    assert list(rows) == []


def test_the_payload_is_a_parquet_file_for_anyone():
    table = pq.read_table(pa.py_buffer(encode(filled_index().columns(0))[HEAD:]))
    assert table.column_names == [
        "root",
        "kind",
        "parent",
        "key",
        "start",
        "n_tokens",
        "n_bytes",
        "tokens",
        "first",
        "hits",
        "last_used_s",
    ]
    assert np.frombuffer(table["tokens"][3].as_py(), ">u4").tolist() == list(range(3, 203))


@given(st.data())
def test_any_flipped_bit_is_a_bad_snapshot(data: st.DataObject):
    file = bytearray(encode(filled_index().columns(0)))
    at = data.draw(st.integers(0, len(file) * 8 - 1))
    file[at // 8] ^= 1 << at % 8
    index = make_index()
    with pytest.raises(BadSnapshot):
        index.load_columns(decode(bytes(file)), 0)
    assert len(index) == 0


@given(st.data())
def test_any_truncation_or_addition_is_a_bad_snapshot(data: st.DataObject):
    file = encode(filled_index().columns(0))
    short = file[: data.draw(st.integers(0, len(file) - 1))]
    for damaged in (short, file + data.draw(st.binary(min_size=1))):
        with pytest.raises(BadSnapshot):
            decode(damaged)


@given(st.binary(max_size=200))
def test_other_bytes_are_a_bad_snapshot_even_with_a_true_digest(payload: bytes):
    for data in (payload, MAGIC + payload, MAGIC + xxhash.xxh3_128_digest(payload) + payload):
        with pytest.raises(BadSnapshot):
            decode(data)


def test_other_columns_are_a_bad_snapshot():
    good = table_of(edge(1))
    assert len(decoded(sealed(good))) == 1
    for table in (
        good.drop_columns(["hits"]),
        good.append_column("more", pa.array([1])),
        good.rename_columns([*"abcdefghijk"]),
    ):
        with pytest.raises(BadSnapshot, match="other columns"):
            decode(sealed(table))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": b""},
        {"tokens": bytes(4 * 201)},
        {"n_bytes": 1 << 50},
        {"hits": (1 << 53) + 1},
        {"last_used_s": float("nan")},
        {"last_used_s": float("-inf")},
        {"id": replace(edge(1).id, n_tokens=0)},
        {"id": replace(edge(1).id, start=57)},
        {"id": replace(edge(1).id, kind=Kind.END)},
    ],
)
def test_a_row_that_contradicts_itself_is_left_out(monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]):
    monkeypatch.setattr(columns, "MAX_HITS", 1 << 60)
    data = encoded([edge(1), edge(2, **changes), edge(3)])
    monkeypatch.undo()
    index = make_index()
    assert index.load_columns(decode(data), 0) == 2
    index.check_integrity()


def test_a_row_of_an_unknown_kind_is_left_out():
    table = table_of(edge(1), edge(2))
    kinds = pa.array(["rows", "other"])
    assert [entry.id for entry in decoded(sealed(table.set_column(1, table.schema.field("kind"), kinds)))] == [
        edge(1).id
    ]


def test_what_the_index_knows_better_stays():
    data = encode(filled_index(2).columns(0))
    index = make_index()
    index.load([edge(1, n_bytes=99, hits=50)], 1)
    index.load_columns(decode(data), 0)
    assert index.tiers_of(edge(1).id) == (0, 1)
    assert next(entry.hits for entry in index.rows(1)) == 50
    index.check_integrity()


BATCHES = st.lists(st.tuples(st.lists(entries(), max_size=12), st.integers(0, 1)), max_size=4)


@given(BATCHES, st.booleans())
@settings(max_examples=150)
def test_many_at_once_make_the_same_index_as_one_by_one(batches: list[tuple[list[IndexRow], int]], evicts: bool):
    one, many = make_index(), make_index()
    for rows, tier in batches:
        # of a row that comes twice in one batch, which size counts is open
        rows = list({row.id: row for row in rows}.values())
        one.load(rows, tier)
        assert many.load_columns([Columns.of(rows)], tier) == len(rows)
        many.check_integrity()
        if evicts:
            assert len(many.victims(tier, 1 << 20)) == len(one.victims(tier, 1 << 20))
            for index in (one, many):
                index.add(edge(7).id, tier, 3)
    for tier in range(2):
        assert sorted_rows(many, tier) == pytest.approx(sorted_rows(one, tier))
        assert (many.bytes_in(tier), many.objects_in(tier)) == (one.bytes_in(tier), one.objects_in(tier))
    assert set(map(repr, many.victims(1, 1 << 62))) == set(map(repr, one.victims(1, 1 << 62)))


def sorted_rows(index: Index, tier: int) -> dict[str, float]:
    """Everything that is told of the objects of a tier, by name."""
    rows = index.rows(tier)
    return {f"{row.id.name} {row.n_bytes} {row.tokens!r} {row.hits} {row.first}": row.last_used_s for row in rows}


def test_a_row_twice_in_one_batch_is_one_object():
    index = make_index()
    end = IndexRow(BlockId(ChainKey("a" * 64), Kind.END, ChainKey("b" * 64), ChainKey("b" * 64), 5), 3, None, 0, NOW_S)
    rows = [edge(1), edge(2), edge(1, hits=9), end, end, *(edge(n) for n in range(3, 40))]
    assert index.load_columns([Columns.of(rows)], 0) == len(rows)
    index.check_integrity()
    assert len(index) == 40
    assert next(row.hits for row in index.rows(0) if row.id == edge(1).id) == 9
    assert index.bytes_in(0) == 39 * 7 + 3


def test_a_snapshot_of_the_first_version_is_read():
    table = table_of(edge(1), edge(2, tokens=None)).drop_columns(["first"])
    old = b"KVINDEX1" + sealed(table)[len(MAGIC) :]
    assert decoded(old) == [edge(1), edge(2, tokens=None)]
    assert [row.first for row in decoded(old)] == [fingerprint(edge(1).tokens), 0]
    with pytest.raises(BadSnapshot, match="other columns"):
        decode(sealed(table))


def test_fingerprints_outlive_tokens():
    index = Index(1, lambda: NOW_S, token_bytes=0)
    index.load([edge(1)], 0)
    again = make_index()
    again.load_columns(decode(encode(index.columns(0))), 0)
    (row,) = again.rows(0)
    assert (row.tokens, row.first) == (None, fingerprint(edge(1).tokens))
