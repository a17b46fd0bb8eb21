"""Calls as Python writes them, and Python's literals as JSON."""

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolSpec,
    collect_parts,
    split_reply,
    strict_calls,
)
from erllama.chat.tool_formats.literal import python_json
from erllama.chat.tool_formats.pythonic import LFM2, LLAMA_PYTHONIC, python_literal
from tests.support.tool_replies import TOOLS, cut, is_right, random_reply, run

CALLS = [ToolCall("get_weather", '{"city": "ARGPARIS", "n": 3}'), ToolCall("get_time", '{"zone": "ARGZONE"}')]
LISTED = "[get_weather(city='ARGPARIS', n=3), get_time(zone='ARGZONE')]"
TEXTS = {LFM2: f"<|tool_call_start|>{LISTED}<|tool_call_end|>", LLAMA_PYTHONIC: LISTED}
every_format = pytest.mark.parametrize("tool_format", TEXTS, ids=lambda one: one.name)


@every_format
def test_the_text_of_a_real_template_is_read_and_written(tool_format):
    text = TEXTS[tool_format]
    assert tool_format.write_calls(CALLS) == text
    tools = [ToolSpec(call.name) for call in CALLS]
    for offered in ((), tools):
        reply = split_reply(tool_format, "Well.\n" + text + "\n", offered)
        assert (reply.content, reply.reasoning, reply.calls) == ("Well.", "", CALLS)
        assert run(tool_format, list(text), offered) == run(tool_format, [text], offered)
    assert strict_calls(tool_format, text) == ("", [(call.name, json.loads(call.arguments_json)) for call in CALLS])


def test_reasoning_comes_before_a_call():
    text = f"<think>\nHm.\n</think>{TEXTS[LFM2]}"
    parts = run(LFM2, list(text))
    assert parts[0] == ReasoningDelta("Hm.")
    assert collect_parts(parts).calls == CALLS


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['"', "'", "\\", "''", "'''", "\\u00e9", "<|tool_call_end|>", ")]", "\n"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WORD = st.from_regex(r"[A-Za-z_é][A-Za-z0-9_.-]{0,8}", fullmatch=True)


@every_format
@settings(deadline=None)
@given(
    calls=st.lists(st.tuples(WORD, st.dictionaries(WORD, JSON, max_size=3)), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_what_a_format_writes_it_reads(tool_format, calls, cuts):
    text = "Well.\n" + tool_format.write_calls([ToolCall(name, json.dumps(arguments)) for name, arguments in calls])
    parts = run(tool_format, cut(text, cuts))
    assert parts == run(tool_format, list(text)) == run(tool_format, [text])
    reply = collect_parts(parts)
    assert (reply.content, [(call.name, json.loads(call.arguments_json)) for call in reply.calls]) == ("Well.", calls)


@given(JSON)
def test_a_literal_is_read_as_python_reads_it(value):
    for text in (python_literal(value), repr(value)):
        assert ast.literal_eval(text) == value
        assert json.loads(python_json(text)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1, 'a',)", [1, "a"]),
        ("{'a': true, \"b\": null,}", {"a": True, "b": None}),
        ("'''it's\n\"so\"'''", 'it\'s\n"so"'),
        ('""', ""),
        ("''''a'''", "'a"),
        (r"'\x41\101\0\u00e9\ud83d\ude00\U0001F600\q\'\a'", "AA\0é😀😀\\q'\a"),
        ("'a\\\nb'", "ab"),
        ("0x10", 16),
        ("1_000", 1000),
        (".5", 0.5),
        ("+1", 1),
        ("-0.5e-3", -0.0005),
        ("[[]]", [[]]),
    ],
)
def test_python_means(text, value):
    assert json.loads(python_json(text)) == value


@pytest.mark.parametrize(
    "text",
    ["", "x", "f(1)", "nan", "-inf", "1.e999", "[1", "[1]]", "{'a'}", "{a: 1}", "{1: 2}", "[1 2]", "[,]", "[1,,2]",
     "'a", "'a' 'b'", "b'a'", "1 + 2", "[(]", "'\\U00110000'", "[" * 200 + "]" * 200, "1" * 5000 + "_0"],
)  # fmt: skip
def test_what_is_no_literal_of_json_data_is_refused(text):
    assert python_json(text) is None


@every_format
@pytest.mark.parametrize(
    "text",
    ["See {} here.", "{}", "{[}", "{[}1] and {[}2]", "{[}]", "{[}f(x)](y)", "{[}f(x == 1)]", "{[}f (", "{[}f(a=", "{[}a link](http://x.y)", "{}{}"],
)  # fmt: skip
def test_text_that_resembles_a_call_stays_text(tool_format, text):
    text = text.replace("{[}", tool_format.opening + "[").replace("{}", tool_format.opening or "[")
    assert run(tool_format, list(text)) == run(tool_format, [text]) == [TextDelta(text)]


def test_without_an_opening_only_offered_tools_are_called():
    tools = [ToolSpec("f")]
    assert run(LLAMA_PYTHONIC, ["Python: [g(x=1)] [f(x=1)]"], tools) == [
        TextDelta("Python: [g(x=1)]"),
        CallStart("f"),
        ArgumentsDelta('{"x": 1}'),
    ]
    assert run(LLAMA_PYTHONIC, ["[f(x=1), g(x=1)]"], tools)[2:] == [TextDelta(" g(x=1)]")]


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ("[f(a='x", "", '{"a": "x'),
        ("[f(a='x', ", "", '{"a": "x"'),
        ("[f(a='x', b", "", '{"a": "x"'),
        ("[f(a='x', b=12", "", '{"a": "x", "b": '),
        ("[f(a='x')", "", '{"a": "x"}'),
        ("[f(a='x')] Done.", " Done.", '{"a": "x"}'),
        ("[f(a='x', 3)]", " 3)]", '{"a": "x"'),
        ("[f(a=x)]", "x)]", '{"a": '),
        ("[f(a='it's')]", "", '{"a": "it\'s"}'),
        ("[f(a='it's, no', b='\"' )]", "", '{"a": "it\'s, no", "b": "\\""}'),
        ("[f(a='it', no')]", " no')]", '{"a": "it"'),
        ("[ f ( a = 'x' , b = [ 1 , ] , ) ]", "", '{"a": "x", "b": [1]}'),
        ("[f(a='x') g()]", " g()]", '{"a": "x"}'),
        ("[f(a='x'), 5]", " 5]", '{"a": "x"}'),
    ],
)  # fmt: skip
def test_a_call_that_is_cut_off_or_goes_wrong_keeps_what_was_made(text, content, arguments):
    reply = split_reply(LFM2, "<|tool_call_start|>" + text)
    assert (reply.content, reply.calls) == (content, [ToolCall("f", arguments)])
    text = "<|tool_call_start|>" + text
    assert run(LFM2, list(text)) == run(LFM2, [text])


