"""A request that goes on where an earlier run of it was cut off: what was delivered before and what
is delivered now are one reply.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_store import BLOCK_TOKENS, Store, StoreConfig, TierConfig
from erllama.chat.transcript import prompt_key, reply_signature, transcript_id
from erllama.errors import ContextOverflow, InvalidParameter
from erllama.events import CacheHitKind, FinishReason, TokenLogprob, Tokens
from erllama.grammar.reasoning_budget import ReasoningBudget
from erllama.kv.layout import KvKind
from erllama.request import GenerationRequest
from erllama.testing.stub_backend import EOG, StubBackend
from tests.support.engine_kit import TRANSCRIPT_ROOT, Rig, make_rig, request
from tests.support.flow_kit import LOGITS, N_CTX, POLICY, SAMPLED, WAIT_S, ask, flushed, prompt, reply, rig_of

SPLIT = tuple((byte, 24.0) for byte in "aé€😀".encode())  # characters of one to four bytes, and bytes that make none
N_REPLY = 40


@dataclass(frozen=True)
class Part:
    """What events carried."""

    ids: list[int]
    text: str
    logprobs: list[TokenLogprob]

    def __add__(self, other: "Part") -> "Part":
        return Part(self.ids + other.ids, self.text + other.text, self.logprobs + other.logprobs)


def part(events: list[object]) -> Part:
    tokens = [event for event in events if isinstance(event, Tokens)]
    logprobs = [one for event in tokens for one in event.logprobs or ()]
    return Part([token for event in tokens for token in event.ids], "".join(event.text for event in tokens), logprobs)


def delivered(rig: Rig, name: str, n_tokens: int) -> Part:
    """What had left when the first `n_tokens` had: text that was held back longer had not."""
    return part([event for event in rig.events[name] if isinstance(event, Tokens) and event.ids][:n_tokens])


@contextmanager
def stores() -> Iterator[Store]:
    with Store(StoreConfig(tiers=(TierConfig(f"memory://{uuid.uuid4()}"),))) as store:
        yield store


@settings(max_examples=40)
@given(
    n_prompt=st.integers(1, 900),
    cut=st.integers(0, N_REPLY),
    sampling=st.sampled_from(
        [{"temperature": 0.0}, SAMPLED, {**SAMPLED, "repetition_penalty": 1.5, "frequency_penalty": 1.0}]
    ),
    bias=st.sampled_from([(), SPLIT]),
    stop=st.sampled_from([(), ("e", "t"), ("th", "the", "an", "a\xe9"), (" ", "  x"), ("é€", "😀a", "�")]),
    more=st.sampled_from(
        [
            {},
            {"logprobs": 2},
            {"grammar": 'root ::= "some text of the grammar"'},
            {"ignore_eos": True},
            {"reasoning": ReasoningBudget(7, tuple(b"</x>"))},
            {"shown": ((EOG, "<end>"),), "ignore_eos": True},
        ]
    ),
    kind=st.sampled_from([kind for kind in KvKind if kind is not KvKind.OPAQUE]),
    policy=st.sampled_from([POLICY, LOGITS]),
    way=st.sampled_from(["no store", "same engine", "other engine", "busy engine"]),
)
def test_a_reply_cut_anywhere_is_the_whole_one(
    n_prompt: int,
    cut: int,
    sampling: dict,
    bias: tuple,
    stop: tuple,
    more: dict,
    kind: KvKind,
    policy: object,
    way: str,
):
    params = {**sampling, **more, "stop": stop, "logit_bias": bias, "max_tokens": N_REPLY}
    with stores() as store:
        first = rig_of(store, policy, kind=kind)
        whole = ask(first, "it", prompt(n_prompt), **params)
        before = delivered(first, "it", cut)
        rig = first if way == "same engine" else rig_of(None if way == "no store" else store, policy, kind=kind)
        if way == "busy engine":
            rig.submit(request("neighbour", prompt(n_prompt), seed=5, max_tokens=200))
            rig.step(2)
        done = ask(rig, "on", prompt(n_prompt), resumed=tuple(before.ids), **params)
        assert before + part(rig.events["on"]) == part(first.events["it"])
        assert (done.finish_key, done.stats.completion_tokens) == (whole.finish_key, whole.stats.completion_tokens)
        assert (done.stats.finish_reason, done.stats.stop_sequence) == (
            whole.stats.finish_reason,
            whole.stats.stop_sequence,
        )
        assert done.stats.resumed_tokens == len(before.ids)
        assert rig.engine.stats.cache.last_problem == ""


def test_a_reply_that_the_model_ends_ends_where_it_would_have():
    def rig() -> Rig:
        return make_rig(StubBackend(N_CTX, 4, reply_tokens=12), n_ctx=N_CTX)

    first = rig()
    assert ask(first, "it", prompt(20), max_tokens=100).stats.finish_reason is FinishReason.STOP
    whole = first.ids("it")
    assert 3 < len(whole) < 100
    for cut in range(len(whole) + 1):
        on = rig()
        assert (
            ask(on, "on", prompt(20), resumed=tuple(whole[:cut]), max_tokens=100).stats.finish_reason
            is FinishReason.STOP
        )
        assert on.ids("on") == whole[cut:]


# --- a reply that was complete --------------------------------------------------------------------


def test_a_reply_that_was_complete_ends_at_once_and_computes_nothing():
    whole = reply(prompt(600), max_tokens=10)
    rig = rig_of(None)
    stats = ask(rig, "on", prompt(600), resumed=tuple(whole), max_tokens=10).stats
    assert (stats.finish_reason, stats.completion_tokens, stats.computed_tokens) == (FinishReason.LENGTH, 10, 0)
    assert rig.backend.plans == []
    assert rig.engine.stats.n_free_seq_ids == rig.engine.stats.n_parallel


def test_a_reply_that_had_reached_its_stop_string_ends_at_once():
    whole = reply(prompt(600), max_tokens=10)
    rig = rig_of(None)
    stats = ask(rig, "on", prompt(600), resumed=tuple(whole), max_tokens=20, stop=(bytes(whole[8:]).decode(),)).stats
    assert (stats.finish_reason, stats.stop_sequence) == (FinishReason.STOP, bytes(whole[8:]).decode())
    assert (rig.backend.plans, rig.text("on")) == ([], "")


def test_a_reply_that_had_filled_the_context_ends_at_once():
    rig = rig_of(None)
    assert (
        ask(rig, "on", prompt(N_CTX - 3), resumed=(97, 98, 99), max_tokens=None).stats.finish_reason
        is FinishReason.LENGTH
    )
    assert rig.backend.plans == []


# --- what cannot be resumed -----------------------------------------------------------------------


@pytest.mark.parametrize("resumed", [[97], (97, "x"), (True,), (1.0,), None])
def test_resumed_is_token_ids(resumed: object):
    with pytest.raises(InvalidParameter, match="resumed must be token ids") as refused:
        GenerationRequest("it", (1,), resumed=resumed)  # type: ignore[arg-type]
    assert refused.value.param == "resumed"


def test_resumed_is_not_longer_than_the_reply_may_be():
    with pytest.raises(
        InvalidParameter, match=r"resumed has 4 tokens and max_tokens, which counts them, is 3"
    ) as refused:
        request("it", resumed=(97,) * 4, max_tokens=3)
    assert refused.value.param == "resumed"


@pytest.mark.parametrize(
    ("resumed", "error", "says"),
    [
        ((97, 257), InvalidParameter, "resumed holds token id 257; the vocabulary has ids 0 to 256"),
        ((97, -1), InvalidParameter, "resumed holds token id -1"),
        ((97, EOG), InvalidParameter, "resumed holds a token that ends a reply"),
        (
            (97,) * (N_CTX - 4),
            ContextOverflow,
            "the prompt has 5 tokens and resumed 2044; the context of this model holds 2048",
        ),
    ],
)
def test_resumed_ids_that_cannot_be_a_reply_are_refused(resumed: tuple, error: type, says: str):
    with pytest.raises(error, match=says) as refused:
        rig_of(None).engine.validate(request("it", "hello", resumed=resumed))
    assert refused.value.param == "resumed"


def test_a_resumed_id_that_the_grammar_refuses_fails_that_request_alone():
    rig = rig_of(None)
    rig.submit(request("neighbour", max_tokens=20))
    rig.step(3)
    matchers = rig.kept_matchers()
    rig.submit(request("it", grammar='root ::= "some text"', resumed=tuple(b"some tale"), max_tokens=20))
    rig.run()
    error = rig.error("it")
    assert isinstance(error, InvalidParameter)
    assert (error.param, error.message) == (
        "resumed",
        f"resumed holds token id {ord('a')} where the grammar does not allow it",
    )
    assert [matcher() for matcher in matchers] == [None]
    assert rig.ids("neighbour") == reply(list(b"hello"), max_tokens=20)


def test_resumed_ids_behind_a_stop_string_fail():
    rig = rig_of(None)
    rig.submit(request("it", resumed=tuple(b"abcd"), stop=("bc",)))
    rig.run()
    assert "goes on after a stop string" in str(rig.error("it"))


# --- what a resume costs --------------------------------------------------------------------------


def test_the_stats_tell_what_a_resume_took_over_and_what_it_computed(store: Store):
    rig = rig_of(store, replace(POLICY, continued_interval=100))
    whole = reply(prompt(300), max_tokens=400)
    rig.submit(request("it", prompt(300), max_tokens=400))
    while len(rig.ids("it")) < 250:
        rig.step()
    flushed(store)
    other = rig_of(store)
    stats = ask(other, "on", prompt(300), resumed=tuple(rig.ids("it")), max_tokens=400).stats
    assert rig.ids("it") + other.ids("on") == whole
    assert (stats.prompt_tokens, stats.completion_tokens, stats.resumed_tokens) == (300, 400, 250)
    assert (stats.cached_tokens, stats.computed_tokens) == (300, 300 + 250 - 512)
    assert (stats.cache_hit_kind, stats.cache_tier) == (CacheHitKind.PARTIAL, "disk")
    counts = other.engine.stats.counts
    assert (counts.prompt_tokens - counts.cached_tokens, counts.completion_tokens) == (stats.computed_tokens, 150)


def test_a_prompt_of_which_a_part_is_found_reports_that_part(store: Store):
    ask(rig_of(store), "first", prompt(500), max_tokens=0)
    stats = ask(rig_of(store), "on", [*prompt(500), 1, 2], resumed=(97, 98), max_tokens=4).stats
    assert (stats.cached_tokens, stats.computed_tokens) == (500, 4)


@settings(max_examples=15)
@given(
    n_prompt=st.integers(1, 800),
    cuts=st.lists(st.integers(1, 330), min_size=1, max_size=3),
    interval=st.sampled_from([2, 64, 256, 300]),
    kind=st.sampled_from([KvKind.ATTENTION, KvKind.HYBRID]),
)
def test_however_often_engines_die_at_most_an_interval_and_a_block_is_computed_again(
    n_prompt: int, cuts: list[int], interval: int, kind: KvKind
):
    """Each of them after so many tokens, with what it had handed over written. Prompts that are too
    short for a save of their own, too.
    """
    policy = replace(POLICY, min_tokens=512, cold_min_tokens=512, continued_interval=interval)
    ids: list[int] = []
    with stores() as store:
        for i, n_tokens in enumerate([*cuts, 1]):
            rig = rig_of(store, policy, kind=kind, speculation="off")
            rig.submit(request("it", prompt(n_prompt), resumed=tuple(ids), max_tokens=len(ids) + n_tokens + 1))
            while len(rig.ids("it")) < n_tokens:
                rig.engine.step()
            rig.check()
            computed = rig.computed() - (n_tokens - 1)
            assert i == 0 or computed <= interval + BLOCK_TOKENS
            ids += rig.ids("it")
            flushed(store)
    assert ids == reply(prompt(n_prompt), max_tokens=len(ids))


def test_a_prompt_too_short_for_a_cold_save_is_saved_at_its_end_once_it_has_an_interval(store: Store):
    rig = rig_of(store, replace(POLICY, min_tokens=512, cold_min_tokens=512, continued_interval=100))
    rig.submit(request("it", prompt(400), max_tokens=300))
    rig.prefill()
    flushed(store)
    stats = ask(rig_of(store), "on", prompt(400), resumed=tuple(rig.ids("it")), max_tokens=300).stats
    assert (stats.resumed_tokens, stats.computed_tokens) == (1, 400 + 1 - 256)


def test_what_an_earlier_run_saved_is_not_written_again(store: Store, saves: list):
    policy = replace(POLICY, continued_interval=300)
    rig = rig_of(store, policy)
    rig.submit(request("it", prompt(300), max_tokens=1200))
    while len(rig.ids("it")) < 700:
        rig.step()
    ask(rig_of(store, policy), "on", prompt(300), resumed=tuple(rig.ids("it")), max_tokens=1200)
    written = sorted(rows for _, save in saves for rows in save)
    # each where the last one ended
    assert [start for start, _ in written] == [0, *[start + n for start, n in written][:-1]]
    assert {reason for reason, _ in saves} == {"cold", "continued", "finish"}


def test_a_prompt_capped_by_its_cold_saves_is_not_made_up_for_by_the_first_token(store: Store, saves: list):
    ask(
        rig_of(store, replace(POLICY, cold_max_tokens=600, continued_interval=100, min_tokens=5000)),
        "it",
        prompt(1500),
        max_tokens=60,
    )
    assert sum(n for _, rows in saves for _, n in rows) == 600


def test_a_short_prompt_that_was_taken_over_live_counts_as_unsaved(store: Store):
    policy = replace(POLICY, min_tokens=512, cold_min_tokens=512, continued_interval=500)
    rig = rig_of(store, policy)
    ask(rig, "first", prompt(400))
    rig.submit(request("it", prompt(400), max_tokens=300))
    while len(rig.ids("it")) < 150:
        rig.step()
    flushed(store)
    assert (
        ask(rig_of(store), "on", prompt(400), resumed=tuple(rig.ids("it")), max_tokens=300).stats.computed_tokens <= 500
    )


# --- what follows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 15, 30])
def test_the_recorded_reply_is_the_whole_one(store: Store, cut: int):
    whole = reply(prompt(300), max_tokens=30)
    ask(rig_of(store), "on", prompt(300), resumed=tuple(whole[:cut]), max_tokens=30, record_transcript=True)
    signature = reply_signature(bytes(whole).decode())
    assert signature is not None
    block = store.get(transcript_id(TRANSCRIPT_ROOT, prompt_key(TRANSCRIPT_ROOT, prompt(300)), signature), WAIT_S)
    assert block is not None
    assert block.tokens.tolist() == whole


@pytest.mark.parametrize("cut", [1, 15, 30])
def test_the_session_goes_on_after_the_whole_reply(cut: int):
    whole = reply(prompt(300), max_tokens=30)
    rig = rig_of(None)
    ask(rig, "on", prompt(300), resumed=tuple(whole[:cut]), max_tokens=30, session_id="s")
    assert rig.engine.sessions.transcript("s") == (*prompt(300), *whole)


def test_a_resumed_reply_is_taken_over_live_by_the_next_turn():
    whole = reply(prompt(300), max_tokens=30)
    rig = rig_of(None)
    ask(rig, "on", prompt(300), resumed=tuple(whole[:20]), max_tokens=30)
    assert ask(rig, "next", [*prompt(300), *whole, 1, 2]).stats.cached_tokens == 300 + 30 - 1


def test_two_that_resume_the_same_reply_compute_it_once():
    """Slices end at 512: the second one must not go on from there, where the prompt ends, but wait
    for what was resumed, too.
    """
    rig = rig_of(None)
    whole = reply(prompt(500), max_tokens=110)
    rig.submit(*[request(name, prompt(500), resumed=tuple(whole[:100]), max_tokens=110) for name in ("one", "two")])
    rig.run()
    assert rig.ids("one") == rig.ids("two") == whole[100:]
    assert sum(rig.done(name).stats.computed_tokens for name in ("one", "two")) <= 600 + 1


@pytest.mark.parametrize("kind", [KvKind.ATTENTION, KvKind.RECURRENT])
def test_a_resume_takes_over_the_logits_of_one_that_has_just_been_resumed(kind: KvKind):
    rig = rig_of(None, kind=kind)
    whole = reply(prompt(300), max_tokens=60)
    rig.submit(request("one", prompt(300), resumed=tuple(whole[:50]), max_tokens=60))
    rig.prefill()
    assert ask(rig, "two", prompt(300), resumed=tuple(whole[:50]), max_tokens=60).stats.computed_tokens == 0
    assert rig.ids("one") == rig.ids("two") == whole[50:]


def test_the_end_of_the_reasoning_is_forced_and_counts_as_tokens_of_the_reply():
    rig = make_rig()
    rig.submit(request("a", max_tokens=12, reasoning=ReasoningBudget(3, tuple(b"</t>"))))
    rig.run()
    assert bytes(rig.ids("a"))[3:7] == b"</t>"
    assert rig.done("a").stats.completion_tokens == 12


def test_a_token_that_a_reply_shows_has_its_text_there():
    rig = make_rig()
    rig.submit(request("a", max_tokens=2, shown=((104, "<shown>"),), grammar='root ::= "h" "i"'))
    rig.run()
    assert rig.text("a") == "<shown>i"
