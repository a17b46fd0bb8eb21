"""Families that write a call as a JSON object: their real texts, any cuts, and what only looks like
a call.
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erllama.chat.tool_formats import json_format
from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, TextDelta, ToolCall
from erllama.chat.tool_formats.json_format import (
    APERTUS,
    BARE_JSON,
    COHERE,
    FIREFUNCTION,
    HERMES,
    LLAMA_3,
    MISTRAL_NEMO,
)
from tests.support.tool_replies import CUTS, TOOLS, admits_calls, calls_with, cut, is_right, random_reply, read, run

PARIS, ZONE = ("get_weather", {"city": "ARGPARIS", "n": 3}), ("get_time", {"zone": "ARGZONE"})
BOTH = [PARIS, ZONE]
OBJECT = '{"name": "get_weather", "arguments": {"city": "ARGPARIS", "n": 3}}'
OBJECTS = f'[{OBJECT}, {{"name": "get_time", "arguments": {{"zone": "ARGZONE"}}}}]'
COHERE_CALLS = (
    '[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "ARGPARIS", "n": 3}},\n'
    '    {"tool_call_id": "1", "tool_name": "get_time", "parameters": {"zone": "ARGZONE"}}\n]'
)
COMMAND_CALLS = (
    '[\n    {\n        "tool_name": "get_weather",\n        "parameters": {\n            "city": "ARGPARIS",\n'
    '            "n": 3\n        }\n    },\n    {\n        "tool_name": "get_time",\n        "parameters": {\n'
    '            "zone": "ARGZONE"\n        }\n    }\n]'
)

# what the families' templates write, and the calls in it
EXAMPLES = [
    ("HERMES", f"<tool_call>\n{OBJECT}\n</tool_call>", [PARIS]),
    ("APRIEL", f'\n<tool_calls>{OBJECTS.replace("}}", """}, "id": "call_1aaaaaaa"}""")}</tool_calls>', BOTH),
    ("MINIMAX_M1", "<tool_calls>\n" + OBJECTS[1:-1].replace("}, {", "}\n{") + "\n</tool_calls>", BOTH),
    ("COHERE", f"<|START_ACTION|>{COHERE_CALLS}<|END_ACTION|>", BOTH),
    ("COMMAND_R_PLUS", f"\nAction:\n```json\n{COMMAND_CALLS}```\n", BOTH),
    ("COMMAND_R_PLUS", f"Action: ```json\n{COMMAND_CALLS}\n```", BOTH),
    ("NEMOTRON_NANO_V2", f"<TOOLCALL>{OBJECTS}</TOOLCALL>\n", BOTH),
    ("FIREFUNCTION", f" functools{OBJECTS}", BOTH),
    ("GIGACHAT_3", f"<|message_sep|>\n\nfunction call<|role_sep|>\n{OBJECT}", [PARIS]),
    ("GIGACHAT_3_1", f"<|function_call|>{OBJECT}", [PARIS]),
    ("MISTRAL_NEMO", f'[TOOL_CALLS]{OBJECTS.replace("}}", """}, "id": "c6863a898"}""")}', BOTH),
    ("GRANITE_3", f"<|tool_call|>{OBJECTS}", BOTH),
    ("PHI_4_MINI", f"<|tool_call|>{OBJECTS}<|/tool_call|>", BOTH),
    ("APERTUS", '<|tools_prefix|>[{"get_weather": {"city": "ARGPARIS", "n": 3}}, '
     '{"get_time": {"zone": "ARGZONE"}}]<|tools_suffix|>', BOTH),
    ("BARE_JSON", OBJECT, [PARIS]),
    ("LLAMA_3", OBJECT.replace("arguments", "parameters"), [PARIS]),
    ("LLAMA_3", "<|python_tag|>" + OBJECT.replace("arguments", "parameters"), [PARIS]),
    ("LLAMA_3", OBJECT.replace('{"name"', '{"type": "function", "name"'), [PARIS]),
    ("LLAMA_3", OBJECT + "; " + OBJECT, [PARIS, PARIS]),
]  # fmt: skip
NAMES = list(dict.fromkeys(name for name, _, _ in EXAMPLES))
BARE = ("BARE_JSON", "LLAMA_3")


def family(name):
    return getattr(json_format, name)


each = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize(("name", "text", "calls"), EXAMPLES)
def test_a_real_text_is_read(name, text, calls):
    whole = run(family(name), [text], TOOLS)
    assert read(family(name), text, TOOLS) == ("", "", calls)
    assert run(family(name), list(text), TOOLS) == whole
    assert run(family(name), list(text)) == whole


@pytest.mark.parametrize(("name", "text", "calls"), EXAMPLES)
def test_a_reply_that_is_cut_off_is_the_beginning_of_the_whole(name, text, calls):
    for n in range(len(text)):
        content, _, read_calls = "", "", []
        for part in run(family(name), [text[:n]], TOOLS):
            match part:
                case TextDelta(piece):
                    content += piece
                case CallStart(called):
                    read_calls.append([called, ""])
                case ArgumentsDelta(piece):
                    read_calls[-1][1] += piece
        assert [called for called, _ in read_calls] == [called for called, _ in calls[: len(read_calls)]]
        assert all(json.loads(one) == calls[i][1] for i, (_, one) in enumerate(read_calls[:-1]))
        assert read_calls or content == text[:n] or not content


@each
@settings(max_examples=50)
@given(data=st.data(), cuts=CUTS)
def test_what_a_format_writes_it_reads(name, data, cuts):
    one = family(name)
    calls = data.draw(calls_with(one.shape.opening, one.shape.closing))
    calls = calls if one.parallel or name == "LLAMA_3" else calls[:1]
    before = "" if name in BARE else "Well."
    written = one.write_calls([ToolCall(called, json.dumps(arguments)) for called, arguments in calls])
    written = "; ".join(written.split("\n")) if name == "LLAMA_3" else written
    assert read(one, before + "\n" * bool(before) + written, cuts=cuts) == (before, "", calls)


FRAGMENTS = [
    "text",
    " ",
    "\n",
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    '"',
    "\\",
    '{"name": "',
    '"parameters": {',
    "é😀",
    "{}",
    '{"x": 1}',
]


@each
@settings(max_examples=50)
@given(data=st.data(), cuts=CUTS)
def test_any_cuts_give_the_same_parts(name, data, cuts):
    one = family(name)
    call = one.write_calls([ToolCall("f", '{"x": 1}')])
    marks = [*one.shape.openings, one.shape.closing, *one.layout, *(one.reasoning or ()), call, call[:-1], call[:20]]
    text = data.draw(st.lists(st.sampled_from(marks + FRAGMENTS), max_size=10).map("".join))
    assert run(one, cut(text, cuts)) == run(one, [text]) == run(one, list(text))


@each
@settings(max_examples=50)
@given(data=st.data())
def test_text_without_a_call_is_returned_unchanged(name, data):
    one = family(name)
    marks = [*one.shape.openings, one.shape.closing, *FRAGMENTS, '{"name": "f", "nothing": 1}', "[1]", '[{"name": 3}]']
    text = data.draw(
        st.lists(st.sampled_from([mark for mark in marks if mark != '{"name": "']), max_size=10).map("".join)
    )
    if name in ("APERTUS", "HERMES", "MINIMAX_M1") or '"f"' in text:
        text = text.replace('"', "'")
    assert read(one, text) == (text, "", [])


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
    calls = [ToolCall("get_weather", '{"city": "Rome", "n": 3}'), ToolCall("get_time", '{"zone": "UTC"}')]
    assert admits_calls(one, one.write_calls(calls[:1]), parallel=False)
    assert admits_calls(one, one.write_calls(calls), parallel=True) == one.parallel
    assert not admits_calls(one, one.write_calls([ToolCall("get_wether", '{"city": "Rome", "n": 3}')]))
    assert not admits_calls(one, one.write_calls([ToolCall("get_weather", "{}")]))


@each
def test_the_system_text_has_the_tools_and_the_form(name):
    one = family(name)
    text = one.system_text([{"type": "function", "function": {"name": "get_weather"}}])
    assert "get_weather" in text
    assert one.shape.opening in text
    assert one.shape.closing in text


def test_text_between_marks_of_its_own_loses_them():
    text = "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Hello<|END_RESPONSE|>"
    assert read(COHERE, text) == ("Hello", "Hm.", [])
    assert read(COHERE, text.removeprefix("<|START_THINKING|>"), in_reasoning=True) == ("Hello", "Hm.", [])


def test_a_call_may_end_a_thought():
    call = APERTUS.write_calls([ToolCall("get_time", '{"zone": "ARGZONE"}')])
    for text in (f"<|inner_prefix|>Hm. <|inner{call}", f"Hm. <|inner{call}"):
        inside = text.startswith("Hm")
        assert run(APERTUS, list(text), in_reasoning=inside) == run(APERTUS, [text], in_reasoning=inside)
        assert read(APERTUS, text, in_reasoning=inside) == ("", "Hm. <|inner", [ZONE])
    assert read(HERMES, "<think>A <tool_call> b</think>Hi") == ("Hi", "A <tool_call> b", [])


def test_a_call_is_bare_only_at_the_beginning_of_a_reply():
    bare = OBJECT.replace("arguments", "parameters")
    for text in (f"Use {bare}", f"Sure.\n{bare}", '{"name": "Bob", "parameters": {}}', '{"name": "get_time"}'):
        assert read(LLAMA_3, text, TOOLS) == (text, "", [])
    assert read(BARE_JSON, f"<think>Hm.</think>\n\n{OBJECT}", TOOLS) == ("", "Hm.", [PARIS])
    assert read(LLAMA_3, f"{bare}\nDone. {bare}", TOOLS) == (f"\nDone. {bare}", "", [PARIS])


def test_a_reply_in_json_streams():
    splitter = LLAMA_3.splitter(TOOLS)
    assert splitter.push(' {"answer"') == [TextDelta(" {"), TextDelta('"answer"')]
    assert splitter.push(": 4") == [TextDelta(": 4")]


def test_a_word_is_no_opening():
    assert read(FIREFUNCTION, "import functools\n[1]") == ("import functools\n[1]", "", [])


def test_what_follows_in_a_list_and_is_no_call_is_text():
    assert read(MISTRAL_NEMO, f"[TOOL_CALLS][{OBJECT}, 3] x") == (", 3] x", "", [PARIS])
    assert read(MISTRAL_NEMO, f'[TOOL_CALLS][{OBJECT}, {{"na') == (', {"na', "", [PARIS])
