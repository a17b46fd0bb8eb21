"""KV that outlives its request: who may take it over, in place or as a copy, and which is given up
first.
"""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store import ChainKey, TokenChain, n_common, root_key
from erllama.cache.live import Choice, Held, LiveKv, upcoming
from erllama.sequence.machine import State
from erllama.sequence.sequence import Sequence
from tests.support.engine_kit import ROOT, make_sequence

OTHER_ROOT = root_key("another model")
LONG = range(2000)  # a conversation worth keeping


def chain(tokens: Iterable[int], root: ChainKey = ROOT) -> TokenChain:
    return TokenChain(root, list(tokens))


def live_kv(*held: tuple[int, Iterable[int]], align: int = 1, sessions: dict[int, str] | None = None) -> LiveKv:
    """Idle KV by id, in the order in which it became idle."""
    live = LiveKv(align)
    for seq_id, tokens in held:
        live.keep(seq_id, Held(chain(tokens), (sessions or {}).get(seq_id)))
    return live


def choose(
    live: LiveKv,
    tokens: Iterable[int],
    free: Iterable[int],
    running: Iterable[Sequence] = (),
    *,
    session_id: str | None = None,
    cuttable: bool = True,
) -> Choice:
    live.cuttable = cuttable
    return live.choose(chain(tokens), session_id, free=free, running=running)


def running(
    seq_id: int, tokens: Iterable[int], *, n_kv: int | None = None, state: State = State.GENERATING
) -> Sequence:
    tokens = list(tokens)
    return make_sequence(
        f"on {seq_id}", state=state, seq_id=seq_id, tokens=tokens, n_kv=len(tokens) if n_kv is None else n_kv
    )


# --- in place or as a copy ------------------------------------------------------------------------


def test_a_conversation_goes_on_in_place():
    live = live_kv((1, LONG))
    assert choose(live, [*LONG, 7, 8, 9], free=range(4)) == Choice(1, 1, 2000)


@pytest.mark.parametrize("n_lost", [0, 1, 64])
def test_a_few_tokens_at_the_end_may_be_cut_off_in_place(n_lost: int):
    live = live_kv((1, LONG))
    assert choose(live, [*LONG[: 2000 - n_lost], 7, 7, 7], free=range(4)) == Choice(1, 1, 2000 - n_lost)


def test_a_short_side_request_takes_a_copy_and_the_long_conversation_stays():
    live = live_kv((1, LONG))
    assert choose(live, [*range(100), 7], free=range(4)) == Choice(0, 1, 100)


def test_the_last_free_id_is_taken_in_place_even_if_most_of_it_is_lost():
    live = live_kv((1, LONG))
    assert choose(live, [*range(100), 7], free=[1]) == Choice(1, 1, 100)


def test_the_kv_of_a_running_sequence_is_copied():
    assert choose(LiveKv(), [*range(100), 7], free=[0, 2], running=[running(1, range(50))]) == Choice(0, 1, 50)


def test_idle_kv_is_preferred_over_equal_running_kv():
    live = live_kv((2, range(50)))
    assert choose(live, [*range(50), 7], free=[0, 2], running=[running(1, range(50))]) == Choice(2, 2, 50)


def test_one_token_is_left_to_compute_for_the_logits():
    live = live_kv((0, range(500)))
    assert choose(live, range(500), free=[0]).n_tokens == 499


def with_logits(tokens: Iterable[int], n_prompt: int, root: ChainKey = ROOT) -> Held:
    return Held(chain(tokens, root), n_given=n_prompt, prompt_logits=np.zeros(3, dtype=np.float32))


def test_the_same_prompt_is_covered_whole_where_the_logits_at_its_end_are_known():
    live = LiveKv()
    live.keep(0, with_logits(range(500), 480))
    choice = choose(live, range(480), free=[0, 1])
    assert choice == Choice(0, 0, 480)
    assert choice.logits is not None


@pytest.mark.parametrize("prompt", [range(479), range(481), [*range(479), 7]], ids=["shorter", "longer", "other"])
def test_logits_belong_to_one_prompt(prompt: Iterable[int]):
    live = LiveKv()
    live.keep(0, with_logits(range(500), 480))
    choice = choose(live, prompt, free=[0, 1])
    assert choice.logits is None
    assert choice.n_tokens < len(prompt)


def test_logits_of_another_root_are_not_used():
    live = LiveKv()
    live.keep(0, with_logits(range(500), 480, OTHER_ROOT))
    assert choose(live, range(480), free=[0, 1]) == Choice(1)


