"""Parameters are validated by name, type and range; events merge without loss; everything that
crosses a boundary pickles.
"""

import itertools
import math
import pickle
import re
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erllama import errors
from erllama.errors import ErllamaError, InvalidParameter
from erllama.events import (
    CacheHitKind,
    Completion,
    Done,
    Event,
    Failed,
    FinishReason,
    RequestStats,
    TokenLogprob,
    Tokens,
    merge_events,
)
from erllama.grammar.constraint import MAX_GRAMMAR_BYTES, Constraint, ConstraintKind
from erllama.request import (
    MAX_LOGIT_BIAS,
    MAX_STOP_BYTES,
    MAX_STOP_STRINGS,
    PARAM_NAMES,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TokenPart,
    build_request,
)

NAN, INF, HUGE = math.nan, math.inf, 10**400


def build(**params) -> GenerationRequest:
    return build_request("req", [1, 2, 3], params)


# name, a lowest and a highest legal value, values just outside, words of the message that tell the
# limit
RANGES = [
    ("temperature", 0.0, 100.0, (-0.001, 100.001), "between 0 and 100"),
    ("top_k", 0, 1_000_000, (-1, 1_000_001), "between 0 and 1000000"),
    ("top_p", 0.0, 1.0, (-0.001, 1.001), "between 0 and 1"),
    ("min_p", 0.0, 1.0, (-0.001, 1.001), "between 0 and 1"),
    ("repetition_penalty", 0.01, 100.0, (0.0, 100.5), "between 0.01 and 100"),
    ("frequency_penalty", -2.0, 2.0, (-2.1, 2.1), "between -2 and 2"),
    ("presence_penalty", -2.0, 2.0, (-2.1, 2.1), "between -2 and 2"),
    ("repeat_last_n", -1, 1_000_000, (-2, 1_000_001), "between -1 and 1000000"),
    ("seed", -(2**63), 2**64 - 1, (-(2**63) - 1, 2**64), f"between {-(2**63)} and {2**64 - 1}"),
    ("response_tokens", 0, 2**31 - 1, (-1, 2**31), f"between 0 and {2**31 - 1}"),
    ("logprobs", 0, 20, (-1, 21), "between 0 and 20"),
]
INTEGERS = ("top_k", "repeat_last_n", "seed", "response_tokens", "logprobs")
FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")
FIELD = {"response_tokens": "max_tokens"}


@pytest.mark.parametrize(("name", "low", "high"), [(r[0], r[1], r[2]) for r in RANGES])
def test_the_limits_themselves_are_legal(name: str, low: float, high: float):
    build(**{name: low})
    build(**{name: high})


@pytest.mark.parametrize(("name", "value", "limit"), [(r[0], v, r[4]) for r in RANGES for v in r[3]])
def test_a_value_out_of_range_is_refused_with_its_name_and_the_limit(name: str, value: float, limit: str):
    field = FIELD.get(name, name)
    with pytest.raises(InvalidParameter, match=re.escape(f"{field} must be {limit}")) as caught:
        build(**{name: value})
    assert caught.value.param == field


WRONG_TYPES = [(name, value) for name in INTEGERS for value in ("1", 1.0, 1.5, True, [1], NAN, INF)] + [
    (name, value) for name in FLOATS for value in ("1", True, [1], NAN, INF, -INF, HUGE, 1j)
]


@pytest.mark.parametrize(("name", "value"), WRONG_TYPES, ids=lambda v: str(v)[:20])
def test_a_value_of_the_wrong_type_is_refused_with_its_name(name: str, value: object):
    with pytest.raises(InvalidParameter) as caught:
        build(**{name: value})
    assert caught.value.param == FIELD.get(name, name)
    assert FIELD.get(name, name) in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", 5),
        ("stop", 0),
        ("stop", {"a": 1}),
        ("stop", b"x"),
        ("stop", [""]),
        ("stop", ["a", 5]),
        ("stop", ["x"] * (MAX_STOP_STRINGS + 1)),
        ("stop", "x" * (MAX_STOP_BYTES + 1)),
        ("stop", "\u00e9" * (MAX_STOP_BYTES // 2 + 1)),
        ("grammar", 5),
        ("grammar", b"root ::= x"),
        ("grammar", ""),
        ("grammar", "x" * (MAX_GRAMMAR_BYTES + 1)),
        ("ignore_eos", "yes"),
        ("ignore_eos", 1),
        ("parent_key", 5),
        ("logit_bias", 5),
        ("logit_bias", "abc"),
        ("logit_bias", [1, 2]),
        ("logit_bias", {"abc": 1}),
        ("logit_bias", {1.5: 1}),
        ("logit_bias", {1: "x"}),
        ("logit_bias", {1: NAN}),
        ("logit_bias", {1: 1000.5}),
        ("logit_bias", {1: -1000.5}),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {2**31: 1.0}),
        ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIAS + 1), 1.0)),
    ],
    ids=lambda v: str(v)[:30],
)
def test_a_malformed_value_is_refused_with_its_name(name: str, value: object):
    with pytest.raises(InvalidParameter) as caught:
        build(**{name: value})
    assert caught.value.param == name


