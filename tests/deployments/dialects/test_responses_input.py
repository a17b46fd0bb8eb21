"""What bodies of the Responses API mean: items to messages, tools, choices, refusals."""

import json
import logging

import pytest

from deployments.dialects.responses.custom_input import CustomInput
from deployments.dialects.responses.messages import chat_messages
from deployments.dialects.responses.sealed import seal, unseal
from deployments.dialects.responses.tools import toolbox
from deployments.dialects.responses.wire import ResponseBody
from erllama.grammar.constraint import JSON_OBJECT, Constraint
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, openai_client, replies, served

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
F = {"type": "function", "name": "f", "description": "does f", "parameters": {"type": "object"}, "strict": False}
G = {"type": "custom", "name": "g", "description": "does g"}
NAMED = {"type": "namespace", "name": "ns", "description": "", "tools": [F, G]}
BUILT_IN = [
    {"type": kind} for kind in ("web_search", "local_shell", "image_generation", "tool_search", "mcp", "new_one")
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL_F = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


async def post(engine, prompts=None, path=PATH, **fields):
    async with http_client(app_of(served(engine, prompts))) as client:
        return await client.post(path, json={"input": "hi", **fields})


async def rendered(**fields):
    """Messages, tools and variables as the template sees them."""
    prompts = FakePrompts()
    reply = await post(FakeModel(), prompts, **fields)
    assert reply.status_code == 200, reply.text
    return prompts.rendered[0]


def function(name, arguments, id="c1"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def part(text, kind="input_text"):
    return {"type": kind, "text": text}


HISTORY = [
    {"type": "message", "id": "msg_1", "role": "developer", "content": [part("rules"), part("more")]},
    {"role": "user", "content": "hi"},
    {"type": "reasoning", "id": "rs_1", "summary": [part("s", "summary_text")], "content": [part("t", "reasoning_text")]},
    {"type": "message", "role": "assistant", "status": "completed", "content": [part("Well.", "output_text")]},
    {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": '{ "a":1}'},
    {"type": "custom_tool_call", "call_id": "c2", "name": "g", "namespace": "ns", "input": 'a "ä"\n', "status": "completed"},
    {"type": "function_call_output", "call_id": "c1", "output": "aborted"},
    {"type": "custom_tool_call_output", "call_id": "c2", "output": [part("x"), part("y", "output_text")]},
    {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"role": "system", "content": "late"},
]  # fmt: skip


async def test_cx2_items_become_the_messages_that_made_them():
    messages, _, _ = await rendered(input=HISTORY, instructions="Be brief.")
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "rules\nmore"},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "Well.",
            "reasoning_content": "t",
            "tool_calls": [
                function("f", '{ "a":1}', "call_0"),
                function("ns__g", json.dumps({"input": 'a "ä"\n'}, ensure_ascii=False), "call_1"),
            ],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "aborted"},
        {"role": "tool", "tool_call_id": "call_1", "content": "x\ny"},
        {"role": "assistant", "content": "No."},
        {"role": "system", "content": "late"},
    ]


def test_a_turn_ends_where_its_order_begins_anew():
    thought = {"type": "reasoning", "content": [part("t", "reasoning_text")]}
    said = {"role": "assistant", "content": "x"}
    called = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"}
    messages = chat_messages([thought, said, called, called, said, thought, called, thought], None)
    calls = [function("f", "{}")]
    assert messages == [
        {"role": "assistant", "content": "x", "reasoning_content": "t", "tool_calls": calls * 2},
        {"role": "assistant", "content": "x"},
        {"role": "assistant", "content": "", "reasoning_content": "t", "tool_calls": calls},
        {"role": "assistant", "content": "", "reasoning_content": "t"},
    ]


async def test_cx2_what_nobody_knows_is_skipped_with_a_log_line(caplog):
    unknown = [{"type": kind, "x": 1} for kind in ("web_search_call", "compaction", "computer_call", "of_tomorrow", 3)]
    with caplog.at_level(logging.INFO, "deployments.http"):
        messages, _, _ = await rendered(input=[*unknown, {"role": "user", "content": "hi"}])
    assert messages == [{"role": "user", "content": "hi"}]
    assert [f"place=input[{n}]" in caplog.text for n in range(6)] == [True] * 5 + [False]


