# ruff: noqa: RUF001 (the bars in DeepSeek's tokens)
"""Calls whose arguments stand between tags: real texts of each family, and what they mean."""

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
from erllama.chat.tool_formats.tagged_format import (
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
    GLM,
    GLM_FLAT,
    HUNYUAN3,
    KIMI_K3,
    LING,
    MINICPM5,
    MINIMAX_M2,
    MINIMAX_M3,
    QWEN3_CODER,
    SEED,
    STEP,
    TAGGED_FORMATS,
)
from tests.support.tool_replies import TOOLS, cut, is_right, random_reply, run

CALLS = [ToolCall("get_weather", '{"city": "ARGPARIS", "n": 3}'), ToolCall("get_time", '{"zone": "ARGZONE"}')]
TEXTS = {
    QWEN3_CODER: "<tool_call>\n<function=get_weather>\n<parameter=city>\nARGPARIS\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_time>\n<parameter=zone>\nARGZONE\n</parameter>\n</function>\n</tool_call>",
    STEP: "<tool_call>\n<function=get_weather>\n<parameter=city>\nARGPARIS\n</parameter>\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call><tool_call>\n<function=get_time>\n<parameter=zone>\nARGZONE\n</parameter>\n</function>\n</tool_call>",
    SEED: "<seed:tool_call>\n<function=get_weather>\n<parameter=city>ARGPARIS</parameter>\n<parameter=n>3</parameter>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=get_time>\n<parameter=zone>ARGZONE</parameter>\n</function>\n</seed:tool_call>",
    GLM: "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>ARGPARIS</arg_value>\n<arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>get_time\n<arg_key>zone</arg_key>\n<arg_value>ARGZONE</arg_value>\n</tool_call>",
    GLM_FLAT: "<tool_call>get_weather<arg_key>city</arg_key><arg_value>ARGPARIS</arg_value><arg_key>n</arg_key><arg_value>3</arg_value></tool_call><tool_call>get_time<arg_key>zone</arg_key><arg_value>ARGZONE</arg_value></tool_call>",
    LING: "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>ARGPARIS</arg_value><arg_key>n</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>get_time\n<arg_key>zone</arg_key>\n<arg_value>ARGZONE</arg_value>\n</tool_call>",
    MINIMAX_M2: '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">ARGPARIS</parameter>\n<parameter name="n">3</parameter>\n</invoke>\n<invoke name="get_time">\n<parameter name="zone">ARGZONE</parameter>\n</invoke>\n</minimax:tool_call>',
    DEEPSEEK_V3_2: '<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">ARGPARIS</｜DSML｜parameter>\n<｜DSML｜parameter name="n" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n<｜DSML｜parameter name="zone" string="true">ARGZONE</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
    DEEPSEEK_V4: '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">ARGPARIS</｜DSML｜parameter>\n<｜DSML｜parameter name="n" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n<｜DSML｜parameter name="zone" string="true">ARGZONE</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>',
    MINICPM5: '<function name="get_weather"><param name="city">ARGPARIS</param><param name="n">3</param></function>\n<function name="get_time"><param name="zone">ARGZONE</param></function>',
    HUNYUAN3: "<tool_calls:opensource>\n<tool_call:opensource>get_weather<tool_sep:opensource>\n<arg_key:opensource>city</arg_key:opensource>\n<arg_value:opensource>ARGPARIS</arg_value:opensource>\n<arg_key:opensource>n</arg_key:opensource>\n<arg_value:opensource>3</arg_value:opensource>\n</tool_call:opensource>\n<tool_call:opensource>get_time<tool_sep:opensource>\n<arg_key:opensource>zone</arg_key:opensource>\n<arg_value:opensource>ARGZONE</arg_value:opensource>\n</tool_call:opensource>\n</tool_calls:opensource>",
    KIMI_K3: '<|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|><|open|>argument key="city" type="string"<|sep|>ARGPARIS<|close|>argument<|sep|><|open|>argument key="n" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool="get_time" index="2"<|sep|><|open|>argument key="zone" type="string"<|sep|>ARGZONE<|close|>argument<|sep|><|close|>call<|sep|><|close|>tools<|sep|>',
    MINIMAX_M3: ']<]minimax[>[<tool_call>\n]<]minimax[>[<invoke name="get_weather">]<]minimax[>[<city>ARGPARIS]<]minimax[>[</city>]<]minimax[>[<n>3]<]minimax[>[</n>]<]minimax[>[</invoke>\n]<]minimax[>[<invoke name="get_time">]<]minimax[>[<zone>ARGZONE]<]minimax[>[</zone>]<]minimax[>[</invoke>\n]<]minimax[>[</tool_call>',
}
M3 = MINIMAX_M3.shape.mark
every_format = pytest.mark.parametrize("tool_format", TAGGED_FORMATS, ids=lambda one: one.name)


