# ruff: noqa: RUF001  (markers of DeepSeek's have fullwidth bars)
"""Families that write a call as a name, a separator and a JSON object: their real texts, any cuts,
and what only looks like a call.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.chat.tool_formats import named_format
from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, TextDelta, ToolCall
from erllama.chat.tool_formats.named_format import (
    DEEPSEEK_V3,
    DEEPSEEK_V3_1,
    FUNCTIONARY_3_1,
    FUNCTIONARY_3_2,
    KIMI_K2,
    MISTRAL,
    SOLAR,
)
from tests.support.tool_replies import CUTS, TOOLS, admits_calls, calls_with, cut, is_right, random_reply, read, run

PARIS, ZONE = ("get_weather", {"city": "ARGPARIS", "n": 3}), ("get_time", {"zone": "ARGZONE"})
A, B = '{"city": "ARGPARIS", "n": 3}', '{"zone": "ARGZONE"}'

# what the families' templates write; all but the last lines are of two calls
EXAMPLES = [
    ("MISTRAL", f"[TOOL_CALLS]get_weather[ARGS]{A}[TOOL_CALLS]get_time[ARGS]{B}"),
    ("MISTRAL", f"[TOOL_CALLS]get_weather[CALL_ID]c6863a898[ARGS]{A}[TOOL_CALLS]get_time[CALL_ID]00114407a[ARGS]{B}"),
    ("DEEPSEEK_V3", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{A}\n```"
     f"<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{B}\n```<｜tool▁call▁end｜>"
     "<｜tool▁calls▁end｜>"),
    ("DEEPSEEK_V3_1", f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{A}<｜tool▁call▁end｜>"
     f"<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{B}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
    ("KIMI_K2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
     f"{A}<|tool_call_end|><|tool_call_begin|>functions.get_time:1<|tool_call_argument_begin|>{B}<|tool_call_end|>"
     "<|tool_calls_section_end|>"),
    ("FUNCTIONARY_3_1", f"<function=get_weather>{A}</function><function=get_time>{B}</function>"),
    ("FUNCTIONARY_3_2", f"get_weather\n{A}>>>get_time\n{B}"),
    ("FUNCTIONARY_3_2", f"\n>>>get_weather\n{A}\n>>>get_time\n{B}"),
    ("SOLAR", f"<|tool_calls|><|tool_call:begin|>call_1aaaaaaa<|tool_call:name|>get_weather<|tool_call:args|>{A}"
     f"<|tool_call:end|><|tool_call:begin|>call_2aaaaaaa<|tool_call:name|>get_time<|tool_call:args|>{B}"
     "<|tool_call:end|><|calls|>"),
]  # fmt: skip
each = pytest.mark.parametrize("name", list(dict.fromkeys(name for name, _ in EXAMPLES)))


def family(name):
    return getattr(named_format, name)


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_a_real_text_is_read(name, text):
    whole = run(family(name), [text], TOOLS)
    assert read(family(name), text, TOOLS) == ("", "", [PARIS, ZONE])
    assert run(family(name), list(text), TOOLS) == run(family(name), list(text)) == whole


@pytest.mark.parametrize(("name", "text"), EXAMPLES)
def test_a_reply_that_is_cut_off_has_what_was_read(name, text):
    for n in range(len(text)):
        parts = run(family(name), [text[:n]], TOOLS)
        names = [part.name for part in parts if isinstance(part, CallStart)]
        arguments = [part.text for part in parts if isinstance(part, ArgumentsDelta)]
        content = "".join(part.text for part in parts if isinstance(part, TextDelta))
        assert names == ["get_weather", "get_time"][: len(names)]
        assert [one.startswith(part) for one, part in zip([A, B], arguments, strict=False)] == [True] * len(names)
        assert text[:n].endswith(content)


@each
@settings(max_examples=50)
@given(data=st.data(), cuts=CUTS)
def test_what_a_format_writes_it_reads(name, data, cuts):
    one = family(name)
    calls = data.draw(calls_with(*one.shape.openings, *one.shape.tails, *one.shape.group))
    written = one.write_calls([ToolCall(called, json.dumps(arguments)) for called, arguments in calls])
    assert read(one, f"Well.\n{written}", cuts=cuts) == ("Well.", "", calls)


FRAGMENTS = ["text", " ", "\n", "{", "}", '"', "f", "all\n", "é😀", "{}", '{"x": 1}', "function", ">>>", ":0"]


def marks_of(one):
    call = one.write_calls([ToolCall("f", '{"x": 1}')])
    literals = [piece for head in one.shape.heads for piece in head.replace("{", "}").split("}") if len(piece) > 2]
    return [*one.shape.openings, *one.shape.tails, *one.shape.group, *literals], [call, call[:-1], call[:30], call[1:]]


@each
@settings(max_examples=100)
@given(data=st.data(), cuts=CUTS)
def test_any_cuts_give_the_same_parts(name, data, cuts):
    one = family(name)
    marks, calls = marks_of(one)
    around = [*one.layout, *(one.reasoning or ())]
    text = data.draw(st.lists(st.sampled_from(marks + calls + around + FRAGMENTS), max_size=10).map("".join))
    assert run(one, cut(text, cuts)) == run(one, [text]) == run(one, list(text))
    assert run(one, cut(text, cuts), TOOLS) == run(one, [text], TOOLS) == run(one, list(text), TOOLS)


@each
@given(data=st.data())
def test_text_without_a_call_is_returned_unchanged(name, data):
    one = family(name)
    fragments = [mark for mark in [*marks_of(one)[0], *FRAGMENTS] if "{" not in mark and mark not in ("", "all\n")]
    text = data.draw(
        st.lists(st.sampled_from(fragments), max_size=10).map("".join).filter(lambda one: not one.isspace())
    )
    assert read(one, text, TOOLS) == (text, "", [])


def test_a_head_without_an_end_is_text():
    text = "[TOOL_CALLS]" + "f" * 600 + "[ARGS]{}"
    assert run(MISTRAL, [text]) == run(MISTRAL, list(text)) == [TextDelta(text)]


@pytest.mark.parametrize("one", [DEEPSEEK_V3, DEEPSEEK_V3_1, KIMI_K2, FUNCTIONARY_3_1])
def test_what_is_seen_to_be_no_call_streams(one):
    splitter = one.splitter()
    splitter.push(one.opening)
    assert "".join(part.text for part in splitter.push(" of them. ")) == one.opening + " of them."


@each
@pytest.mark.parametrize("seed", range(6))
def test_whatever_the_rules_admit_is_read_as_calls(name, seed):
    one = family(name)
    content, reasoning, calls = read(one, random_reply(one, TOOLS, seed), TOOLS)
    assert (content.strip(), reasoning) == ("", "")
    assert calls
    assert all(is_right(*call) for call in calls)
    assert len(read(one, random_reply(one, TOOLS, seed, parallel=False), TOOLS)[2]) == 1


@each
def test_the_rules_admit_what_is_written(name):
    one = family(name)

    def writes(*calls):
        return one.write_calls([ToolCall(*call) for call in calls]).removeprefix(one.prompted)

    rome, utc = ("get_weather", '{"city": "Rome", "n": 3}'), ("get_time", '{"zone": "UTC"}')
    assert admits_calls(one, writes(rome), parallel=False)
    assert admits_calls(one, writes(rome, utc))
    assert not admits_calls(one, writes(rome, utc), parallel=False)
    assert not admits_calls(one, writes(("get_wether", '{"city": "Rome", "n": 3}')))
    assert not admits_calls(one, writes(("get_weather", "{}")))


@each
def test_the_system_text_has_the_tools_and_the_form(name):
    one = family(name)
    text = one.system_text([{"type": "function", "function": {"name": "get_weather"}}])
    assert "get_weather" in text
    assert one.write_calls([ToolCall("<function-name>", "<args-json-object>")]) in text


def test_a_reply_that_the_prompt_began():
    assert read(FUNCTIONARY_3_2, "all\nHello >>> x") == ("Hello >>> x", "", [])
    assert read(FUNCTIONARY_3_2, "Hello", TOOLS) == ("Hello", "", [])
    assert read(FUNCTIONARY_3_2, "all\n>>> print(1)", TOOLS) == (">>> print(1)", "", [])
    assert read(FUNCTIONARY_3_2, f"all\nLet me see.>>>get_time\n{B}", TOOLS) == ("Let me see.", "", [ZONE])
    assert read(FUNCTIONARY_3_2, "x\n{1}", TOOLS) == ("x\n{1}", "", [])
    stream = FUNCTIONARY_3_2.splitter(TOOLS)
    assert stream.push("Hello there") == [TextDelta("Hello there")]


def test_messages_behind_reasoning_lose_their_marks():
    text = "<|think|>Hm.<|end|><|begin|>assistant<|content|>Hello"
    assert read(SOLAR, text) == ("Hello", "Hm.", [])
    assert read(SOLAR, f"<|think|>Hm.<|end|><|begin|>assistant{EXAMPLES[-1][1]}") == ("", "Hm.", [PARIS, ZONE])


def test_reasoning_stands_between_the_marks_of_the_family():
    assert read(MISTRAL, "[THINK]Hm.[/THINK]Hello") == ("Hello", "Hm.", [])
    assert read(KIMI_K2, "<think>Hm.</think>" + EXAMPLES[4][1]) == ("", "Hm.", [PARIS, ZONE])
    assert read(DEEPSEEK_V3, "Hm.\n</think>\n\n" + EXAMPLES[2][1], in_reasoning=True) == ("", "Hm.", [PARIS, ZONE])