def test_logits_of_a_state_that_cannot_be_cut_are_used_at_its_very_end_only():
    live = LiveKv()
    live.keep(0, with_logits(range(500), 480))
    live.keep(1, with_logits(range(1000, 1300), 300))
    assert choose(live, range(480), free=[0, 1, 2], cuttable=False) == Choice(2)
    assert choose(live, range(1000, 1300), free=[0, 1, 2], cuttable=False) == Choice(1, 1, 300)


def test_the_longest_common_prefix_wins():
    live = live_kv((0, [*range(100), 5, 5]), (1, [*range(300), 5, 5]), (2, [*range(200), 5, 5]))
    assert live.longest(chain(range(1000)), ()) == (1, 300, None)


def test_nothing_in_common_takes_nothing_over():
    live = live_kv((0, range(100)))
    assert choose(live, range(7, 100), free=range(2)) == Choice(1)


def test_kv_of_another_root_is_never_taken_over():
    live = LiveKv()
    live.keep(0, Held(chain(LONG, OTHER_ROOT)))
    other = make_sequence(state=State.GENERATING, seq_id=1, tokens=LONG, n_kv=2000, root=OTHER_ROOT)
    assert choose(live, [*LONG, 7], free=[0, 2], running=[other]) == Choice(2)


def test_only_what_a_running_sequence_has_in_the_context_counts():
    assert choose(
        LiveKv(), range(500), free=[0], running=[running(1, range(500), n_kv=64, state=State.PREFILLING)]
    ) == Choice(0, 1, 64)


# --- who is given up ------------------------------------------------------------------------------


def test_an_empty_id_is_taken_before_any_that_holds_kv():
    live = live_kv((0, range(10)), (1, range(10)))
    assert choose(live, [99], free=range(3)).seq_id == 2


def test_the_short_and_old_go_before_the_long_and_old():
    live = live_kv((0, LONG), (1, range(20)), (2, range(30)))
    given_up = []
    free = {0, 1, 2}
    while free:
        given_up.append(choose(live, [99], free=free).seq_id)
        live.take(given_up[-1])
        free.remove(given_up[-1])
    assert given_up == [1, 2, 0]


