"""Gemma 4's calls: JSON with strings in its own quotes and bare keys."""

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
from erllama.chat.tool_formats.gemma import GEMMA4
from tests.support.tool_replies import TOOLS, cut, is_right, random_reply, run

CALLS = [ToolCall("get_weather", '{"city": "ARGPARIS", "n": 3}'), ToolCall("get_time", '{"zone": "ARGZONE"}')]
TEXT = '<|tool_call>call:get_weather{city:<|"|>ARGPARIS<|"|>,n:3}<tool_call|><|tool_call>call:get_time{zone:<|"|>ARGZONE<|"|>}<tool_call|>'


def test_the_text_of_the_real_template_is_read_and_written():
    assert GEMMA4.write_calls(CALLS) == TEXT
    text = "<|channel>thought\nHm.\n<channel|>Well.\n" + TEXT
    for chunks in ([text], list(text)):
        parts = run(GEMMA4, chunks)
        assert parts[:2] == [ReasoningDelta("Hm."), TextDelta("Well.")]
        assert collect_parts(parts).calls == CALLS
    assert strict_calls(GEMMA4, TEXT) == ("", [(call.name, json.loads(call.arguments_json)) for call in CALLS])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=8)
    | st.sampled_from(['"', "\\", '<|"|>', "<|", "<tool_call|>", "}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)


@settings(deadline=None)
@given(
    calls=st.lists(st.tuples(NAME, st.dictionaries(st.text(max_size=5), JSON, max_size=3)), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 400), max_size=6),
)
def test_what_the_format_writes_it_reads(calls, cuts):
    text = "Well.\n" + GEMMA4.write_calls([ToolCall(name, json.dumps(arguments)) for name, arguments in calls])
    parts = run(GEMMA4, cut(text, cuts))
    assert parts == run(GEMMA4, list(text)) == run(GEMMA4, [text])
    reply = collect_parts(parts)
    assert (reply.content, [(call.name, json.loads(call.arguments_json)) for call in reply.calls]) == ("Well.", calls)


@pytest.mark.parametrize(
    "text",
    ["<|tool_call>", "Say <|tool_call> x", "<|tool_call>call:f", "<|tool_call>call:f <tool_call|>", "<|tool_call>f{}", "<|tool_call><|tool_call>"],
)  # fmt: skip
def test_text_that_resembles_a_call_stays_text(text):
    assert run(GEMMA4, list(text)) == run(GEMMA4, [text]) == [TextDelta(text)]


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ('call:f{a:<|"|>x', "", '{"a": "x'),
        ('call:f{a:<|"|>x<|"|>,b:1', "", '{"a": "x", "b": '),
        ('call:f{a:<|"|>x<|"|>}', "", '{"a": "x"}'),
        ('call:f{a:<|"|>x<|"|>} Done.', " Done.", '{"a": "x"}'),
        ('call:f{a:"x\\n",<|"|>b c<|"|>:[True,]}<tool_call|>', "", '{"a": "x\\n", "b c": [true]}'),
        ("call:f{a:x}<tool_call|>", "x}<tool_call|>", '{"a": '),
        ("call: f { a : 1 }\n<tool_call|>", "", '{"a": 1}'),
    ],
)
def test_a_call_that_is_cut_off_or_goes_wrong_keeps_what_was_made(text, content, arguments):
    text = "<|tool_call>" + text
    reply = split_reply(GEMMA4, text)
    assert (reply.content, reply.calls) == (content, [ToolCall("f", arguments)])
    assert run(GEMMA4, list(text)) == run(GEMMA4, [text])


@given(
    words=st.lists(st.sampled_from(["<|tool_call>", "<tool_call|>", "call:", "f", "{", "a", ":", '<|"|>', '"', "\\", ",", "}", "[", "3", " ", "text", TEXT]), max_size=14),
    cuts=st.lists(st.integers(0, 100), max_size=6),
)  # fmt: skip
def test_any_split_gives_the_same_parts(words, cuts):
    text = "".join(words)
    whole = run(GEMMA4, [text])
    assert run(GEMMA4, cut(text, cuts)) == run(GEMMA4, list(text)) == whole
    if not collect_parts(whole).calls:
        assert collect_parts(whole).content == text


def test_arguments_stream_as_they_are_made():
    stream = GEMMA4.splitter()
    assert stream.push("<|tool_call>call:f") == []
    assert stream.push('{a:<|"|>x<') == [CallStart("f"), ArgumentsDelta('{"a": "x')]
    assert stream.push("b") == [ArgumentsDelta("<b")]
    assert stream.push('<|"|>,b:{c:nul') == [ArgumentsDelta('", "b": {"c": ')]
    assert stream.push("l}}<tool_call|>") == [ArgumentsDelta("null}}")]
    assert stream.finish() == []


def test_a_model_is_told_how_to_call():
    text = GEMMA4.system_text([{"type": "function", "function": {"name": "xToolx"}}])
    assert "xToolx" in text
    assert [call.name for call in split_reply(GEMMA4, text).calls] == ["function_name"]


NESTED = ToolSpec(
    "nest",
    {
        "properties": {
            "tree": {"$ref": "#/$defs/node"},
            "any": {},
            "free": {"type": "object"},
            "pair": {"type": "array", "items": {"type": "number", "minimum": 0}, "minItems": 2, "maxItems": 2},
        },
        "required": ["tree", "pair"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"label": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                "required": ["label"],
            }
        },
    },
)  # fmt: skip


def is_node(node):
    return node is None or (
        set(node) <= {"label", "next"} and isinstance(node["label"], str) and is_node(node.get("next"))
    )


def fits(name, arguments):
    if name != "nest":
        return is_right(name, arguments)
    return (
        {"tree", "pair"} <= set(arguments) <= {"tree", "any", "free", "pair"}
        and isinstance(arguments["tree"], dict)
        and is_node(arguments["tree"])
        and isinstance(arguments.get("free", {}), dict)
        and len(arguments["pair"]) == 2
        and all(not isinstance(number, str) and number >= 0 for number in arguments["pair"])
    )


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**32), parallel=st.booleans(), with_control=st.booleans())
def test_what_the_rules_admit_is_read_as_a_right_call(seed, parallel, with_control):
    control = GEMMA4.markers if with_control else ()
    tools = [*TOOLS, NESTED]
    text = random_reply(
        GEMMA4, tools, seed, parallel=parallel, control=control, hints=('<|"|>', "}", "]", "null", "<tool_call|>")
    )
    reply = split_reply(GEMMA4, text, tools)
    assert reply.content == ""
    assert reply.calls
    assert parallel or len(reply.calls) == 1
    assert all(fits(call.name, json.loads(call.arguments_json)) for call in reply.calls), text