@pytest.mark.parametrize("prompt", [5, "abc", [1.0], ["a"], [None], [True], [[1]]], ids=str)
def test_a_prompt_that_is_not_token_ids_is_refused(prompt: object):
    with pytest.raises(InvalidParameter) as caught:
        build_request("req", prompt, {})
    assert caught.value.param == "prompt"


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidParameter, match="no tokens"):
        build_request("req", [], {})


def test_a_prompt_of_numpy_integers_becomes_python_integers():
    request = build_request("req", np.array([1, 2], dtype=np.int32), {})
    assert request.prompt_tokens == (1, 2)
    assert {type(t) for t in request.prompt_tokens} == {int}


def test_an_unknown_name_is_refused_and_the_known_ones_are_listed():
    with pytest.raises(InvalidParameter) as caught:
        build(temprature=1.0)
    assert caught.value.param == "temprature"
    assert all(name in caught.value.message for name in PARAM_NAMES)


@pytest.mark.parametrize("name", PARAM_NAMES)
def test_none_means_the_default_for_every_parameter(name: str):
    assert build(**{name: None}) == build()


def test_every_sampling_field_is_a_parameter_with_a_test():
    tested = {r[0] for r in RANGES} | {"logit_bias"}
    assert {f.name for f in fields(SamplingParams)} <= tested


def test_defaults_are_those_of_llama_cpp():
    assert build().sampling == SamplingParams(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_last_n=64)


def test_stop_takes_one_string_or_many():
    assert build(stop="x").stop == ("x",)
    assert build(stop=["x", "y"]).stop == ("x", "y")
    assert build(stop=("x",)).stop == ("x",)
    assert build(stop="").stop == ()
    assert build(stop=[]).stop == ()


def test_logit_bias_takes_a_mapping_with_the_string_keys_of_json_and_pairs():
    assert build(logit_bias={"5": 1.5, 6: -100}).sampling.logit_bias == ((5, 1.5), (6, -100))
    assert build(logit_bias=[[5, 1.5]]).sampling.logit_bias == ((5, 1.5),)
    assert build(logit_bias=dict.fromkeys(range(MAX_LOGIT_BIAS), 1.0)).sampling.logit_bias[-1] == (
        MAX_LOGIT_BIAS - 1,
        1.0,
    )


@pytest.mark.parametrize(
    ("params", "greedy"),
    [({"temperature": 0.0}, True), ({"top_k": 1}, True), ({}, False), ({"temperature": 1e-9}, False)],
)
def test_greedy_is_temperature_zero_or_one_candidate(params: dict, greedy: bool):
    assert SamplingParams(**params).greedy is greedy


# --- events ---------------------------------------------------------------------------------------

STATS = RequestStats(3, 2, 1, 0.5, 1.5, 2.5, CacheHitKind.PARTIAL, FinishReason.STOP, "stop")
logprob = st.builds(TokenLogprob, st.integers(0, 9), st.binary(max_size=2), st.floats(-9, 0))


def tokens_events(with_logprobs: bool) -> st.SearchStrategy[Tokens]:
    ids = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    if not with_logprobs:
        return st.builds(Tokens, ids, st.text(max_size=3))
    return ids.flatmap(
        lambda i: st.builds(
            Tokens, st.just(i), st.text(max_size=3), st.lists(logprob, min_size=len(i), max_size=len(i)).map(tuple)
        )
    )


event_lists = st.booleans().flatmap(
    lambda with_logprobs: st.lists(
        st.one_of(
            tokens_events(with_logprobs),
            st.just(Done(STATS, "key")),
            st.builds(Failed, st.builds(ErllamaError, st.text(max_size=3))),
        )
    )
)


def contents(events: list[Event]) -> list[object]:
    """What events say, one token, character or ending after the other, the cuts between `Tokens`
    forgotten.
    """
    ids: list[object] = []
    text: list[object] = []
    logprobs: list[object] = []
    for event in events:
        if isinstance(event, Tokens):
            ids += event.ids
            text += event.text
            logprobs += event.logprobs or ()
        else:
            ids.append(event)
            text.append(event)
            logprobs.append(event)
    return [ids, text, logprobs]


@given(event_lists)
def test_merging_loses_nothing_and_keeps_the_order(events: list[Event]):
    assert contents(merge_events(events)) == contents(events)


@given(event_lists)
def test_merged_events_have_no_two_neighbouring_tokens(events: list[Event]):
    merged = merge_events(events)
    assert not any(isinstance(a, Tokens) and isinstance(b, Tokens) for a, b in itertools.pairwise(merged))


