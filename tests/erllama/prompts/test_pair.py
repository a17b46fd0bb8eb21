"""Pairs as llama-server's `format_prompt_rerank` builds them, and how they are cut."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama.backend.special_tokens import SpecialTokens
from erllama.errors import ContextOverflow, InvalidParameter
from erllama.pooled import fitting
from erllama.prompts.pair import RankQuery
from erllama.testing.stub_backend import StubVocab

BOS, EOS, SEP = 0xFD, 0xFE, 0xFF


@dataclass
class Vocab(StubVocab):
    """One token per byte, as the stub's."""

    adds_bos: bool = False
    specials: SpecialTokens = field(default_factory=SpecialTokens)
    named_templates: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("vocab", "expected"),
    [
        (Vocab(), [*b"qd"]),
        (Vocab(True, SpecialTokens(BOS, EOS, SEP, adds_eos=True)), [BOS, *b"q", EOS, *b"d", EOS]),
        (Vocab(True, SpecialTokens(BOS, EOS, SEP, adds_eos=True, adds_sep=True)), [BOS, *b"q", EOS, SEP, *b"d", EOS]),
        (Vocab(True, SpecialTokens(BOS, None, SEP, adds_sep=True)), [BOS, *b"q", SEP, *b"d"]),
        (Vocab(True, SpecialTokens(BOS, None, SEP, adds_eos=True)), [BOS, *b"q", SEP, *b"d", SEP]),
        (Vocab(True, SpecialTokens(adds_eos=True, adds_sep=True)), [*b"qd"]),
        (Vocab(named_templates={"rerank": "<{query}|{document}>"}), [*b"<q|d>"]),
    ],
)
def test_the_frame_is_what_the_vocabulary_adds(vocab, expected):
    assert RankQuery(vocab, "q").with_document("d") == expected


def test_a_query_that_names_a_gap_is_not_filled_again():
    vocab = Vocab(named_templates={"rerank": "{query}/{document}/{query}"})
    assert bytes(RankQuery(vocab, "{document}").with_document("{query}")) == b"{document}/{query}/{document}"


TEMPLATES = [{}, {"rerank": "<{query}|{document}>"}]


@given(
    templates=st.sampled_from(TEMPLATES),
    query=st.text(max_size=8),
    document=st.text(max_size=30),
    max_document=st.none() | st.integers(1, 20),
    max_tokens=st.none() | st.integers(1, 40),
)
def test_a_pair_is_cut_at_the_end_of_its_document_and_nowhere_else(
    templates, query, document, max_document, max_tokens
):
    vocab = Vocab(True, SpecialTokens(BOS, EOS, SEP, adds_eos=True), dict(templates))
    pair_of = RankQuery(vocab, query).with_document
    whole, empty = pair_of(document), pair_of("")
    cut = pair_of(document, max_document=max_document, max_tokens=max_tokens)
    n_kept, head = len(cut) - len(empty), len(empty) - 1  # each of these frames ends with one token
    assert n_kept >= 0
    assert cut[:head] == whole[:head]
    assert cut[-1:] == whole[-1:]
    assert document.encode().startswith(bytes(cut[head : head + n_kept]))
    assert max_document is None or n_kept <= max_document
    assert max_tokens is None or len(cut) <= max(max_tokens, len(empty))
    if not templates:  # whole tokens: nothing is given away
        room = len(document.encode())
        room = min(room, max_document if max_document is not None else room)
        room = min(room, max(0, max_tokens - len(empty)) if max_tokens is not None else room)
        assert n_kept == room


def test_a_pair_that_does_not_fit_is_named():
    assert fitting([1, 2], 2, 7) == [1, 2]
    with pytest.raises(ContextOverflow, match=r"documents\[7\] and the query have 3 tokens.* at most 2") as caught:
        fitting([1, 2, 3], 2, 7)
    assert (caught.value.param, caught.value.n_prompt, caught.value.n_most) == ("documents[7]", 3, 2)
    with pytest.raises(InvalidParameter, match=r"text_2\[0\] and the query are empty"):
        fitting([], 2, 0, "text_2")
