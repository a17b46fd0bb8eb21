"""What is stored behind the point where a prompt leaves it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache_store.format.block import BlockId
from cache_store.format.keys import BLOCK_TOKENS, TokenChain, root_key
from cache_store.index.index import Index
from cache_store.index.walk import MAX_BRANCH

ROOT = root_key("namespace")
RNG = np.random.default_rng(1)


def stored(index, ids, *, tokens=True):
    """A sequence as a save stores it: whole blocks, and the rest."""
    chain = TokenChain(ROOT, ids)
    ends = [*range(BLOCK_TOKENS, len(ids), BLOCK_TOKENS), len(ids)]
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        known = np.array(ids[start:end], dtype=np.uint32) if tokens else None
        index.add(BlockId.of_rows(chain, start, end), 0, 100, known)
    return chain


def branch(index, ids):
    path = index.longest_prefix(TokenChain(ROOT, ids))
    return path.n_tokens, index.branch(path).tolist()


@given(st.integers(1, 700), st.integers(0, 700), st.integers(1, 40))
def test_it_goes_on_with_the_tokens_of_the_stored_prefix(n_stored, at, n_more):
    ids = RNG.integers(0, 9, n_stored).tolist()
    at = min(at, n_stored)
    index = Index(1, lambda: 1.7e9)
    stored(index, ids)
    assert branch(index, [*ids[:at], *[9] * n_more]) == (at, ids[at:])


def test_where_several_go_on_the_one_that_was_used_most_is_told():
    index = Index(1, lambda: 1.7e9)
    head = list(range(BLOCK_TOKENS))
    stored(index, [*head, 1, 1, 1])
    used = stored(index, [*head, 2, 2, 2])
    stored(index, [*head, 3, 3, 3])
    index.touch([BlockId.of_rows(used, BLOCK_TOKENS, BLOCK_TOKENS + 3)], 5)
    assert branch(index, [*head, 9]) == (BLOCK_TOKENS, [2, 2, 2])


def test_what_nobody_knows_the_tokens_of_is_not_told():
    index = Index(1, lambda: 1.7e9)
    ids = list(range(2 * BLOCK_TOKENS))
    stored(index, ids, tokens=False)
    assert branch(index, [*ids[:BLOCK_TOKENS], 9]) == (BLOCK_TOKENS, [])
    assert branch(Index(1, lambda: 1.7e9), [1, 2]) == (0, [])


def test_it_is_bounded():
    index = Index(1, lambda: 1.7e9)
    stored(index, list(range(MAX_BRANCH + 3 * BLOCK_TOKENS)))
    assert branch(index, [0, 9])[1] == list(range(1, MAX_BRANCH + 1))