@given(event_lists)
def test_merging_again_changes_nothing(events: list[Event]):
    assert merge_events(merge_events(events)) == merge_events(events)


@given(event_lists)
def test_merging_in_parts_is_merging_at_once(events: list[Event]):
    half = len(events) // 2
    assert merge_events([*merge_events(events[:half]), *events[half:]]) == merge_events(events)


@pytest.mark.parametrize(
    "value",
    [
        Tokens((1, 2), "ab", (TokenLogprob(1, b"a", -0.5, ((2, b"\xff", -1.0),)),)),
        Done(STATS, "key"),
        STATS,
        Completion("text", (1,), "key", STATS),
        build(stop="x", grammar="root ::= x", logit_bias={1: 2}),
        build(grammar=Constraint.of_schema({"type": "object"}, "response_format")),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_crosses_a_boundary_pickles(value: object):
    assert pickle.loads(pickle.dumps(value)) == value


def test_a_grammar_in_text_is_gbnf_and_a_constraint_is_itself():
    constraint = Constraint(ConstraintKind.REGEX, "a+", "pattern")
    assert build(grammar="root ::= x").constraint == Constraint(ConstraintKind.GBNF, "root ::= x")
    assert build(grammar=constraint).constraint is constraint
    assert build().constraint is None


def test_only_a_cancelled_request_says_so():
    assert [RequestStats(1, 1, 0, 0, 0, 0, CacheHitKind.COLD, r).cancelled for r in FinishReason] == [
        r is FinishReason.CANCELLED for r in FinishReason
    ]


# --- errors ---------------------------------------------------------------------------------------


def error_classes(base: type[ErllamaError] = ErllamaError) -> list[type[ErllamaError]]:
    return [
        base,
        *(c for sub in base.__subclasses__() if sub.__module__ == "erllama.errors" for c in error_classes(sub)),
    ]


@pytest.mark.parametrize("cls", error_classes(), ids=lambda c: c.__name__)
def test_an_error_pickles_with_all_it_carries(cls: type[ErllamaError]):
    error = cls("a sentence", param="field", retry_after_s=7)
    copy = pickle.loads(pickle.dumps(Failed(error))).error
    assert type(copy) is cls
    assert (copy.message, str(copy), copy.param, copy.retry_after_s) == ("a sentence", "a sentence", "field", 7)
    assert (copy.http_status, copy.code) == (cls.http_status, cls.code)


def test_every_error_has_a_code_of_its_own_and_the_status_its_docs_give():
    codes = [cls.code for cls in error_classes()]
    assert len(set(codes)) == len(codes)
    documented = dict(re.findall(r"([A-Z]\w+) +(\d{3})  ", errors.__doc__ or ""))
    assert {cls.__name__: str(cls.http_status) for cls in error_classes() if cls.__name__ in documented} == documented


def test_the_callers_faults_are_4xx_and_ours_are_5xx():
    for cls in error_classes():
        assert cls.http_status // 100 == (4 if issubclass(cls, errors.RequestError) else 5)


def test_a_prompt_of_ids_is_a_prompt_of_one_part():
    ids = tuple(range(1000, 1020))
    request = GenerationRequest("it", ids)
    assert request == GenerationRequest("it", Prompt.of(ids))
    assert request.prompt.parts == (TokenPart(ids),)
    assert request.prompt_tokens is ids  # nothing is copied where nothing is joined


def test_the_parts_of_a_prompt_are_joined_in_order_once():
    prompt = Prompt((TokenPart((1, 2)), TokenPart((3,)), TokenPart(())))
    assert (prompt.tokens, len(prompt)) == ((1, 2, 3), 3)
    assert prompt.tokens is prompt.tokens
    assert prompt != Prompt.of((1, 2, 3))
    again = pickle.loads(pickle.dumps(GenerationRequest("it", prompt)))
    assert (again.prompt, again.prompt_tokens) == (prompt, (1, 2, 3))


def test_a_prompt_travels_as_one_tuple_of_ids():
    ids = tuple(range(100_000))
    assert len(pickle.dumps(GenerationRequest("it", ids))) < len(pickle.dumps(ids)) + 1000


@pytest.mark.parametrize("prompt", [[1, 2], (1, "2"), (1, True), "12", None, (TokenPart((1,)),)])
def test_a_prompt_of_anything_but_ids_is_refused(prompt):
    with pytest.raises(InvalidParameter, match="the prompt must be token ids") as caught:
        GenerationRequest("it", prompt)
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("prompt", [(), Prompt(()), Prompt((TokenPart(()),))])
def test_a_prompt_whose_parts_hold_no_token_is_refused(prompt):
    with pytest.raises(InvalidParameter, match="the prompt has no tokens"):
        GenerationRequest("it", prompt)
