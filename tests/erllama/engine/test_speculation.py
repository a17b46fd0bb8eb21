"""Speculation never shows in a reply: the same events with it and without it, in fewer decodes."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.backend.batch_plan import BatchPlan, PlanRow
from erllama.events import CompletionParts, Done, Event, FinishReason
from erllama.grammar.matcher import ConstraintMatcher
from erllama.kv.layout import KvKind
from erllama.request import GenerationRequest
from erllama.sequence.machine import State
from erllama.speculation.speculator import Speculator
from erllama.testing.stub_backend import EOG, StubBackend
from tests.support.engine_kit import Rig, make_rig, make_sequence, request

N_CTX = 256
PARAMS: dict[str, dict[str, object]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 3.0, "top_k": 0},
    "penalties": {"repetition_penalty": 1.4, "frequency_penalty": 0.5, "repeat_last_n": 16},
    "stop": {"stop": ("th", "e s", "an")},
    "logprobs": {"logprobs": 3},
    "drawn": {"logprobs": 2, "post_sampling": True},
    "grammar": {"grammar": 'root ::= "the " [a-z ]+ " and the" " end"'},
    "ignoring the end": {"ignore_eos": True, "temperature": 0.0},
}


def rig_of(mode: str, n_parallel: int = 4, reply_tokens: int = 0, kind: KvKind = KvKind.ATTENTION) -> Rig:
    backend = StubBackend(N_CTX, n_parallel, reply_tokens=reply_tokens, kind=kind)
    return make_rig(backend, n_parallel=n_parallel, n_ctx=N_CTX, speculation=mode)


def served(rig: Rig, *requests: GenerationRequest) -> int:
    """Serve them together; the number of decodes."""
    rig.submit(*requests)
    return rig.run()


def reply(events: list[Event]) -> tuple[object, ...]:
    """What a client sees of it."""
    parts = CompletionParts()
    for event in events:
        whole = parts.add(event)
    assert isinstance(events[-1], Done)
    stats = whole.stats
    return whole.text, whole.tokens, whole.logprobs, whole.finish_key, stats.finish_reason, stats.stop_sequence


def plain_reply(one: GenerationRequest, reply_tokens: int = 0) -> tuple[tuple[object, ...], tuple[int, ...], int]:
    rig = rig_of("off", reply_tokens=reply_tokens)
    n = served(rig, one)
    return reply(rig.events[one.request_id]), tuple(rig.ids(one.request_id)), n


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("reply_tokens", [0, 24])
def test_a_right_prediction_gives_the_reply_in_fewer_decodes(params: dict[str, object], reply_tokens: int):
    one = request("one", "a prompt", max_tokens=48, **params)
    wanted, ids, n_plain = plain_reply(one, reply_tokens)
    rig = rig_of("exact", reply_tokens=reply_tokens)
    told = request("one", "a prompt", max_tokens=48, prediction=ids, **params)
    n = served(rig, told)
    assert reply(rig.events["one"]) == wanted
    stats = rig.done("one").stats
    assert stats.accepted_tokens <= stats.drafted_tokens
    if len(ids) > 8:
        assert n < n_plain / 2
        assert stats.accepted_tokens > len(ids) / 2


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(PARAMS)),
    wrong=st.lists(st.integers(0, 47), max_size=6),
    extra=st.text(st.sampled_from("etaoin "), max_size=4),
    seeds=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    max_tokens=st.integers(1, 48),
)
def test_a_wrong_prediction_changes_nothing(name: str, wrong: list[int], extra: str, seeds: list[int], max_tokens: int):
    """Several sequences in one decode, each with its own draft: wrong at some places, or shifted."""
    asked, wanted = [], []
    for i, seed in enumerate(seeds):
        plain = request(f"r{i}", f"prompt {i}", seed=seed, max_tokens=max_tokens, **PARAMS[name])
        result, ids, _ = plain_reply(plain)
        wanted.append(result)
        predicted = list(ids)
        for at in wrong:
            if at < len(predicted):
                predicted[at] = ord("z") if i % 2 else ord(" ")
        told = tuple(extra.encode()) + tuple(predicted)
        asked.append(request(f"r{i}", f"prompt {i}", seed=seed, max_tokens=max_tokens, prediction=told, **PARAMS[name]))
    rig = rig_of("exact")
    served(rig, *asked)
    assert [reply(rig.events[one.request_id]) for one in asked] == wanted


def test_a_reply_that_repeats_its_prompt_is_found_there():
    """The prompt holds what the model says anyway."""
    _, ids, n_plain = plain_reply(request("one", "a prompt", max_tokens=64, temperature=0.0))
    text = bytes(ids).decode()
    grammar = json.dumps(text)
    prompt = f"Say it: {text}\n"
    plain = request("two", prompt, max_tokens=64, grammar=f"root ::= {grammar}")
    wanted, _, n_plain = plain_reply(plain)
    rig = rig_of("exact")
    n = served(rig, plain)
    assert reply(rig.events["two"]) == wanted
    assert n < n_plain / 2


def test_a_grammar_with_one_way_on_is_its_own_draft():
    plain = request("one", "x", max_tokens=60, grammar='root ::= "nothing of this stands anywhere before"')
    wanted, ids, n_plain = plain_reply(plain)
    rig = rig_of("exact")
    n = served(rig, plain)
    assert reply(rig.events["one"]) == wanted
    assert rig.reason("one") is FinishReason.STOP
    assert n < n_plain / 3
    assert rig.done("one").stats.accepted_tokens > len(ids) / 2


def test_text_of_the_session_is_looked_through_where_the_prompt_has_dropped_it():
    rig = rig_of("exact")
    served(rig, request("one", "first ", max_tokens=40, temperature=0.0, session_id="s"))
    committed = tuple(b"first ") + tuple(rig.ids("one"))
    beside = rig.engine.sessions.texts_beside
    assert beside(request("two", "again: ", session_id="s")) == [committed]
    assert beside(request("two", (*committed, 1), session_id="s")) == []  # it stands in the prompt
    assert beside(request("two", "again: ")) == beside(request("two", "again: ", session_id="other")) == []


@pytest.mark.parametrize("kind", [KvKind.WINDOW, KvKind.RECURRENT, KvKind.HYBRID, KvKind.OPAQUE])
def test_what_cannot_be_cut_does_not_speculate(kind: KvKind):
    one = request("one", "a prompt", max_tokens=32, temperature=0.0)
    wanted, ids, _ = plain_reply(one)
    rig = rig_of("exact", kind=kind)
    served(rig, request("one", "a prompt", max_tokens=32, temperature=0.0, prediction=ids))
    assert reply(rig.events["one"]) == wanted
    assert all(n_tokens == 1 for plan in rig.backend.plans[1:] for _, _, n_tokens in plan)


def test_no_more_rows_than_are_computed_alike(monkeypatch: pytest.MonkeyPatch):
    one = request("one", "a prompt", max_tokens=48, temperature=0.0)
    _, ids, _ = plain_reply(one)
    told = request("one", "a prompt", max_tokens=48, temperature=0.0, prediction=ids)
    for mode, most in (("exact", 2), ("always", 16)):
        rig = rig_of(mode)
        monkeypatch.setattr(rig.backend, "exact_rows", lambda n_sequences, n_tokens: 3)
        served(rig, told)
        assert max(n_tokens for plan in rig.backend.plans[1:] for _, _, n_tokens in plan) == most


def test_the_end_of_the_budget_and_of_the_context_bound_a_draft():
    one = request("one", "x" * 230, temperature=0.0)
    wanted, ids, _ = plain_reply(one)
    rig = rig_of("exact")
    served(rig, request("one", "x" * 230, temperature=0.0, prediction=ids * 2))
    assert reply(rig.events["one"]) == wanted
    assert len(ids) == N_CTX - 230


def test_ids_that_the_vocabulary_lacks_are_refused():
    rig = rig_of("exact")
    with pytest.raises(Exception, match="prediction holds token id 999"):
        rig.submit(request("one", prediction=(1, 999)))


def test_a_reply_that_ends_inside_a_draft_leaves_only_its_own_tokens():
    """A stop string, and the model's end: the KV that stays is what a later prompt can go on from."""
    one = request("one", "a prompt", max_tokens=48, temperature=0.0)
    _, ids, _ = plain_reply(one)
    stop = bytes(ids[10:13]).decode()
    rig = rig_of("exact")
    told = request("one", "a prompt", max_tokens=48, temperature=0.0, stop=(stop,), prediction=(*ids, EOG))
    served(rig, told)
    assert rig.reason("one") is FinishReason.STOP
    held = rig.engine._flow.live.held
    assert [len(kv) for kv in rig.backend.kv if kv] == [one.n_tokens for one in held.values()]