@given(st.integers(1, 6), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 60)), max_size=6), st.data())
def test_a_short_side_request_never_destroys_a_long_conversation_while_another_id_is_free(
    n: int, others: list, data: st.DataObject
):
    """Whatever the other ids hold, and whatever part of the conversation, or of theirs, the side
    request begins with.
    """
    live = LiveKv()
    for seq_id, n_tokens in others:
        if seq_id < n:
            live.keep(seq_id, Held(chain([*range(n_tokens // 2), *[7000] * (n_tokens // 2)])))
    live.keep(n, Held(chain(LONG)))
    side = [*range(data.draw(st.integers(0, 1900))), *[7000] * data.draw(st.integers(0, 30)), 5000]
    assert choose(live, side, free=range(n + 1)).seq_id != n


def test_a_first_token_in_common_does_not_spare_a_short_one_at_the_cost_of_a_long_one():
    live = live_kv((0, [1, *range(5000, 6999)]), (1, [2, 3, 4, *[9] * 500]))
    assert choose(live, [2, 8], free=[0, 1]) == Choice(1, 1, 1)


# --- sessions -------------------------------------------------------------------------------------


def test_the_kv_of_sessions_is_given_up_last():
    live = live_kv((0, range(20)), (1, LONG), sessions={0: "chat"})
    assert choose(live, [99], free=[0, 1]).seq_id == 1


def test_the_kv_of_a_session_is_given_up_when_nothing_else_is_free():
    live = live_kv((0, LONG), sessions={0: "chat"})
    assert choose(live, [9999], free=[0]).seq_id == 0


def test_the_oldest_session_is_given_up_first():
    live = live_kv((0, range(20)), (1, range(20)), sessions={0: "new", 1: "old"})
    live.keep(0, Held(chain(range(20)), "new"))
    assert choose(live, [99], free=[0, 1]).seq_id == 1


def test_a_stranger_copies_from_a_session_even_where_it_would_go_on_in_place():
    live = live_kv((0, LONG), sessions={0: "chat"})
    assert choose(live, [*LONG, 7], free=[0, 1]) == Choice(1, 0, 2000)


def test_a_session_goes_on_in_place():
    live = live_kv((0, LONG), sessions={0: "chat"})
    assert choose(live, [*LONG, 7], free=[0, 1], session_id="chat") == Choice(0, 0, 2000)


def test_a_session_has_one_pin():
    live = live_kv((0, LONG), sessions={0: "chat"})
    live.keep(1, Held(chain(range(20)), "chat"))
    assert [live.held[i].session_id for i in (0, 1)] == [None, "chat"]


def test_unpinned_kv_stays_and_is_like_any_other():
    live = live_kv((0, range(20)), (1, LONG), sessions={0: "chat"})
    live.unpin("chat")
    live.unpin("chat")
    assert choose(live, [99], free=[0, 1]).seq_id == 0
    assert live.n_tokens == 2020


# --- state that cannot be cut ---------------------------------------------------------------------


def test_a_state_that_cannot_be_cut_is_taken_over_whole():
    live = live_kv((0, range(100)))
    assert choose(live, [*range(100), 7], free=[0], cuttable=False) == Choice(0, 0, 100)


@pytest.mark.parametrize(
    "prompt", [range(99), [*range(99), 7, 8], range(100)], ids=["shorter", "parts before its end", "the same"]
)
def test_a_state_that_cannot_be_cut_is_not_taken_over_in_part(prompt: Iterable[int]):
    live = live_kv((0, range(100)))
    assert choose(live, prompt, free=[0, 1], cuttable=False) == Choice(1)


def test_a_shorter_state_that_fits_beats_a_longer_one_that_would_have_to_be_cut():
    live = live_kv((0, [*range(300), 7]), (1, range(200)))
    live.cuttable = False
    assert live.longest(chain(range(1000)), ()) == (1, 200, None)


# --- alignment ------------------------------------------------------------------------------------


def test_aligned_prefixes_are_multiples_of_the_slice():
    live = live_kv((0, range(100)), align=16)
    assert choose(live, [*range(100), 7], free=[0, 1]) == Choice(0, 0, 96)


def test_less_than_a_slice_in_common_is_nothing():
    live = live_kv((0, range(15)), align=16)
    assert choose(live, range(100), free=[0, 1]) == Choice(1)


# --- what is there --------------------------------------------------------------------------------


def test_exchanged_ids_exchange_what_they_hold():
    live = live_kv((0, range(10)), (1, range(20)))
    live.swap(0, 1)
    assert {i: held.n_tokens for i, held in live.held.items()} == {0: 20, 1: 10}
    live.swap(1, 5)
    assert {i: held.n_tokens for i, held in live.held.items()} == {0: 20, 5: 10}


def test_what_is_taken_is_gone():
    live = live_kv((0, range(10)))
    assert live.take(0).n_tokens == 10
    assert live.take(0) is None
    assert live.n_tokens == 0


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_the_common_prefix_is_common_and_the_longest(a: list[int], b: list[int]):
    n = n_common(chain(a).ids, chain(b).ids)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


# --- what will be there ---------------------------------------------------------------------------


def prefilling(seq_id: int, tokens: Iterable[int], n_kv: int = 0) -> Sequence:
    return running(seq_id, tokens, n_kv=n_kv, state=State.PREFILLING)


def test_a_prefill_that_shares_a_prefix_will_have_it():
    source = prefilling(0, range(500), 16)
    assert upcoming(chain([*range(300), 9, 9]), [source]) == (source, 300)


def test_the_prefill_with_the_longest_shared_prefix_is_named():
    short, long = prefilling(0, [*range(100), 5]), prefilling(1, [*range(200), 5])
    assert upcoming(chain(range(1000)), [long, short]) == (long, 200)
    assert upcoming(chain(range(1000)), [short, long]) == (long, 200)


def test_what_is_in_the_context_already_is_not_upcoming():
    assert upcoming(chain([*range(300), 9]), [prefilling(0, range(500), 300)]) is None


@pytest.mark.parametrize("state", sorted(set(State) - {State.PREFILLING}))
def test_only_prefills_are_upcoming(state: State):
    seq_id = None if state in (State.QUEUED, State.FINISHED) else 0
    assert upcoming(chain(range(300)), [make_sequence(state=state, seq_id=seq_id, tokens=range(500))]) is None


def test_prefills_of_another_root_are_not_upcoming():
    other = make_sequence(state=State.PREFILLING, seq_id=0, tokens=range(500), root=OTHER_ROOT)
    assert upcoming(chain(range(300)), [other]) is None


def test_a_prompt_may_be_upcoming_whole():
    source = prefilling(0, range(500))
    assert upcoming(chain(range(300)), [source]) == (source, 300)