@every_format
@given(
    words=st.lists(st.sampled_from(["<|tool_call_start|>", "<|tool_call_end|>", "[", "f", "(", "a", "=", "'", "\\", "{", ":", ",", ")", "]", "3", " ", "text", TEXTS[LFM2]]), max_size=14),
    cuts=st.lists(st.integers(0, 100), max_size=6),
)  # fmt: skip
def test_any_split_gives_the_same_parts(tool_format, words, cuts):
    text = "".join(words)
    whole = run(tool_format, [text])
    assert run(tool_format, cut(text, cuts)) == run(tool_format, list(text)) == whole
    if not collect_parts(whole).calls:
        assert collect_parts(whole).content == text


def test_arguments_stream_as_they_are_made():
    stream = LFM2.splitter()
    assert stream.push("<|tool_call_start|>[f(") == []
    assert stream.push("a='") == [CallStart("f"), ArgumentsDelta("{"), ArgumentsDelta('"a": ')]
    assert stream.push("x\\") == [ArgumentsDelta('"x')]
    assert stream.push("'y") == [ArgumentsDelta("'y")]
    assert stream.push("', b=[True") == [ArgumentsDelta('"'), ArgumentsDelta(', "b": '), ArgumentsDelta("[")]
    assert stream.push(", 1])]") == [ArgumentsDelta("true, 1]"), ArgumentsDelta("}")]
    assert stream.push("<|tool_call_end|>") == []
    assert stream.finish() == []


@every_format
def test_a_model_is_told_how_to_call(tool_format):
    text = tool_format.system_text([{"type": "function", "function": {"name": "xToolx"}}])
    assert "xToolx" in text
    assert "function_name" in [call.name for call in split_reply(tool_format, text, [ToolSpec("function_name")]).calls]


def test_arguments_that_are_no_object_are_written_as_one_text():
    assert LLAMA_PYTHONIC.write_calls([ToolCall("f", '{"a')]) == "[f(input='{\"a')]"


@every_format
@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), parallel=st.booleans(), with_control=st.booleans())
def test_what_the_rules_admit_is_read_as_a_right_call(tool_format, seed, parallel, with_control):
    control = tool_format.markers if with_control else ()
    text = random_reply(tool_format, TOOLS, seed, parallel=parallel, control=control, hints=("'", '"', "]", ")"))
    reply = split_reply(tool_format, text, TOOLS)
    assert reply.content == ""
    assert reply.calls
    assert parallel or len(reply.calls) == 1
    assert all(is_right(call.name, json.loads(call.arguments_json)) for call in reply.calls), text
