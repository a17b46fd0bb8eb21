"""Harmony and Muse Glimmer: messages by their channels or recipients, cut anywhere, and never at the
cost of text.
"""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from erllama.chat.tool_formats.base import (
    ArgumentsDelta,
    CallStart,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    ToolSpec,
    strict_calls,
)
from erllama.chat.tool_formats.harmony import HARMONY, MUSE
from tests.support.tool_replies import CUTS, TOOLS, admits_calls, calls_with, cut, is_right, random_reply, read, run

ARGUMENTS = '{"city": "ARGPARIS", "n": 3}'
PARIS = ("get_weather", json.loads(ARGUMENTS))
BY_MODEL = f"<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{ARGUMENTS}<|call|>"
BY_TEMPLATE = f" to=functions.get_weather<|channel|>commentary json<|message|>{ARGUMENTS}<|call|>"
ANALYSIS = "<|channel|>analysis<|message|>The user asks.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>Hello"


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "calls"),
    [
        (BY_MODEL, "", "", [PARIS]),
        (BY_TEMPLATE, "", "", [PARIS]),
        (ANALYSIS + BY_MODEL, "", "The user asks.", [PARIS]),
        (ANALYSIS + BY_TEMPLATE.removesuffix("<|call|>"), "", "The user asks.", [PARIS]),
        (f"<|start|>assistant{ANALYSIS}{BY_TEMPLATE}", "", "The user asks.", [PARIS]),
        (ANALYSIS + FINAL, "Hello", "The user asks.", []),
        (ANALYSIS + FINAL + "<|return|>", "Hello", "The user asks.", []),
        (ANALYSIS + ANALYSIS + FINAL, "Hello", "The user asks.\n\nThe user asks.", []),
        (
            f"{ANALYSIS}<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant{BY_TEMPLATE}",
            "Let me see.", "The user asks.", [PARIS],
        ),
        (f"{BY_MODEL}<|start|>assistant{BY_TEMPLATE}", "", "", [PARIS, PARIS]),
        ("<|channel|>commentary to=functions.get_time<|message|><|call|>", "", "", [("get_time", {})]),
        ("<|channel|>commentary to=functions.get_time<|message|>", "", "", [("get_time", {})]),
        ("<|channel|>commentary to=get_time<|message|>{}", "", "", [("get_time", {})]),
        (ANALYSIS.removesuffix("assistant"), "", "The user asks.", []),
        ("<|channel|>analysis<|message|>The", "", "The", []),
    ],
)  # fmt: skip
def test_a_reply_is_cut_by_its_channels(text, content, reasoning, calls):
    assert read(HARMONY, text, TOOLS) == (content, reasoning, calls)
    assert run(HARMONY, list(text), TOOLS) == run(HARMONY, [text], TOOLS)


@pytest.mark.parametrize(
    "text",
    ["", " ", "Hello", "to=", "to=functions.f", "<|channel|>", "<|channel|>final", "<|start|>", "<|start|>user<|message|>x",
     "<|end|> x", "Hello <|call|> you", "a<|start|>assistant b<|message|>", " to=functions.f<|message|>[1]",
     "<|channel|>commentary to=functions.f<|message|>no", "<|channel|>" + "x" * 600 + "<|message|>", "assistant"],
)  # fmt: skip
def test_what_is_no_harmony_is_text(text):
    expected = [TextDelta(text)] if text.strip() else []
    assert run(HARMONY, [text], TOOLS) == run(HARMONY, list(text), TOOLS) == expected


@pytest.mark.parametrize(
    "mark", ["<|end|>", "<|call|>", "<|start|>", "<|return|>", "<|end|><|start|>user", "<|message|>"]
)
def test_marks_in_the_midst_of_text_are_text(mark):
    assert read(HARMONY, f"{FINAL} {mark} x") == (f"Hello {mark} x", "", [])


def test_text_behind_a_call_is_text():
    assert read(HARMONY, f"{BY_MODEL}\n") == ("", "", [PARIS])
    assert read(HARMONY, BY_MODEL.replace("<|call|>", "\n x")) == ("x", "", [PARIS])


def test_reasoning_may_have_begun():
    text = ANALYSIS.removeprefix("<|channel|>analysis<|message|>") + FINAL
    assert read(HARMONY, text, in_reasoning=True) == ("Hello", "The user asks.", [])