async def test_cx2_an_image_is_named_in_its_place():
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    messages, _, _ = await rendered(input=[{"role": "user", "content": [part("see"), image]}, output])
    assert messages[0]["content"] == "see\n[input_image: not shown, this model reads text only]"
    assert messages[1]["content"] == "[input_image: not shown, this model reads text only]"


async def test_reasoning_comes_back_from_a_client_that_keeps_only_what_is_sealed():
    model = FakeModel(replies("<think>\nhm\n</think>\n\nSo."))
    async with openai_client(app_of(served(model))) as client:
        reply = await client.responses.create(
            model="demo", input="hi", include=["reasoning.encrypted_content"], store=False
        )
    sealed = reply.output[0].encrypted_content
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed}
    messages, _, _ = await rendered(input=[item, {"role": "assistant", "content": "So."}])
    assert messages == [{"role": "assistant", "content": "So.", "reasoning_content": "hm"}]
    plain = await post(FakeModel(replies("<think>\nhm\n</think>\n\nSo.")))
    assert "encrypted_content" not in plain.json()["output"][0]


def test_what_is_sealed_elsewhere_is_no_reasoning():
    assert unseal(seal("hm, 🌍")) == "hm, 🌍"
    assert [unseal(text) for text in ("", "gAAAA", "erllama1:!", "erllama1:/w==")] == [""] * 4


async def test_the_output_of_a_response_can_be_sent_back_whole():
    model = FakeModel(replies(f"<think>\nhm\n</think>\n\nSo.\n{CALL_F}"))
    prompts = FakePrompts()
    async with openai_client(app_of(served(model, prompts))) as client:
        first = await client.responses.create(model="demo", input="hi", tools=[F])
        given = [{"role": "user", "content": "hi"}, *first.output]
        result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "4"}
        await client.responses.create(model="demo", input=[*given, result], tools=[F])
    turn = prompts.rendered[1][0][1]
    assert (turn["content"], turn["reasoning_content"]) == ("So.", "hm")
    assert turn["tool_calls"] == [function("f", "{}", "call_0")]
    assert prompts.rendered[1][0][2]["tool_call_id"] == "call_0"


async def test_cx3_tools_are_functions_to_the_template(caplog):
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: X"}
    with caplog.at_level(logging.INFO, "deployments.http"):
        _, tools, _ = await rendered(tools=[*BUILT_IN, F, {**G, "format": grammar}, NAMED])
    text = {
        "type": "object",
        "properties": {"input": {"type": "string"}},
        "required": ["input"],
        "additionalProperties": False,
    }
    shown = [tool["function"] for tool in tools]
    assert shown[0] == {"name": "f", "description": "does f", "parameters": {"type": "object"}}
    assert list(shown[0]) == ["name", "description", "parameters"]
    assert (shown[1]["name"], shown[1]["parameters"]) == ("g", text)
    assert shown[1]["description"] == "does g\n\nThe input follows this grammar (lark):\nstart: X"
    assert [tool["name"] for tool in shown[2:]] == ["ns__f", "ns__g"]
    assert caplog.text.count("event=skipped_tool") == len(BUILT_IN)


def test_a_namespace_that_ends_in_a_separator_gets_no_second_one():
    box = toolbox([{"type": "namespace", "name": "mcp__x__", "tools": [F]}])
    assert box.client_tool("mcp__x__f").names == {"name": "f", "namespace": "mcp__x__"}
    assert box.client_tool("made_up").names == {"name": "made_up"}


def called(model):
    """The names of the functions of which the constraint knows the arguments."""
    return model.requests[0].constraint.text


@pytest.mark.parametrize(
    ("choice", "forced", "single"),
    [
        ("auto", False, False),
        ("required", True, False),
        ({"type": "function", "name": "f"}, True, True),
        ({"type": "custom", "name": "g"}, True, True),
        ({"type": "function", "name": "g", "namespace": "ns"}, True, True),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}, {"type": "mcp"}]}, True, False),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, False, False),
    ],
)  # fmt: skip
async def test_a_choice_is_a_constraint(choice, forced, single):
    model = FakeModel(replies(CALL_F))
    reply = await post(model, tools=[F, G, NAMED], tool_choice=choice)
    assert reply.status_code == 200, reply.text
    assert reply.json()["tool_choice"] == choice
    assert (called(model).startswith("start: calls\n") or "start: calls\n" in called(model)) is forced
    if forced:
        assert (")*" not in called(model)) is single


