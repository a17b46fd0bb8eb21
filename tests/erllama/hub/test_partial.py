"""Which bytes of a partial file count."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.hub.partial import Partial, Ranges, completed_of, partials

SIZE = 60
PIECES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: tuple(sorted(pair))))


@given(PIECES)
def test_ranges_are_the_union_of_what_was_added(pieces):
    ranges, bytes_there = Ranges(), set()
    for start, end in pieces:
        ranges.add(start, end)
        bytes_there |= set(range(start, end))
    assert {i for start, end in ranges.items for i in range(start, end)} == bytes_there
    assert ranges.n_bytes == len(bytes_there)
    # in order, and never two where one would do
    assert all(end < start for (_, end), (start, _) in zip(ranges.items, ranges.items[1:], strict=False))


@given(PIECES, st.integers(1, SIZE))
def test_what_is_missing_is_the_rest_in_pieces(pieces, most):
    ranges = Ranges()
    for start, end in pieces:
        ranges.add(start, end)
    missing = ranges.missing(SIZE, most)
    assert all(0 < end - start <= most for start, end in missing)
    for start, end in missing:
        ranges.add(start, end)
    assert (
        sum(end - start for start, end in missing)
        + sum(len(set(range(SIZE)) & {i for s, e in pieces for i in range(s, e)}) for _ in [0])
        == SIZE
    )
    assert ranges.items == [(0, SIZE)]


@given(PIECES)
def test_ranges_survive_json(pieces):
    ranges = Ranges()
    for start, end in pieces:
        ranges.add(start, end)
    assert Ranges.parse(json.loads(json.dumps(ranges.items)), SIZE) == ranges


@pytest.fixture
def partial(tmp_path):
    partial = Partial(tmp_path / "x-partial", 100)
    partial.open()
    yield partial
    partial.close()


def reopened(partial):
    partial.close()
    again = Partial(partial.path, partial.size)
    again.open()
    return again


def test_only_what_was_recorded_is_there_after_a_crash(partial):
    partial.validator = '"v1"'
    partial.write(0, b"a" * 10)
    partial.record(0, 10)
    partial.write(50, b"b" * 10)
    assert partial.completed == 20
    again = reopened(partial)
    assert (again.completed, again.validator) == (10, '"v1"')
    assert again.missing(100) == [(10, 100)]
    assert completed_of(again.path) == (10, 100)
    again.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.with_name("x-partial.json").write_text("{"),
        lambda path: path.with_name("x-partial.json").write_text("[]"),
        lambda path: path.with_name("x-partial.json").write_text('{"size": 100, "validator": null, "ranges": [[0, 101]]}'),
        lambda path: path.with_name("x-partial.json").write_text('{"size": 100, "validator": 1, "ranges": []}'),
        lambda path: path.with_name("x-partial.json").write_text('{"size": 99, "validator": null, "ranges": [[0, 10]]}'),
        lambda path: path.with_name("x-partial.json").unlink(),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b"short"),
    ],
)  # fmt: skip
def test_a_partial_that_cannot_be_believed_begins_anew(partial, damage):
    partial.write(0, b"a" * 10)
    partial.record(0, 10)
    partial.close()
    damage(partial.path)
    again = reopened(partial)
    assert again.completed == 0
    assert again.missing(100) == [(0, 100)]
    assert again.path.stat().st_size == 100
    again.close()


def test_a_finished_file_has_its_name_and_leaves_nothing(partial, tmp_path):
    partial.write(0, b"x" * 100)
    partial.record(0, 100)
    partial.finish(tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == b"x" * 100
    assert list(partials(tmp_path)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]
