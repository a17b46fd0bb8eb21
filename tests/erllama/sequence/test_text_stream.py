"""TextStream: the text does not depend on how its bytes were cut, and stop strings never leak."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erllama.sequence.text_stream import TextStream
from tests.support.bounds import NO_WAIT_S

ALPHABET = "ab\néß😀"


def batch(data: bytes, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition: decode everything, then cut at the stop string that begins earliest, among
    those the longest.
    """
    text = data.decode("utf-8", "replace")
    hits = [(text.find(s), -len(s), s) for s in stop if s in text]
    if not hits:
        return text, None
    start, _, name = min(hits)
    return text[:start], name


def stream(pieces: list[bytes], stop: tuple[str, ...]) -> tuple[str, str | None, list[str]]:
    out = TextStream(stop)
    shown = [out.push(piece) for piece in pieces]
    shown.append(out.finish())
    return "".join(shown), out.stop_sequence, shown


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


texts = st.text(ALPHABET, max_size=40).map(str.encode)
garbage = st.lists(
    st.sampled_from(
        [b"a", b"b", b"\xf0\x9f\x98\x80", b"\xf0\x9f", b"\xe2", b"\xff", b"\x80", b"\xc0\x80", b"\xed\xa0\x80"]
    )
).map(b"".join)
stops = st.lists(st.text(ALPHABET + "\ufffd", min_size=1, max_size=5), max_size=4).map(tuple)


@given(texts | garbage | st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=12), stops)
@example(b"xaab", [1, 2, 3], ("aab", "ab"))
@example(b"abcx", [1, 2, 3], ("abcd", "bc"))
@example(b"abcd", [1, 2, 3], ("abcd", "bc"))
@example("a😀b".encode(), [2, 3, 4], ("😀",))
@example(b"\xf0\x9f", [1], ("\ufffd",))
def test_any_split_gives_the_batch_answer(data, cuts, stop):
    text, name, _ = stream(cut(data, cuts), stop)
    assert (text, name) == batch(data, stop)


@given(texts, stops.filter(bool))
def test_no_shown_text_is_ever_taken_back(data, stop):
    _, _, shown = stream([bytes([b]) for b in data], stop)
    assert batch(data, stop)[0].startswith("".join(shown))


@given(texts | garbage, stops)
def test_only_what_may_begin_a_stop_string_is_held_back(data, stop):
    out = TextStream(stop)
    shown = out.push(data)
    if out.stopped:
        return
    decoded = data.decode("utf-8", "replace")
    held = decoded[len(shown) :]
    assert decoded.startswith(shown)
    assert len(held.rstrip("\ufffd")) <= max((len(s) for s in stop), default=0)


def test_a_character_split_over_tokens_is_held_back():
    out = TextStream()
    assert [out.push(bytes([b])) for b in "é😀".encode()] == ["", "é", "", "", "", "😀"]
    assert out.finish() == ""


def test_incomplete_bytes_at_the_end_become_one_replacement_character():
    out = TextStream()
    assert out.push(b"ok\xf0\x9f\x98") == "ok"
    assert out.finish() == "\ufffd"
    assert out.finish() == ""


def test_a_single_stop_string_stops_at_once():
    out = TextStream(("\n\n",))
    assert [out.push(p) for p in (b"one", b"\n", b"\n", b"two")] == ["one", "", "", ""]
    assert repr(out) == r"<TextStream stopped by '\n\n'>"


def test_a_prefix_that_does_not_complete_is_released():
    out = TextStream(("STOP",))
    assert [out.push(p) for p in (b"S", b"T", b"O", b"W")] == ["", "", "", "STOW"]


def test_a_prefix_at_the_end_is_text():
    out = TextStream(("STOP",))
    assert out.push(b"go STO") == "go "
    assert repr(out) == "<TextStream holds 'STO'>"
    assert (out.finish(), out.stopped) == ("STO", False)


def test_a_longer_stop_string_is_awaited_and_the_shorter_one_wins_at_the_end():
    out = TextStream(("ab", "abc"))
    assert (out.push(b"xab"), out.stopped) == ("x", False)
    assert (out.finish(), out.stop_sequence) == ("", "ab")


def test_the_stop_string_that_begins_earliest_wins():
    out = TextStream(("bc", "abcd"))
    assert (out.push(b"abc"), out.stopped) == ("", False)
    assert (out.push(b"e"), out.stop_sequence) == ("a", "bc")


def test_everything_after_a_stop_is_dropped():
    out = TextStream(("!",))
    assert out.push(b"hi! there") == "hi"
    assert (out.push("é".encode()[:1]), out.push(b"x"), out.finish()) == ("", "", "")


@pytest.mark.parametrize("stop", [("a" * 1024,), tuple("a" * n + "b" for n in range(1, 65))])
def test_a_hostile_stop_string_costs_linear_time(stop):
    out = TextStream(stop)
    began = time.perf_counter()
    for _ in range(20_000):
        out.push(b"ac")
    assert time.perf_counter() - began < NO_WAIT_S  # 0.05 s here; a rescan of the held text would take minutes