async def test_a_choice_of_none_shows_the_tools():
    _, tools, _ = await rendered(tools=[F], tool_choice="none")
    assert [tool["function"]["name"] for tool in tools] == ["f"]


async def test_parallel_calls_can_be_switched_off():
    model = FakeModel(replies(CALL_F))
    reply = await post(model, tools=[F], tool_choice="required", parallel_tool_calls=False)
    assert reply.json()["parallel_tool_calls"] is False
    assert ")*" not in called(model)


@pytest.mark.parametrize(
    ("form", "constraint"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint.of_schema(JSON_OBJECT, "text.format")),
        ({"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}, Constraint.of_schema(SCHEMA, "text.format.schema")),
        ({"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": False}, Constraint.of_schema(SCHEMA, "text.format.schema", strict=False)),
    ],
)  # fmt: skip
async def test_a_form_is_a_constraint(form, constraint):
    model = FakeModel(replies('{"a": 1}'))
    reply = await post(model, text={"format": form, "verbosity": "low"})
    assert reply.json()["text"] == {"format": form, "verbosity": "low"}
    assert model.requests[0].constraint == constraint


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"reasoning": None}, {}),
        ({"reasoning": {"summary": "auto"}}, {}),
        ({"reasoning": {"effort": "high"}}, {"reasoning_effort": "high"}),
        ({"reasoning": {"effort": "none"}}, {"enable_thinking": False, "thinking": False}),
        ({"text": {"verbosity": "low"}}, {"verbosity": "low"}),
        ({"reasoning": {"effort": "low"}, "chat_template_kwargs": {"reasoning_effort": "max"}}, {"reasoning_effort": "max"}),
    ],
)  # fmt: skip
async def test_the_template_is_told_how_to_think(fields, variables):
    assert (await rendered(**fields))[2] == variables


async def test_every_sampling_parameter_reaches_the_engine():
    model = FakeModel()
    await post(model, temperature=1, top_p=0.5, top_k=7, min_p=0.1, frequency_penalty=0.5, presence_penalty=-0.5, seed=11, stop="x",
               max_output_tokens=32_000, prompt_cache_key="key", top_logprobs=2)  # fmt: skip
    [request] = model.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (
        1.0,
        0.5,
        7,
        0.1,
        11,
    )
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (0.5, -0.5)
    assert (request.stop, request.max_tokens, request.affinity, request.logprobs) == (("x",), 32_000, "key", 2)
    assert request.record_transcript


async def test_cx1_the_body_of_codex_is_accepted():
    body = {
        "model": "demo",
        "instructions": "You are ...",
        "input": HISTORY,
        "tools": [F, NAMED, *BUILT_IN],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": None, "summary": "auto", "context": "x"},
        "store": False,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
        "include": ["reasoning.encrypted_content"],
        "service_tier": "auto",
        "prompt_cache_key": "0199",
        "text": {"verbosity": "medium"},
        "client_metadata": {"x-codex-installation-id": "1"},
        "truncation": "auto",
        "of_tomorrow": {"a": 1},
    }
    reply = await post(FakeModel(), **body)
    assert reply.status_code == 200, reply.text
    assert b"event: response.completed\n" in reply.content
    counted = await post(FakeModel(), path=f"{PATH}/input_tokens", **body)
    assert counted.json()["input_tokens"] > 0


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "'resp_1' is not kept here"),
        ({"conversation": "conv_1"}, "conversation", "not stored"),
        ({"prompt": {"id": "p"}}, "prompt", "stored prompts"),
        ({"input": None}, "input", "Missing"),
        ({"input": []}, "input", "Missing"),
        ({"input": {"a": 1}}, "input", "a string or a list of items"),
        ({"input": ["hi"]}, "input[0]", "object"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id", "'msg_1' is not kept here"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "'robot'"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content", "content parts"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "string"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "Missing"),
        ({"tools": [{"name": "f"}]}, "tools[0].type", "Missing"),
        ({"tools": [F, {"type": "function"}]}, "tools[1].name", "Missing"),
        ({"tools": [F, F]}, "tools[1].name", "two tools of the name 'f'"),
        ({"tools": [{**F, "strict": True, "parameters": {"properties": {"a": {"type": "string", "pattern": "(?=x)"}}}}]}, "tools[0].parameters", "refused"),
        ({"tool_choice": "some"}, "tool_choice", "auto, none, required"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "'web_search'"),
        ({"tool_choice": {"type": "function", "name": "h"}, "tools": [F]}, "tool_choice", "'h'"),
        ({"tool_choice": {"type": "function"}, "tools": [F]}, "tool_choice", "name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}, "tools": [F]}, "tool_choice", "at least one"),
        ({"tool_choice": "required", "tools": BUILT_IN}, "tool_choice", "none"),
        ({"tool_choice": "required", "tools": [F], "text": {"format": {"type": "json_object"}}}, "text.format", "exclude"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "Missing"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"title": "bad"}}}}, "text.format.schema", "refuses"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"temperature": 101}, "temperature", "between 0 and 100"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"model": "nobody"}, "model", "nobody"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_refused_by_name(fields, param, words):
    model = FakeModel()
    for stream in (False, True):
        reply = await post(model, stream=stream, **fields)
        assert reply.status_code in (400, 404), reply.text
        error = reply.json()["error"]
        assert (error["param"], set(error)) == (param, {"message", "type", "param", "code"})
        assert words in error["message"]
    assert model.requests == []


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "place", ['"metadata": {"a": %s}', '"tools": [{"type": "x", "a": %s}]', '"input": [{"role": "user", "a": %s}]']
)
async def test_numbers_that_json_lacks_are_no_fault_of_ours(number, place):
    body = '{"input": "hi", ' + place % number + "}"
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post(PATH, content=body.encode())
    assert (reply.status_code, reply.json()["error"]["message"]) == (400, "The body holds a number that is not finite.")


