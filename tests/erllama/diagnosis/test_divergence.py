"""The position is exactly the first token that differs from everything that was known."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cache_store import BLOCK_TOKENS, TokenChain, root_key
from erllama.diagnosis.divergence import find_divergence, is_similar
from erllama.diagnosis.history import PromptHistory
from erllama.diagnosis.record import NO_IDS, StoreAnswer

ROOT, OTHER = root_key("a"), root_key("b")
few_ids = st.lists(st.integers(0, 2), min_size=1, max_size=12)


def n_alike(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def history_of(*sequences, root=ROOT, **bounds):
    history = PromptHistory(**bounds)
    for i, ids in enumerate(sequences):
        history.add(TokenChain(root, ids), float(i))
    return history


@given(st.lists(few_ids, max_size=8), few_ids)
def test_the_position_is_the_first_token_that_differs_from_all_recent_prompts(sequences, prompt):
    found = find_divergence(TokenChain(ROOT, prompt), history_of(*sequences).nearest(TokenChain(ROOT, prompt)), None)
    assert found.position == max((n_alike(prompt, ids) for ids in sequences), default=0)
    if found.position == 0:
        assert found.known_in == ""
    elif len(found.stored):
        continued = [*prompt[: found.position], *found.stored.tolist()]
        assert continued in sequences, "both sides are those of one sequence"
        assert found.position == len(prompt) or found.stored[0] != prompt[found.position]
    else:
        assert prompt[: found.position] in sequences


@given(few_ids, few_ids, few_ids)
def test_the_store_counts_where_it_knows_more(recent, stored, prompt):
    n = n_alike(prompt, stored)
    answer = StoreAnswer(n, n, np.array(stored[n:], dtype=np.uint32))
    chain = TokenChain(ROOT, prompt)
    found = find_divergence(chain, history_of(recent).nearest(chain), answer)
    assert found.position == max(n, n_alike(prompt, recent))
    assert (found.known_in == "store") == (n > n_alike(prompt, recent))


@given(st.lists(few_ids, min_size=1, max_size=12), st.integers(1, 4), st.integers(4, 60))
def test_the_history_keeps_its_bounds_and_forgets_the_oldest(sequences, max_entries, max_bytes):
    history = history_of(*sequences, max_entries=max_entries, max_bytes=max_bytes)
    assert len(history) <= max_entries
    assert history.n_bytes <= max_bytes or len(history) == 1
    newest = TokenChain(ROOT, sequences[-1])
    assert history.nearest(newest)[0] == len(newest)


def test_a_turn_takes_the_place_of_the_one_that_it_continues():
    history = history_of([1, 2], [1, 2, 3], [9], [1, 2])
    assert len(history) == 2
    assert history.nearest(TokenChain(ROOT, [1, 2, 3, 4]))[0] == 3


def test_what_lies_under_another_root_does_not_exist():
    assert history_of([1, 2, 3], root=OTHER).nearest(TokenChain(ROOT, [1, 2, 3])) == (0, NO_IDS)


def test_another_replica_tells_what_it_had_seen_before_a_time():
    chain = TokenChain(ROOT, range(4 * BLOCK_TOKENS))
    history = PromptHistory()
    history.add(chain.prefix(2 * BLOCK_TOKENS + 5), 10.0)
    history.add(chain, 20.0)
    keys = chain.block_keys(0)
    asked = [history.n_seen(keys, BLOCK_TOKENS, at_s) for at_s in (5.0, 15.0, 25.0)]
    assert asked == [0, 2 * BLOCK_TOKENS, 4 * BLOCK_TOKENS]
    assert history.n_seen(TokenChain(OTHER, range(600)).block_keys(0), BLOCK_TOKENS, 25.0) == 0


def test_sides_are_similar_where_most_of_the_shorter_one_returns():
    base = np.arange(200, dtype=np.uint32)
    inserted = np.concatenate([np.array([7, 7, 7], dtype=np.uint32), base])
    assert is_similar(inserted, base)
    assert not is_similar(base + 1000, base)
    assert not is_similar(base[:10], base), "ten tokens are what any template writes"