@pytest.mark.parametrize(
    ("ids", "together"), [((0,), 1), ((0, 1, 2), 3), ((0, 2), 1), ((3, 1, 0), 1), ((0, 1, 3, 4), 2)]
)
def test_ids_with_a_gap_are_passes_of_their_own(ids: tuple[int, ...], together: int, monkeypatch: pytest.MonkeyPatch):
    """llama.cpp computes ids 0 and 2 in two passes, each of a lone sequence: it may choose other kernels."""
    backend = StubBackend(N_CTX, 8)
    asked: list[int] = []

    def exact_rows(n_sequences: int, n_tokens: int) -> int:
        asked.append(n_sequences)
        return 1

    monkeypatch.setattr(backend, "exact_rows", exact_rows)
    made = [make_sequence(f"s{i}", state=State.GENERATING, n_kv=4, n_generated=1, seq_id=i) for i in ids]
    plan = BatchPlan(tuple(PlanRow(sequence, 4, 1, 1) for sequence in made), ())
    assert Speculator(backend, "exact", 512).extend(plan) is plan
    assert asked == [together]


def test_adapters_speculate_only_where_near_ties_may_tip(tmp_path: Path):
    (tmp_path / "lora").write_text("lora")
    for mode, most in (("exact", 1), ("always", 16)):
        rig = rig_of(mode)
        rig.load_adapter(str(tmp_path / "lora"))
        one = request("one", "a prompt", max_tokens=48, temperature=0.0)
        served(rig, one)
        told = request("two", "a prompt", max_tokens=48, temperature=0.0, prediction=tuple(rig.ids("one")))
        n_before = len(rig.backend.plans)
        served(rig, told)
        assert rig.ids("two") == rig.ids("one")
        assert max(n_tokens for plan in rig.backend.plans[n_before + 1 :] for _, _, n_tokens in plan) == most


def test_a_grammar_that_takes_long_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    """Each answer is bounded, but there would be many in every decode, for all who wait."""
    monkeypatch.setattr("erllama.speculation.speculator._COSTLY_S", -1.0)
    asked: list[int] = []
    n_allowed = ConstraintMatcher.n_allowed

    def counted(self: ConstraintMatcher, tokens: tuple[int, ...]) -> int:
        asked.append(len(tokens))
        return n_allowed(self, tokens)

    monkeypatch.setattr(ConstraintMatcher, "n_allowed", counted)
    rig = rig_of("exact")
    served(rig, request("one", "x", max_tokens=60, grammar='root ::= "nothing of this stands anywhere before"'))
    assert len(asked) == 1
    assert asked[0] <= 1
    assert bytes(rig.ids("one")) == b"nothing of this stands anywhere before"