def test_parts_stream():
    stream = HARMONY.splitter(TOOLS)
    assert stream.push("<|channel|>analysis<|message|>Hm") == [ReasoningDelta("Hm")]
    assert stream.push("m <|e") == [ReasoningDelta("m ")]
    assert stream.push("nd|><|start|>assistant<|channel|>commentary to=functions.get_time json<|message|>") == []
    assert stream.push('{"zo') == [CallStart("get_time"), ArgumentsDelta('{"zo')]
    assert stream.push('ne": "<|call|>') == [ArgumentsDelta('ne": "<|call|>')]
    assert stream.push('"}<|call|>') == [ArgumentsDelta('"}')]
    assert stream.finish() == []
    assert HARMONY.splitter().push("Hello") == [TextDelta("Hello")]


PIECES = [BY_MODEL, BY_TEMPLATE, ANALYSIS, FINAL, "<|start|>assistant", "<|start|>", "assistant", "<|end|>", "<|call|>",
          "<|return|>", "<|message|>", "<|channel|>", "final", "analysis", " to=functions.f", "to=get_time", " ", "\n",
          "{", "}", '"', "<|constrain|>", "<|", "text", "é😀"]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join), CUTS)
@example("<|message|>x", [3])
@example("<|<|message|>x", [2])
def test_any_cuts_give_the_same_parts(text, cuts):
    assert run(HARMONY, cut(text, cuts), TOOLS) == run(HARMONY, [text], TOOLS) == run(HARMONY, list(text), TOOLS)


@given(calls_with("<|call|>", "<|end|>", "<|start|>assistant"), CUTS)
def test_what_the_format_writes_it_reads(calls, cuts):
    written = HARMONY.write_calls([ToolCall(name, json.dumps(arguments)) for name, arguments in calls])
    assert read(HARMONY, written, cuts=cuts) == ("", "", calls)
    text = f"<|channel|>commentary<|message|>Well.<|end|><|start|>assistant{written}"
    assert read(HARMONY, text, cuts=cuts) == ("Well.", "", calls)
    assert strict_calls(HARMONY, written) == ("", calls)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_rules_admit_is_read_as_a_call(seed):
    content, _, calls = read(HARMONY, random_reply(HARMONY, TOOLS, seed), TOOLS)
    assert (content, len(calls)) == ("", 1)
    assert is_right(*calls[0])


def test_the_rules_admit_both_forms_behind_reasoning():
    call = BY_MODEL.removesuffix("<|call|>").replace("ARGPARIS", "Rome")
    assert admits_calls(HARMONY, call)
    assert admits_calls(HARMONY, BY_TEMPLATE.removesuffix("<|call|>").replace("ARGPARIS", "Rome"))
    assert admits_calls(HARMONY, ANALYSIS + call)
    assert not admits_calls(HARMONY, ANALYSIS + FINAL)
    assert not admits_calls(HARMONY, call.replace("weather", "wether"))
    assert not admits_calls(HARMONY, call.replace("city", "town"))


def test_the_system_text_has_the_tools():
    assert "get_weather" in HARMONY.system_text([{"type": "function", "function": {"name": "get_weather"}}])


# --- Muse Glimmer ---------------------------------------------------------------------------------