@every_format
def test_the_text_of_a_real_template_is_read_and_written(tool_format):
    text = TEXTS[tool_format]
    assert tool_format.write_calls(CALLS) == text
    reply = split_reply(tool_format, "Well.\n" + text + "\n")
    assert (reply.content, reply.reasoning, reply.calls) == ("Well.", "", CALLS)
    assert run(tool_format, list(text)) == run(tool_format, [text])
    assert strict_calls(tool_format, text) == ("", [(call.name, json.loads(call.arguments_json)) for call in CALLS])


@every_format
def test_layout_between_tags_has_no_meaning(tool_format):
    text = TEXTS[tool_format].replace("\n", "") if tool_format is not HUNYUAN3 else TEXTS[tool_format]
    assert split_reply(tool_format, text).calls == CALLS
    text = TEXTS[tool_format].replace("><", ">\n <").replace(">\n<", "> \n\n<")
    assert split_reply(tool_format, text).calls == CALLS


@every_format
def test_reasoning_comes_before_a_call(tool_format):
    opening, closing = tool_format.reasoning
    text = f"Hm.\n{closing}\n\nWell.\n{TEXTS[tool_format]}"
    for chunks, begun in ((list(text), True), ([opening + "\n" + text], False)):
        parts = run(tool_format, chunks, in_reasoning=begun)
        assert parts[:2] == [ReasoningDelta("Hm."), TextDelta("Well.")]
        assert collect_parts(parts).calls == CALLS


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.text(max_size=8)
    | st.sampled_from(['"', "\\", "</parameter>", "</arg_value>", "</param>", "</function>", "\n", "]]>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ENDS = [M3, *(one.shape.value_end.strip() for one in TAGGED_FORMATS)]
TEXT = st.lists(
    st.text(max_size=6)
    | st.sampled_from(
        ["3", "null", " ", "\n", "<", "</", "</p", "<tool_call>", "</function>", "</tool_call>", "]]>", '"']
    ),
    max_size=4,
).map("".join)
TEXT = TEXT.filter(lambda text: not any(end in text or text.endswith("]]>") for end in ENDS))
KEY = st.text(min_size=1, max_size=5).filter(lambda key: not set(key) & set('<>"\r\n') and not key.startswith("/"))
CALL = st.tuples(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True), st.dictionaries(KEY, TEXT | JSON, max_size=3)
)


def fits(value, tool_format):
    if tool_format is MINIMAX_M3 and not isinstance(value, str):
        return all(isinstance(one, int) for one in leaves(value))  # texts in it have no types
    return not isinstance(value, str) or (tool_format.shape.mark or tool_format.shape.value_end.strip()) not in value


def leaves(value):
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if members is None else [leaf for one in members for leaf in leaves(one)]


@every_format
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_what_a_format_writes_it_reads(tool_format, data):
    calls = [
        (f"{name}{number}", {key: value for key, value in arguments.items() if fits(value, tool_format)})
        for number, (name, arguments) in enumerate(data.draw(st.lists(CALL, min_size=1, max_size=3)))
    ]
    tools = [
        ToolSpec(
            name,
            {
                "properties": {
                    key: {"type": "string"} if isinstance(value, str) else {} for key, value in arguments.items()
                }
            },
        )
        for name, arguments in calls
    ]
    text = "Well.\n" + tool_format.write_calls([ToolCall(name, json.dumps(arguments)) for name, arguments in calls])
    parts = run(tool_format, cut(text, data.draw(st.lists(st.integers(0, 400), max_size=6))), tools)
    assert parts == run(tool_format, list(text), tools) == run(tool_format, [text], tools)
    reply = collect_parts(parts)
    assert (reply.content, [(call.name, json.loads(call.arguments_json)) for call in reply.calls]) == ("Well.", calls)


def pieces(tool_format):
    shape = tool_format.shape
    words = [
        *(shape.section or ()),
        *shape.call,
        *shape.key,
        shape.call_end,
        shape.value_end,
        shape.json_key or "",
        TEXTS[tool_format],
    ]
    return st.lists(st.sampled_from([*words, "f", "k", '"', "<", "\n", " ", "{", "3", "é", "text"]), max_size=14).map(
        "".join
    )


@every_format
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_split_gives_the_same_parts(tool_format, data):
    text = data.draw(pieces(tool_format))
    whole = run(tool_format, [text])
    assert run(tool_format, cut(text, data.draw(st.lists(st.integers(0, 400), max_size=8)))) == whole
    assert run(tool_format, list(text)) == whole
    if not collect_parts(whole).calls and not text.lstrip().startswith(tool_format.reasoning[0]):
        assert collect_parts(whole).content == text


@every_format
@pytest.mark.parametrize(
    "text",
    ["Write {} like this.", "{}", "{}{}{}", '{}{{"name": "f", "arguments": {{}}}}', "{}f>", "{}\n\nf", "{} is a tag" + " of many words" * 60],
)  # fmt: skip
def test_text_that_resembles_a_call_stays_text(tool_format, text):
    for opening in tool_format.shape.openings:
        whole = text.replace("{}", opening)
        assert run(tool_format, list(whole)) == run(tool_format, [whole]) == [TextDelta(whole)]


@every_format
def test_a_reply_that_is_cut_off_keeps_what_was_made(tool_format):
    text = TEXTS[tool_format]
    for n in range(text.index("ARGPARIS") + 1, text.index("ARGPARIS") + 8):
        (call,) = split_reply(
            tool_format, text[:n], [ToolSpec("get_weather", {"properties": {"city": {"type": "string"}}})]
        ).calls
        assert call == ToolCall("get_weather", '{"city": "' + "ARGPARIS"[: n - text.index("ARGPARIS")])
    for n in range(text.index("ARGPARIS") + 9, text.index(tool_format.shape.call_end)):
        reply = split_reply(tool_format, text[:n])
        assert reply.content == ""
        assert reply.calls[0].arguments_json.startswith('{"city": "ARGPARIS')


def test_a_text_streams_as_it_is_made_and_json_when_it_is_complete():
    tools = [ToolSpec("f", {"properties": {"a": {"type": "string"}}})]
    stream = QWEN3_CODER.splitter(tools)
    assert stream.push("<tool_call>\n<function=f>\n<parameter=") == [CallStart("f"), ArgumentsDelta("{")]
    assert stream.push("a>\n") == [ArgumentsDelta('"a": '), ArgumentsDelta('"')]
    assert stream.push("3 <b>\n") == [ArgumentsDelta("3 <b>")]
    assert stream.push("x\n</param") == [ArgumentsDelta("\\nx")]
    assert stream.push("eter>\n<parameter=b>\n[1,") == [ArgumentsDelta('"'), ArgumentsDelta(', "b": ')]
    assert stream.push("2]\n</parameter>\n</function>") == [ArgumentsDelta("[1,2]"), ArgumentsDelta("}")]
    assert stream.push("\n</tool_call>\n") == []
    assert stream.finish() == []


SCHEMA = {
    "properties": {
        "text": {"type": "string"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "flag": {"type": "boolean"},
        "size": {"type": ["integer", "string"]},
        "list": {"$ref": "#/$defs/list"},
        "unit": {"enum": ["1", "2"]},
        "all": {"allOf": [{"description": "x"}, {"type": "string"}]},
    },
    "$defs": {"list": {"type": "array"}},
}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "3", "3"),
        ("text", '"3"', '"3"'),
        ("text", " a ", " a "),
        ("text", "", ""),
        ("note", "null", None),
        ("note", "nullable", "nullable"),
        ("note", "3", "3"),
        ("note", "{}", "{}"),
        ("note", '"null"', "null"),
        ("flag", "true", True),
        ("flag", "False", False),
        ("flag", "maybe", "maybe"),
        ("flag", "1", 1),
        ("size", "1.5", "1.5"),
        ("size", " 15 ", 15),
        ("size", "15 m", "15 m"),
        ("list", "['a', None]", ["a", None]),
        ("list", '["</parameter>", "\\""]', ["</parameter>", '"']),
        ("list", "[NaN]", "[NaN]"),
        ("unit", "1", "1"),
        ("all", "1", "1"),
        ("other", "1e3", 1000.0),
        ("other", "True", "True"),
        ("other", "12\" wide", '12" wide'),
        ("other", '{"a": 1', '{"a": 1'),
        ("other", "[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
def test_a_value_is_read_as_its_schema_says(key, text, value):
    whole = f"<tool_call>\n<function=f>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
    tools = [ToolSpec("f", SCHEMA)]
    (call,) = split_reply(QWEN3_CODER, whole, tools).calls
    assert json.loads(call.arguments_json) == {key: value}
    if len(text) < 1000:
        assert run(QWEN3_CODER, list(whole), tools) == run(QWEN3_CODER, [whole], tools)


@pytest.mark.parametrize(
    ("tool_format", "text", "content", "arguments"),
    [
        (QWEN3_CODER, "<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>", "", {"a": "x"}),
        (QWEN3_CODER, "<tool_call><function=f><parameter=a>x</parameter></function></tool_call>", "", {"a": "x"}),
        (QWEN3_CODER, "<tool_call>\n<function=f>\n</function>\n</tool_call> Done.", " Done.", {}),
        (QWEN3_CODER, "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</tool_call>", "", {"a": "x"}),
        (QWEN3_CODER, "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\nHm.", "\nHm.", {"a": "x"}),
        (MINICPM5, '<function name="f"><param name="a"><![CDATA[</param>\n&]]></param></function>', "", {"a": "</param>\n&"}),
        (MINICPM5, '<function name="f"><param name="a"><![CDATA x</param></function>', "", {"a": "<![CDATA x"}),
        (DEEPSEEK_V4, '<｜DSML｜invoke name="f">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>', "", {}),
    ],
)  # fmt: skip
def test_departures_that_models_are_known_for_are_understood(tool_format, text, content, arguments):
    reply = split_reply(tool_format, text)
    assert (reply.content, [json.loads(call.arguments_json) for call in reply.calls]) == (content, [arguments])


K3_CALLS = '<|open|>tools<|sep|><|open|>call tool="f" index="1"<|sep|>{}<|close|>call<|sep|><|close|>tools<|sep|>'


def test_kimi_k3_writes_its_text_between_tags_of_their_own():
    text = "Hm.<|close|>think<|sep|><|open|>response<|sep|>Hi.<|close|>response<|sep|>" + TEXTS[KIMI_K3]
    text += "<|close|>message<|sep|>"
    reply = collect_parts(run(KIMI_K3, [text], in_reasoning=True))
    assert (reply.content, reply.reasoning, reply.calls) == ("Hi.", "Hm.", CALLS)
    assert run(KIMI_K3, list(text), in_reasoning=True) == run(KIMI_K3, [text], in_reasoning=True)


def test_kimi_k3_may_write_all_arguments_as_one_object():
    arguments = '{"a": {"b": "}"}, "c": [1, 2]}'
    text = K3_CALLS.format(f'<|open|>json type="object"<|sep|>{arguments}<|close|>json<|sep|>')
    parts = run(KIMI_K3, [text])
    assert parts == run(KIMI_K3, list(text)) == [CallStart("f"), ArgumentsDelta(arguments)]
    assert split_reply(KIMI_K3, text.partition(", 2")[0]).calls == [ToolCall("f", '{"a": {"b": "}"}, "c": [1')]
    broken = K3_CALLS.format('<|open|>json type="object"<|sep|>no')
    assert split_reply(KIMI_K3, broken).calls == [ToolCall("f", "{}")]


@given(st.text(max_size=6).filter(lambda text: text.strip()))
def test_kimi_k3_has_any_key(key):
    (call,) = split_reply(KIMI_K3, KIMI_K3.write_calls([ToolCall("f", json.dumps({key: key}))])).calls
    assert json.loads(call.arguments_json) == {key: key}


def test_arguments_that_are_no_object_are_written_as_one_text():
    assert '<parameter=input>\n{"a\n' in QWEN3_CODER.write_calls([ToolCall("f", '{"a')])


@every_format
def test_a_model_is_told_how_to_call(tool_format):
    text = tool_format.system_text([{"type": "function", "function": {"name": "xToolx"}}])
    assert "xToolx" in text
    assert [call.name for call in split_reply(tool_format, text).calls] == ["function_name"]


@every_format
def test_a_grammar_has_room_for_many_tools(tool_format):
    optional = {f"parameter_{n}": {"type": ("string", "integer", "array")[n % 3]} for n in range(8)}
    tools = [ToolSpec(f"tool_number_{n}", {"properties": optional, "required": []}) for n in range(60)]
    assert random_reply(tool_format, tools, 0, parallel=True, hints=(tool_format.shape.value_end,))


@every_format
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32), parallel=st.booleans(), with_control=st.booleans())
def test_what_the_rules_admit_is_read_as_a_right_call(tool_format, seed, parallel, with_control):
    control = tool_format.markers if with_control else ()
    hints = (tool_format.shape.value_end, '"', "]", tool_format.shape.value_end[:4], "<")
    text = random_reply(tool_format, TOOLS, seed, parallel=parallel, control=control, hints=hints)
    reply = split_reply(tool_format, text, TOOLS)
    assert reply.content == ""
    assert reply.calls
    assert parallel or len(reply.calls) == 1
    calls = [(call.name, json.loads(call.arguments_json)) for call in reply.calls]
    assert all(is_right(*call) for call in calls), text
