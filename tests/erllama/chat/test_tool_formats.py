"""Tool formats: calls are found, cut anywhere, and never at the cost of text."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    collect_parts,
    split_reply,
    strict_calls,
)
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.tool_formats.splitter import MAX_FAILED_CALLS
from tests.support import tool_replies

OPEN, CLOSE = "<tool_call>", "</tool_call>"

CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
F = ToolCall("f", '{"x": 1}')

pieces = st.lists(
    st.sampled_from(
        [
            CALL,
            "<tool_call>",
            "</tool_call>",
            "<tool_",
            "<",
            "\n",
            " ",
            "text",
            '{"name": "g"}',
            '{"name": "',
            '"',
            "\\",
            "}",
            "é😀",
        ]
    ),
    max_size=12,
).map("".join)


def parse_tool_calls(text):
    reply = split_reply(HERMES, text)
    assert reply.reasoning == ""
    return reply.content, reply.calls


def run(chunks, **kwargs):
    return tool_replies.run(HERMES, chunks, **kwargs)


@given(pieces, st.lists(st.integers(0, 400), max_size=10))
@example(CALL + "\n" + CALL, [3, 60, 62, 63, 70])
@example('<tool_call>{"name": "x</tool_call>"}</tool_call>', list(range(50)))
def test_any_split_gives_the_same_parts(text, cuts):
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert run(chunks) == run([text]) == run(list(text))


@given(pieces.filter(lambda t: '{"name"' not in t and "<think" not in t))
def test_text_without_a_call_is_returned_unchanged(text):
    assert parse_tool_calls(text) == (text, [])


def test_several_calls_with_text_around():
    assert parse_tool_calls(f"Let me see.\n{CALL}\n{CALL}\nDone.") == ("Let me see.\nDone.", [F, F])


def test_a_reply_of_calls_only_has_no_content():
    assert parse_tool_calls(f"\n{CALL}\n{CALL}\n") == ("", [F, F])


@pytest.mark.parametrize(
    "body",
    ["", "{}", "[1]", "null", '{"name": 3}', '{"name": ""}', '{"name": "f", "arguments": [1]}', "[" * 100_000,
     '{"name": "f", "arguments": "{"}', '{"arguments": {}, "name": 1}'],
)  # fmt: skip
def test_a_malformed_block_stays_text(body):
    text = f"a <tool_call>{body}</tool_call> b"
    assert parse_tool_calls(text) == (text, [])


def test_a_call_after_a_stray_opening_tag_is_found():
    assert parse_tool_calls(f"Use <tool_call> like this: {CALL}") == ("Use <tool_call> like this:", [F])


def test_a_closing_tag_inside_a_string_does_not_close():
    arguments = {"html": 'a "quoted" </tool_call> \\'}
    text = f"<tool_call>{json.dumps({'name': 'f', 'arguments': arguments})}</tool_call>"
    content, (call,) = parse_tool_calls(text)
    assert (content, json.loads(call.arguments_json)) == ("", arguments)


def test_a_block_without_its_closing_tag_is_a_call_when_the_json_is_complete():
    assert parse_tool_calls(CALL.removesuffix("</tool_call>")) == ("", [F])
    assert parse_tool_calls('<tool_call>{"name": "f"') == ('<tool_call>{"name": "f"', [])


def test_arguments_may_be_missing_quoted_or_called_parameters():
    bodies = ['{"name": "f"}', '{"name": "f", "arguments": "{\\"x\\": 1}"}', '{"name": "f", "parameters": {"x": 1}}']
    calls = [parse_tool_calls(f"<tool_call>{body}</tool_call>")[1] for body in bodies]
    assert calls == [[ToolCall("f", "{}")], [F], [F]]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=8)
    | st.sampled_from([OPEN, CLOSE, '"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


CALLS = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True),
        st.dictionaries(st.text(min_size=1, max_size=5), JSON, max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@given(CALLS, st.booleans(), st.lists(st.integers(0, 400), max_size=6))
def test_what_a_format_writes_it_reads(calls, ascii_only, cuts):
    written = [ToolCall(name, json.dumps(arguments, ensure_ascii=ascii_only)) for name, arguments in calls]
    text = "Well.\n" + HERMES.write_calls(written)
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    reply = collect_parts(run([text[a:b] for a, b in pairwise(edges)]))
    assert (reply.content, reply.calls) == ("Well.", written)
    assert strict_calls(HERMES, text) == ("Well.", calls)


def test_arguments_stream_as_they_are_made():
    stream = HERMES.splitter()
    assert stream.push('Well.\n<tool_call>\n{"name": "f", "arguments"') == [TextDelta("Well.")]
    assert stream.push(': {"a": "') == [CallStart("f"), ArgumentsDelta('{"a": "')]
    assert stream.push("}x\\") == [ArgumentsDelta("}x")]
    assert stream.push('"y"') == [ArgumentsDelta('\\"y"')]
    assert stream.push("}}\n</tool_call>\n") == [ArgumentsDelta("}")]
    assert stream.finish() == []


def test_a_reply_that_is_cut_off_in_its_arguments_keeps_them():
    assert parse_tool_calls('<tool_call>{"name": "f", "arguments": {"a": "b') == ("", [ToolCall("f", '{"a": "b')])


@pytest.mark.parametrize("cut", range(40))
def test_reasoning_is_split_off_wherever_the_reply_is_cut(cut):
    text = "<think>\nHmm. <thin\n</think>\n\nHello. <think>"
    expected = [ReasoningDelta("Hmm. <thin"), TextDelta("Hello. <think>")]
    assert run([text[:cut], text[cut:]]) == expected
    assert run([text[8:cut], text[max(8, cut) :]], in_reasoning=True) == expected


def test_reasoning_without_an_end_is_reasoning():
    assert run(["<think>So it"]) == [ReasoningDelta("So it")]
    assert run(["So it\n"], in_reasoning=True) == [ReasoningDelta("So it\n")]
    assert run(["<think>\n\n</think>\n\nHi"]) == [TextDelta("Hi")]
    assert run(["Hi"]) == [TextDelta("Hi")]


def test_a_call_behind_reasoning_is_found():
    assert run(["<think>A <tool_call>.</think>", CALL]) == [
        ReasoningDelta("A <tool_call>."),
        CallStart("f"),
        ArgumentsDelta('{"x": 1}'),
    ]


def test_text_streams_out_at_once_and_a_possible_tag_waits():
    stream = HERMES.splitter()
    assert stream.push("Hello") == [TextDelta("Hello")]
    assert stream.push(" <tool") == []
    assert stream.push("box>") == [TextDelta(" <toolbox>")]
    assert stream.push("\n" + CALL) == [CallStart("f"), ArgumentsDelta('{"x": 1}')]
    assert stream.finish() == []


def test_text_full_of_openings_is_text():
    text = OPEN * (MAX_FAILED_CALLS * 8) + '"' + CLOSE * 100
    assert run([text]) == run(list(text)) == [TextDelta(text)]
