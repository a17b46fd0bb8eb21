"""Ranking above the backend: parts of a long list, and what is refused by its place in the whole."""

import pytest

from erllama.backend.special_tokens import SpecialTokens
from erllama.errors import ContextOverflow, InvalidParameter, NotSupported
from erllama.model import Model
from erllama.testing.stub_backend import StubBackend


class Backend(StubBackend):
    """Remembers what it computes at once."""

    parts: list[list[int]]

    def rank(self, inputs):
        self.parts.append([len(tokens) for tokens in inputs])
        return super().rank(inputs)

    def embed(self, inputs):
        self.parts.append([len(tokens) for tokens in inputs])
        return super().embed(inputs)


@pytest.fixture
def it():
    backend = Backend(n_ctx=20_000)
    backend.parts = []
    with Model(path="demo", make_backend=lambda config: backend) as model:
        yield model, backend


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([], []),
        ([1] * 16, [[1] * 16]),
        ([1] * 33, [[1] * 16, [1] * 16, [1]]),
        ([9000, 1, 9000], [[9000], [1], [9000]]),
        ([8000, 192, 1], [[8000, 192], [1]]),
        ([4096] * 5, [[4096] * 2, [4096] * 2, [4096]]),
    ],
)
def test_running_requests_get_a_step_after_a_few_inputs_or_many_tokens(it, lengths, parts):
    model, backend = it
    for compute in (model.rank, model.embed_many):
        backend.parts = []
        assert len(compute([[5] * n for n in lengths])) == len(lengths)
        assert backend.parts == parts


def test_documents_are_scored_with_their_query(it):
    model, _ = it
    assert model.rerank("qe", ["e", "", "xx"]) == pytest.approx([2 / 4, 1 / 3, 1 / 5])
    assert model.rerank("q", []) == []


def test_the_document_that_does_not_fit_is_named_by_its_place_in_the_whole_list(it):
    model, backend = it
    with pytest.raises(ContextOverflow, match=r"documents\[40\] and the query have 20002 tokens.* at most 20000"):
        model.rerank("q", ["a"] * 40 + ["b" * 20_000])
    backend.vocab.specials = SpecialTokens()
    with pytest.raises(InvalidParameter, match=r"documents\[1\] and the query are empty"):
        model.rerank("", ["a", ""])
    assert backend.parts == [], "something was computed all the same"


def test_a_model_without_a_rank_head_ranks_nothing(it):
    model, backend = it
    backend.rank_tokens = 0
    with pytest.raises(NotSupported, match="no rank head"):
        model.rerank("q", ["a"])
    assert model.model_info().rank_tokens == 0