@pytest.mark.parametrize("value", [0, True, "x", [], {}, [[]], [{}], {"a": {}}, None, ["x"], [None], "9" * 5000])
async def test_no_value_of_a_wrong_type_is_our_fault(value):
    kinds = ["message", "function_call", "custom_tool_call", "function_call_output", "reasoning", "item_reference", "x"]
    bodies = [{"input": "hi", field: value} for field in ResponseBody.model_fields]
    bodies += [{"input": [{"type": kind, "role": "user", "call_id": "c", "name": "f", key: value}]} for kind in kinds
               for key in ("role", "content", "call_id", "name", "namespace", "arguments", "input", "output", "summary", "id", "type")]  # fmt: skip
    bodies += [{"input": "hi", "tools": [{**F, "type": kind, key: value}]} for kind in ("function", "custom", "namespace")
               for key in ("name", "type", "parameters", "description", "strict", "tools", "format")]  # fmt: skip
    bodies += [{"input": "hi", "tools": [F], "tool_choice": {"type": kind, "name": "f", key: value}} for kind in ("function", "allowed_tools")
               for key in ("type", "name", "mode", "tools", "namespace")]  # fmt: skip
    bodies += [{"input": "hi", "text": {"format": value}}, {"input": "hi", "reasoning": {"effort": value}}]
    async with http_client(app_of(served(FakeModel()))) as client:
        for body in bodies:
            reply = await client.post(PATH, json=body)
            assert reply.status_code in (200, 400, 404), (body, reply.text)


async def test_a_model_without_a_template_blames_the_input():
    reply = await post(FakeModel(), FakePrompts(template=False))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")


async def test_other_paths_below_answer_in_the_same_shape():
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.get(f"{PATH}/resp_1")
        garbage = await client.post(PATH, content=b"{")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "response_not_found")
    assert (garbage.status_code, garbage.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\nb \\"c\\" \\\\ \\u00e4 \\ud83c\\udf0d"}', 'a\nb "c" \\ ä 🌍'),
        ('{ "input" :\n"x"}', "x"),
        ('{"input": "raw\nline"}', "raw\nline"),
        ('{"input": "cut of', "cut of"),
        ('{"input": "cut \\u00', "cut \ufffd"),
        ('{"input": "half \\ud83c of it, and more"}', "half \ufffd of it, and more"),
        ('{"input": "half \\udf0d"}', "half \ufffd"),
        ('{"input": "no \\x escape at all"}', "no \ufffd escape at all"),
        ('{"input": ""}', ""),
        ('{"a": 1, "input": "x"}', "x"),
        ('{"input": 3}', '{"input": 3}'),
        ("[1]", "[1]"),
        ('{"inp', '{"inp'),
        ("", ""),
    ],
)
def test_the_text_of_a_custom_call_is_read_as_it_is_written(arguments, text, step):
    reader = CustomInput()
    pieces = [reader.push(arguments[start : start + step]) for start in range(0, len(arguments), step)]
    assert "".join(pieces) + reader.finish() == text
