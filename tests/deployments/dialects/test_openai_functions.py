"""The older names of tools, the other forms of a choice, and prompts that end elsewhere."""

import json

import pytest

from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, openai_client, replies, served

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
F, G = ({"name": name, "parameters": {"type": "object", "properties": {name: {"type": "string"}}}} for name in "fg")
CALL = '<tool_call>\n{"name": "f", "arguments": {"f": "x"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": function} for function in (F, G)]


def allowed(mode, *names):
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


async def post(model, prompts=None, **fields):
    async with http_client(app_of(served(model, prompts))) as client:
        return await client.post(CHAT, json={"messages": HI, **fields})


async def test_a_reply_to_functions_calls_one_in_their_words():
    prompts, model = FakePrompts(), FakeModel(replies(f"So.\n{CALL}\n{CALL}", per_item=3))
    async with openai_client(app_of(served(model, prompts))) as client:
        [choice] = (await client.chat.completions.create(model="demo", messages=HI, functions=[F, G])).choices
        chunks = [
            chunk.choices[0]
            async for chunk in await client.chat.completions.create(
                model="demo", messages=HI, functions=[F, G], stream=True
            )
        ]
    assert choice.finish_reason == "function_call"
    assert choice.message.content == "So."
    assert choice.message.tool_calls is None
    called = choice.message.function_call
    assert (called.name, json.loads(called.arguments)) == ("f", {"f": "x"})
    pieces = [chunk.delta.function_call for chunk in chunks if chunk.delta.function_call]
    assert [piece.name for piece in pieces] == ["f"] + [None] * (len(pieces) - 1)
    assert "".join(piece.arguments for piece in pieces) == called.arguments
    assert all(chunk.delta.tool_calls is None for chunk in chunks)
    assert chunks[-1].finish_reason == "function_call"
    assert [tool["function"]["name"] for tool in prompts.rendered[0][1]] == ["f", "g"]


@pytest.mark.parametrize("choice", [{"function_call": {"name": "f"}}, {"function_call": "f"}])
async def test_a_forced_function_is_a_grammar(choice):
    model = FakeModel(replies(CALL))
    assert (await post(model, functions=[F, G], **choice)).json()["choices"][0]["finish_reason"] == "function_call"
    text = model.requests[0].constraint.text
    assert "start: calls\n" in text
    assert ")*" not in text


async def test_functions_in_history_are_tools_to_the_template():
    prompts = FakePrompts()
    call = {"name": "f", "arguments": '{"f": "cut'}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "f", "content": "42"},
    ]
    assert (await post(FakeModel(), prompts, messages=messages)).status_code == 200
    [_, asked, told] = prompts.rendered[0][0]
    [made] = asked["tool_calls"]
    assert made["function"] == call
    assert "function_call" not in asked
    assert told == {"role": "tool", "name": "f", "content": "42", "tool_call_id": made["id"]}


@pytest.mark.parametrize("choice", ["f", {"type": "function", "function": {"name": "f"}}, allowed("required", "f")])
async def test_a_choice_of_one_tool_comes_in_three_forms(choice):
    model, prompts = FakeModel(replies(CALL)), FakePrompts()
    assert (await post(model, prompts, tools=TOOLS, tool_choice=choice)).status_code == 200
    parts = [part.text for _, part in model.requests[0].constraint.parts]
    assert "start: calls\n" in model.requests[0].constraint.text
    assert not any('"g"' in part for part in parts)
    assert len(prompts.rendered[0][1]) == 2


async def test_allowed_tools_limit_what_a_model_may_call_of_its_own_accord():
    prompts = FakePrompts()
    prompts.constrains_calls = False
    model = FakeModel()
    assert (await post(model, prompts, tools=TOOLS, tool_choice=allowed("auto", "g"))).status_code == 200
    text = model.requests[0].constraint.text
    assert "start: calls\n" not in text
    assert not any('"f"' in part.text for _, part in model.requests[0].constraint.parts)
    assert len(prompts.rendered[0][1]) == 2


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": TOOLS, "functions": [F]}, "functions", "older name"),
        ({"functions": [F], "function_call": "h"}, "function_call", "'h'"),
        ({"functions": [F], "function_call": {"name": "h"}}, "function_call", "'h'"),
        ({"function_call": {"name": "h"}}, "function_call", "functions"),
        ({"functions": [F], "function_call": {}}, "function_call", "name"),
        ({"tools": TOOLS, "tool_choice": "h"}, "tool_choice", "'h'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice", "function"),
        ({"tools": TOOLS, "tool_choice": allowed("auto", "h")}, "tool_choice", "'h'"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice", "tools"),
        ({"tools": TOOLS, "tool_choice": allowed("some", "f")}, "tool_choice", "mode"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type", "'custom'"),
    ],
)
async def test_what_is_no_choice_is_refused_by_name(fields, param, words):
    model = FakeModel()
    reply = await post(model, **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert words in reply.json()["error"]["message"]
    assert model.requests == []


async def test_many_tools_with_names_of_all_kinds_are_offered():
    names = [f"a.b:c-{n}" for n in range(200)]
    tools = [{"type": "function", "function": {"name": name, "strict": True}} for name in names]
    prompts = FakePrompts()
    assert (await post(FakeModel(), prompts, tools=tools, parallel_tool_calls=False)).status_code == 200
    assert [tool["function"]["name"] for tool in prompts.rendered[0][1]] == names


BEGUN = [*HI, {"role": "assistant", "content": "Well, "}]


@pytest.mark.parametrize(
    ("fields", "prompt"),
    [
        ({}, b"user: hi\nassistant: Well, \nassistant: "),
        ({"add_generation_prompt": True}, b"user: hi\nassistant: Well, \nassistant: "),
        ({"add_generation_prompt": False}, b"user: hi\nassistant: Well, \n"),
        ({"continue_final_message": True}, b"user: hi\nassistant: Well, "),
        ({"continue_final_message": True, "add_generation_prompt": False}, b"user: hi\nassistant: Well, "),
    ],
)
async def test_a_prompt_ends_where_the_client_says(fields, prompt):
    model = FakeModel()
    assert (await post(model, messages=BEGUN, **fields)).status_code == 200
    assert bytes(model.requests[0].prompt_tokens) == prompt


async def test_two_ends_are_refused():
    reply = await post(FakeModel(), messages=BEGUN, continue_final_message=True, add_generation_prompt=True)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "continue_final_message")
