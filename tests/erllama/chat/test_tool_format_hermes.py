"""The `<tool_call>` form: calls are found whole, split anywhere, and never at the cost of text."""

import json
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import TextDelta, ToolCall, split_reply
from erllama.chat.tool_formats.hermes import CLOSE, HERMES, MAX_FAILED_BLOCKS, OPEN, HermesSplitter

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


def joined(parts):
    """The parts with neighbouring text joined."""
    whole = []
    for part in parts:
        if isinstance(part, TextDelta) and whole and isinstance(whole[-1], TextDelta):
            whole[-1] = TextDelta(whole[-1].text + part.text)
        else:
            whole.append(part)
    return whole


def run(chunks):
    stream = HermesSplitter()
    parts = [part for chunk in chunks for part in stream.push(chunk)]
    return joined(parts + stream.finish())


@given(pieces, st.lists(st.integers(0, 400), max_size=10))
@example(CALL + "\n" + CALL, [3, 60, 62, 63, 70])
@example('<tool_call>{"name": "x</tool_call>"}</tool_call>', list(range(50)))
def test_any_split_gives_the_same_parts(text, cuts):
    edges = [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    assert run(chunks) == run([text]) == run(list(text))


@given(pieces.filter(lambda t: '{"name"' not in t))
def test_text_without_a_call_is_returned_unchanged(text):
    assert parse_tool_calls(text) == (text, [])


def test_several_calls_with_text_around():
    assert parse_tool_calls(f"Let me see.\n{CALL}\n{CALL}\nDone.") == ("Let me see.\nDone.", [F, F])


def test_a_reply_of_calls_only_has_no_content():
    assert parse_tool_calls(f"\n{CALL}\n{CALL}\n") == ("", [F, F])


@pytest.mark.parametrize(
    "body",
    ["", "{}", "[1]", "null", '{"name": 3}', '{"name": ""}', '{"name": "f", "arguments": [1]}', '{"name": "f", "arguments": {"x": NaN}}',
     '{"name": "f", "arguments": {"x": 1e999}}', '{"name": "f", "arguments": {', "[" * 100_000, '{"name": "f", "arguments": "{"}'],
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


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=5), st.dictionaries(st.text(max_size=5), JSON, max_size=3)),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_what_the_form_writes_the_splitter_and_the_transcript_read(calls, ascii_only):
    bodies = [json.dumps({"name": name, "arguments": arguments}, ensure_ascii=ascii_only) for name, arguments in calls]
    text = "Well." + HERMES.separator + HERMES.separator.join(HERMES.opening + body + HERMES.closing for body in bodies)
    content, read = parse_tool_calls(text)
    assert (content, [(call.name, json.loads(call.arguments_json)) for call in read]) == ("Well.", calls)
    assert HERMES.strict_calls(text) == ("Well.", calls)


def test_the_schema_of_a_call_is_that_of_its_body():
    schema = HERMES.call_schema("f", {"type": "object"})
    assert schema["properties"] == {"name": {"const": "f"}, "arguments": {"type": "object"}}
    assert (schema["required"], schema["additionalProperties"]) == (["name", "arguments"], False)


def test_text_streams_out_at_once_and_a_possible_tag_waits():
    stream = HermesSplitter()
    assert stream.push("Hello") == [TextDelta("Hello")]
    assert stream.push(" <tool") == []
    assert stream.push("box>") == [TextDelta(" <toolbox>")]
    assert stream.push("\n" + CALL) == [F]
    assert stream.finish() == []


def test_a_reply_made_to_be_searched_again_and_again_is_read_in_bounded_time():
    """Every opening tag could begin a call, and no closing tag is outside of a string. A count of
    steps, not of seconds.
    """
    n = 4000
    text = OPEN * n + '"' + CLOSE * n
    steps = 0

    class Counting(HermesSplitter):
        def _block_end(self, body: int) -> int | None:
            nonlocal steps
            steps += 1
            return super()._block_end(body)

    stream = Counting()
    parts = stream.push(text) + stream.finish()
    assert "".join(part.text for part in parts if isinstance(part, TextDelta)) == text
    assert steps <= MAX_FAILED_BLOCKS + 1
