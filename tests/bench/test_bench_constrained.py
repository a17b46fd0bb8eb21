"""The pure parts of bench/constrained.py. No server is started."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from constrained import list_schema, problem_of, schema_field, summarise
from harness import Figures
from stream_client import Stream

from deployments.dialects.openai.structure import reply_constraint
from deployments.dialects.openai.wire import CompletionBody
from erllama.grammar.matcher import GrammarCompiler
from erllama.grammar.tokenizer import AnyTable


def stream(text: str, tokens: int) -> Stream:
    return Stream(0, 1, (1,), text, 1, tokens)


def test_a_reply_cannot_end_within_its_tokens() -> None:
    body = CompletionBody.model_validate({"prompt": "x", **schema_field("ours", list_schema(40))})
    constraint = reply_constraint(body)
    assert constraint is not None
    matcher = GrammarCompiler(AnyTable).matcher(constraint)
    shortest = b"[" + b",".join([b'{"name":"","kind":"pear","amount":0,"tags":[]}'] * 6) + b"]"
    for byte in shortest:
        assert not matcher.allows(256)
        matcher.accept(byte)
    assert matcher.allows(256)


def test_the_peer_is_asked_in_its_own_words() -> None:
    assert schema_field("peer", {"type": "array"}) == {"json_schema": {"type": "array"}}


@pytest.mark.parametrize(
    ("text", "tokens", "constrained", "words"),
    [
        ("[{", 8, True, None),
        ("abc", 8, False, None),
        ("[{", 7, True, "7 tokens, not 8"),
        ("abc", 8, True, "begins with 'abc'"),
    ],
)
def test_replies_that_would_not_compare_are_told(text: str, tokens: int, constrained: bool, words: str | None) -> None:
    problem = problem_of([stream(text, tokens)], 8, constrained=constrained)
    assert problem is None if words is None else words in str(problem)


def test_ratios_are_of_medians_and_the_peer_may_be_absent() -> None:
    ours = [{"first.json": 9.0, "ttft.json": 5.0, "free.s1": 100.0, "json.s1": rate} for rate in (90.0, 98.0, 99.0)]
    peer = [{"first.json": 9.0, "ttft.json": 5.0, "free.s1": 100.0, "json.s1": 49.0}]
    figures = Figures()
    summarise(figures, {"ours": ours, "peer": peer}, [1])
    assert figures.get("ours.json.s1") == 98
    assert {ratio.name: ratio.value for ratio in figures.ratios} == {
        "ratio.ours.s1": 0.98,
        "ratio.peer.s1": 0.49,
        "ratio.json.s1": 2.0,
    }
    alone = Figures()
    summarise(alone, {"ours": ours}, [1])
    assert [ratio.name for ratio in alone.ratios] == ["ratio.ours.s1"]