NEXT = "<|eom|><|start|>assistant"
THOUGHT = " to=self<|message|>The user asks." + NEXT
ATEM = (
    ' to=get_weather<|message|><atem:function_calls>\n<atem:invoke name="get_weather">\n'
    '<atem:parameter name="city">ARGPARIS</atem:parameter>\n<atem:parameter name="n">3</atem:parameter>\n'
    "</atem:invoke>\n</atem:function_calls>"
)
TO_USER = " to=user<|message|>Hello"


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "calls"),
    [
        (ATEM, "", "", [PARIS]),
        (ATEM + "<|eot|>", "", "", [PARIS]),
        (ATEM + NEXT + ATEM, "", "", [PARIS, PARIS]),
        (THOUGHT + ATEM + NEXT + THOUGHT + ATEM, "", "The user asks.\n\nThe user asks.", [PARIS, PARIS]),
        (THOUGHT + TO_USER + NEXT + ATEM, "Hello", "The user asks.", [PARIS]),
        (ATEM + NEXT + TO_USER + "<|eot|>", "Hello", "", [PARIS]),
        (TO_USER + NEXT + TO_USER, "Hello\n\nHello", "", []),
        (TO_USER + NEXT + ATEM + NEXT + TO_USER, "Hello\n\nHello", "", [PARIS]),
        ("<|message|>Hello", "Hello", "", []),
        ("Hello", "Hello", "", []),
        (" to=self<|message|>Hm", "", "Hm", []),
        (THOUGHT.removesuffix("assistant"), "", "The user asks.", []),
        (TO_USER + " <atem:function_calls> <|eom|> x", "Hello <atem:function_calls> <|eom|> x", "", []),
        (ATEM.partition("<|message|>")[2], "", "", [PARIS]),
    ],
)  # fmt: skip
def test_a_reply_is_cut_by_its_recipients(text, content, reasoning, calls):
    assert read(MUSE, text, TOOLS) == (content, reasoning, calls)
    assert run(MUSE, list(text), TOOLS) == run(MUSE, [text], TOOLS)


MUSE_PIECES = [ATEM, THOUGHT, TO_USER, NEXT, "<|start|>assistant", "<|start|>", "<|eom|>", "<|eot|>", "<|message|>", "self",
               "to=self", " to=f", "<atem:function_calls>", "</atem:invoke>", "<", "\n", " ", "text", "é😀"]  # fmt: skip


@given(st.lists(st.sampled_from(MUSE_PIECES), max_size=10).map("".join), CUTS)
def test_any_cuts_of_muse_give_the_same_parts(text, cuts):
    assert run(MUSE, cut(text, cuts), TOOLS) == run(MUSE, [text], TOOLS) == run(MUSE, list(text), TOOLS)


VALUES = st.one_of(
    st.lists(st.text(max_size=6) | st.sampled_from(["<|eot|>", "<|eom|>", "<", "\n", "3"]), max_size=4).map("".join),
    st.integers(), st.booleans(), st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=3), st.none()),
)  # fmt: skip
KEYS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,8}", fullmatch=True)


@settings(deadline=None)
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=3), min_size=1, max_size=3), CUTS)
def test_what_muse_writes_it_reads(arguments, cuts):
    calls = [(f"f{number}", one) for number, one in enumerate(arguments)]
    tools = [
        ToolSpec(name, {"properties": {key: {"type": "string"} for key in one if isinstance(one[key], str)}})
        for name, one in calls
    ]
    written = MUSE.write_calls([ToolCall(name, json.dumps(one)) for name, one in calls])
    assert read(MUSE, written, tools, cuts=cuts) == ("", "", calls)
    assert read(MUSE, TO_USER + NEXT + written, tools, cuts=cuts) == ("Hello", "", calls)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), parallel=st.booleans(), with_control=st.booleans())
def test_whatever_muse_is_held_to_is_read_as_right_calls(seed, parallel, with_control):
    control = MUSE.markers if with_control else ()
    hints = ("</atem:parameter>\n", '"', "]", "</at", "<")
    text = random_reply(MUSE, TOOLS, seed, parallel=parallel, control=control, hints=hints)
    content, _, calls = read(MUSE, text, TOOLS)
    assert content == ""
    assert calls
    assert parallel or len(calls) == 1
    assert all(is_right(*call) for call in calls), text


def test_muse_streams():
    stream = MUSE.splitter([ToolSpec("f", {"properties": {"a": {"type": "string"}}})])
    assert stream.push(" to=self<|message|>Hm") == [ReasoningDelta("Hm")]
    assert stream.push("m <|e") == [ReasoningDelta("m ")]
    assert stream.push('om|><|start|>assistant to=f<|message|><atem:function_calls>\n<atem:invoke name="f"') == []
    assert stream.push('>\n<atem:parameter name="a">x') == [
        CallStart("f"), ArgumentsDelta("{"), ArgumentsDelta('"a": '), ArgumentsDelta('"x')]  # fmt: skip
    assert stream.push("</atem:parameter>\n</atem:invoke>") == [ArgumentsDelta('"'), ArgumentsDelta("}")]
    assert stream.push("\n</atem:function_calls><|eot|>") == []
    assert stream.finish() == []
