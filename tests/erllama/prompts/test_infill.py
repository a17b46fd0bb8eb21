"""Prompts with a gap as llama-server's `format_prompt_infill` builds them, and what is left out where
room is short.
"""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.backend.special_tokens import FimTokens, SpecialTokens
from erllama.errors import NotSupported
from erllama.prompts.infill import Gap, Room, infill_tokens
from erllama.testing.stub_backend import StubVocab

PRE, SUF, MID, REP, SEP, BOS = 0xF8, 0xF9, 0xFA, 0xFB, 0xFC, 0xFD
WIDE = Room(4000, 4000)


@dataclass
class Vocab(StubVocab):
    """One token per byte, as the stub's; `longest` is the longest text that it was asked about."""

    adds_bos: bool = False
    specials: SpecialTokens = StubVocab.specials
    longest: int = 0

    def tokenize(self, text, *, add_special=True, parse_special=True):
        assert not add_special
        self.longest = max(self.longest, len(text))
        return list(text.encode())


BARE = Vocab(specials=SpecialTokens(fim=FimTokens(PRE, SUF, MID)))
WITH_BOS = Vocab(True, SpecialTokens(bos=BOS, fim=FimTokens(PRE, SUF, MID)))


@pytest.mark.parametrize(
    ("vocab", "gap", "room", "suffix_first", "expected"),
    [
        (BARE, Gap("a", "z"), None, False, [PRE, *b"a", SUF, *b"z", MID]),
        (BARE, Gap("a", "z", "be"), WIDE, False, [PRE, *b"abe", SUF, *b"z", MID]),
        (BARE, Gap("a", "z", "be"), WIDE, True, [SUF, *b"z", PRE, *b"abe", MID]),
        (WITH_BOS, Gap("a", "z"), None, False, [BOS, PRE, *b"a", SUF, *b"z", MID]),
        (WITH_BOS, Gap([7, 8], ""), None, True, [BOS, SUF, PRE, 7, 8, MID]),
        (Vocab(), Gap("a", "z"), None, False, [PRE, *b"a", SUF, *b"z", MID]),
        (Vocab(), Gap("a", "z"), WIDE, False, [REP, *b"myproject\n", SEP, *b"filename\n", PRE, *b"a", SUF, *b"z", MID]),
        (
            Vocab(), Gap("a", "z", files=[("u.py", "U"), ("v.py", "V")]), WIDE, False,
            [REP, *b"myproject\n", SEP, *b"u.py\nU", SEP, *b"v.py\nV", SEP, *b"filename\n", PRE, *b"a", SUF, *b"z", MID],
        ),
        (
            WITH_BOS, Gap("a", "z", files=[("u.py", "U")]), WIDE, False,
            [*b"\n\n--- snippet ---\n\nU", BOS, PRE, *b"a", SUF, *b"z", MID],
        ),
    ],
)  # fmt: skip
def test_the_parts_stand_in_their_order(vocab, gap, room, suffix_first, expected):
    assert infill_tokens(vocab, gap, room, suffix_first=suffix_first) == expected


def test_a_vocabulary_without_these_tokens_is_refused():
    with pytest.raises(NotSupported, match="fill in the middle"):
        infill_tokens(Vocab(specials=SpecialTokens()), Gap("a", "z"))


TEXT = st.text(st.characters(codec="ascii"), max_size=60)


@given(
    prefix=TEXT,
    suffix=TEXT,
    begun=st.text("xy", max_size=9),
    files=st.lists(st.tuples(st.text("f", max_size=3), TEXT), max_size=4),
    room=st.builds(Room, st.integers(0, 80), st.integers(0, 150)),
    vocab=st.sampled_from([Vocab(), BARE]),
)
def test_what_is_near_the_gap_stays(prefix, suffix, begun, files, room, vocab):
    gap = Gap(prefix, suffix, begun, files)
    tokens = infill_tokens(vocab, gap, room)
    at, behind = tokens.index(PRE), tokens.index(SUF)
    written = bytes(tokens[at + 1 : behind])
    kept = written[: len(written) - len(begun)]
    assert written[len(kept) :] == begun.encode()
    assert prefix.encode().endswith(kept)
    assert len(kept) == min(len(prefix), 3 * (room.near // 4))
    rest = bytes(tokens[behind + 1 : -1])
    assert suffix.encode().startswith(rest)
    assert len(rest) == min(len(suffix), max(0, room.near // 4 - 2 - len(begun)))
    assert tokens[-1] == MID
    whole = infill_tokens(vocab, gap, Room(room.near, 10**6))
    assert tokens[:at] == whole[: whole.index(PRE)][-room.far :] if room.far else at == 0
    assert len(tokens) <= room.near + room.far + len(begun) + 3


@pytest.mark.parametrize("n_predict", [None, 0, 1, 128, 10**9])
@pytest.mark.parametrize("n_ctx", [1, 256, 2048, 4096, 32768])
def test_a_full_prompt_leaves_room_for_the_reply(n_ctx, n_predict):
    long = "x" * 100_000
    tokens = infill_tokens(Vocab(), Gap(long, long, "", [("f", long)]), Room.of(n_ctx, n_predict))
    reply = n_ctx // 4 if n_predict is None else min(n_predict, n_ctx)
    assert len(tokens) <= max(4, n_ctx - reply)
    if n_ctx > 4096:
        assert len(tokens) >= min(n_ctx - 3 * reply, 2000), "room is given away"


def test_no_more_of_a_long_text_is_read_than_could_stay():
    vocab = Vocab()
    long = "x" * 10_000_000
    infill_tokens(vocab, Gap(long, long, "", [("f", long)] * 50), Room(100, 200))
    assert vocab.longest <= 64 * 200
