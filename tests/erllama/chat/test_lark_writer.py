"""What the constraints of replies with tools admit, in every format, with its marks as control tokens
or as text: exactly what the splitter reads as calls, and any other text where calls need not be.
"""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import ToolCall, ToolSpec, collect_parts, split_reply
from erllama.chat.tool_formats.choose import FORMATS, format_named
from erllama.chat.tool_formats.json_format import HERMES
from erllama.chat.tool_formats.lark_writer import forced_calls, free_reply, reasoned_reply
from erllama.errors import InvalidParameter
from erllama.grammar.constraint import Constraint, ConstraintKind
from tests.support.tool_replies import TOOLS, admits, compiler_for, control_ids, drawn, is_right, run, tokens_of

CONTROLS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
CLOCKS = [
    ToolSpec(
        "weather", {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
    ),
    ToolSpec("clock"),
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
UNKNOWN = '<tool_call>\n{"name": "wether"'


@pytest.fixture(params=[(), CONTROLS], ids=["text", "control tokens"])
def controls(request):
    return request.param


@pytest.mark.parametrize(
    ("text", "ok"),
    [("Hello <b>", True), ("", True), (CALL, True), (f"Well.\n{CALL}", True), (f"{CALL}\n{CLOCK}\nDone.", True), (UNKNOWN, False),
     (f"{CALL} {UNKNOWN}", False), (f"<think>I could {UNKNOWN}</think>\n\n{CALL}", True), ("<think>Hm</think>Hi", True),
     ("<tool_call>\nno", False)],
)  # fmt: skip
def test_a_free_reply_is_any_text_with_sound_calls(text, ok, controls):
    if controls and text.startswith("<think>I"):
        pytest.skip("a control token in the reasoning is no text")
    assert admits(free_reply(HERMES, CLOCKS, control_ids(controls), parallel=True), text, controls) == ok


def test_a_free_reply_without_parallel_calls_ends_with_the_first(controls):
    constraint = free_reply(HERMES, CLOCKS, control_ids(controls), parallel=False)
    assert admits(constraint, f"Well.\n{CALL}", controls)
    assert not admits(constraint, f"{CALL}\n{CLOCK}", controls)
    assert not admits(constraint, f"{CALL} Done.", controls)


def test_reasoning_that_the_prompt_opened_ends_before_anything_else(controls):
    free = free_reply(HERMES, CLOCKS, control_ids(controls), parallel=True, in_reasoning=True)
    forced = forced_calls(HERMES, CLOCKS, control_ids(controls), parallel=True, in_reasoning=True)
    assert admits(free, f"Hm.\n</think>\n\n{CALL}", controls)
    assert admits(forced, f"Hm.\n</think>\n\n{CALL}", controls)
    assert not admits(forced, CALL, controls)


def test_a_reply_of_a_form_follows_the_reasoning_that_the_prompt_opened(controls):
    number = Constraint.of_schema({"type": "integer"}, "response_format")
    constraint = reasoned_reply(HERMES, control_ids(controls), number)
    assert constraint.param == "response_format"
    assert admits(constraint, "Let me count: 1, 2.\n</think>\n\n12", controls)
    assert not admits(constraint, "12", controls)
    assert not admits(constraint, "Hm.</think>twelve", controls)
    assert reasoned_reply(replace(HERMES, reasoning=None), control_ids(controls), number) is number


def test_forced_calls_are_all_there_is(controls):
    constraint = forced_calls(HERMES, CLOCKS, control_ids(controls), parallel=True)
    assert admits(constraint, f"{CALL}\n{CLOCK}", controls)
    assert not admits(constraint, "Well.", controls)
    assert not admits(constraint, "", controls)
    single = forced_calls(HERMES, CLOCKS, control_ids(controls), parallel=False)
    assert not admits(single, f"{CALL}\n{CLOCK}", controls)


def test_calls_or_a_reply(controls):
    reply = Constraint(ConstraintKind.REGEX, "yes|no", "response_format")
    constraint = forced_calls(HERMES, CLOCKS, control_ids(controls), parallel=True, reply=reply)
    assert admits(constraint, "yes", controls)
    assert admits(constraint, CALL, controls)
    assert not admits(constraint, "maybe", controls)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_admitted_is_read_as_calls(seed, controls):
    constraint = forced_calls(HERMES, CLOCKS, control_ids(controls), parallel=True)
    read = split_reply(HERMES, drawn(constraint, seed, controls, ('"}}',)))
    assert read.content == ""
    assert read.calls
    for call in read.calls:
        assert call.name in ("weather", "clock")
        arguments = json.loads(call.arguments_json)
        assert call.name == "clock" or isinstance(arguments["city"], str)


def test_a_schema_that_cannot_be_followed_names_the_tools():
    with pytest.raises(InvalidParameter) as caught:
        compiler_for().check(forced_calls(HERMES, [ToolSpec("f", {"not": {}})], {}, parallel=True))
    assert caught.value.param == "tools"


# --- every format ---------------------------------------------------------------------------------

WEATHER = ToolCall("get_weather", '{"city": "Paris", "n": 3, "unit": "50% F"}')
NOW = ToolCall("now", "{}")
WRONG = [
    ToolCall("get_wether", WEATHER.arguments_json),
    ToolCall("get_weather", '{"city": "Paris", "n": "x"}'),
    ToolCall("get_weather", '{"n": 3}'),
]
ENDS = ("<|call|>",)  # of a reply, as `write_calls` writes them
NAMED = ("functionary-v3.2", "llama-pythonic")  # other names make a text of a call
BEFORE = {
    "harmony": "<|channel|>final<|message|>Hi<|end|><|start|>assistant",
    "muse-glimmer": " to=user<|message|>Hi<|eom|><|start|>assistant",
}
CASES = [(one.name, control) for one in FORMATS for control in (False, True) if control or not one.next_message]
each = pytest.mark.parametrize(("name", "control"), CASES)


def marks(tool_format, control):
    return tuple(dict.fromkeys(tool_format.markers)) if control else ()


def written(tool_format, *calls):
    """Calls as a reply has them."""
    text = tool_format.write_calls(calls).removeprefix(getattr(tool_format, "prompted", ""))
    return next((text.removesuffix(end) for end in ENDS if text.endswith(end)), text)


def constraint_of(name, control, *, parallel=True, in_reasoning=False):
    tool_format = format_named(name)
    controls = marks(tool_format, control)
    free = free_reply(tool_format, TOOLS, control_ids(controls), parallel=parallel, in_reasoning=in_reasoning)
    assert free is not None
    return tool_format, controls, free


@each
def test_a_reply_is_text_or_sound_calls(name, control):
    tool_format, controls, free = constraint_of(name, control)
    for text in ("", "Hello.", 'x > y {"a": 1} <b> [1] \n', '{"name"', '{"type": "x", "n": 1}', "[f"):
        is_begun = tool_format.name in ("json", "llama-3") and text.startswith('{"name')
        assert admits(free, text, controls) != is_begun, text
        assert split_reply(tool_format, text, TOOLS).calls == []
    for call in (WEATHER, NOW):
        assert admits(free, written(tool_format, call), controls)
    for call in WRONG:
        is_text = name in NAMED and call.name not in ("get_weather", "now")
        assert admits(free, written(tool_format, call), controls) == is_text, call
        assert not is_text or split_reply(tool_format, written(tool_format, call), TOOLS).calls == []


@each
def test_a_call_stands_behind_text(name, control):
    tool_format, controls, free = constraint_of(name, control)
    before = BEFORE.get(name, "Hi\n")
    text = before + tool_format.write_calls([WEATHER]).removesuffix("<|call|>")
    assert admits(free, text, controls)
    calls = split_reply(tool_format, text, TOOLS).calls
    is_bare = name in ("json", "llama-3")  # what such a reply begins with says what it is
    assert [call.name for call in calls] == ([] if is_bare else ["get_weather"])
    if not is_bare and name not in NAMED:
        assert not admits(free, before + tool_format.write_calls(WRONG[:1]).removesuffix("<|call|>"), controls)


@each
def test_marks_around_text_are_no_refusal(name, control):
    tool_format, controls, free = constraint_of(name, control)
    for mark in tool_format.layout:
        behind = "<|message|>" if mark == "<|channel|>" else ""
        text = f"{mark}{behind}Hello" if name in BEFORE else f"{mark}Hello {mark}"
        assert admits(free, text, controls), mark


@each
def test_one_call_ends_a_reply_without_parallel_calls(name, control):
    tool_format, controls, free = constraint_of(name, control, parallel=False)
    text = tool_format.write_calls([WEATHER, NOW])
    prompted = getattr(tool_format, "prompted", "")
    assert admits(free, written(tool_format, WEATHER), controls)
    assert not admits(free, text.removeprefix(prompted).removesuffix("<|call|>"), controls)


@each
def test_reasoning_comes_first(name, control):
    tool_format = format_named(name)
    if tool_format.reasoning is None:
        return
    opening, closing = tool_format.reasoning
    tool_format, controls, free = constraint_of(name, control)
    behind = f"Hm.{closing}{tool_format.next_message}" + written(tool_format, WEATHER)
    assert admits(free, opening + behind, controls)
    tool_format, controls, opened = constraint_of(name, control, in_reasoning=True)
    assert admits(opened, behind, controls)
    assert not admits(opened, written(tool_format, WEATHER), controls)
    forced = forced_calls(tool_format, TOOLS, control_ids(controls), parallel=True, in_reasoning=True)
    assert admits(forced, behind, controls)
    assert not admits(forced, f"Hm.{closing}{tool_format.next_message}Hello", controls)


@each
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**32), parallel=st.booleans(), tenths=st.integers(0, 9))
def test_what_is_admitted_is_read_as_text_or_right_calls(name, control, seed, parallel, tenths):
    tool_format, controls, free = constraint_of(name, control, parallel=parallel)
    call = written(tool_format, WEATHER)
    tokens = tokens_of(call, controls)
    begun = tokens[: len(tokens) * tenths // 10]
    hints = [
        *map(call.__getitem__, (slice(12), slice(6))),
        "</",
        '"}',
        "]",
        "\n",
        ">>>",
        '"',
        "}",
        "</atem:parameter>\n",
    ]
    hints.append('<|"|>')
    hints.append(getattr(getattr(tool_format, "shape", None), "value_end", "") or "'")
    text = drawn(free, seed, controls, hints, begun)
    parts = run(tool_format, [text], TOOLS)
    assert run(tool_format, list(text), TOOLS) == parts
    calls = [(call.name, json.loads(call.arguments_json)) for call in collect_parts(parts).calls]
    assert all(is_right(*call) for call in calls), text
    assert parallel or len(calls) <= 1
    is_call = len(begun) >= len(tokens_of(call[: call.index("Paris")], controls))
    assert calls or not is_call, text


def test_the_mark_that_ends_a_message_may_be_the_beginning_of_an_opening():
    _, controls, free = constraint_of("gigachat-3", True)
    assert admits(free, "Hello.<|message_sep|>", controls)
    assert not admits(free, "Hello.<|message_sep|>\n\nuser", controls)
