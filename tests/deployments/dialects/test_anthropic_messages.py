"""What Anthropic's bodies say to templates and to the engine (CC-7 to CC-19)."""

import json
import logging

import pytest

from deployments.dialects.anthropic.params import chat_ask
from deployments.dialects.anthropic.wire import MessageBody
from deployments.http.body import parse_json
from erllama.chat.tool_formats.json_format import HERMES
from erllama.grammar.reasoning_budget import ReasoningBudget
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served
from tests.support.tool_replies import admits

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def ask_of(messages=HI, **fields):
    return chat_ask(parse_json(MessageBody, json.dumps({"messages": messages, **fields}).encode()))


def text(said, **fields):
    return {"type": "text", "text": said, **fields}


async def request_of(fields, headers=None, prompts=None):
    model = FakeModel()
    async with http_client(app_of(served(model, prompts))) as client:
        reply = await client.post(PATH, json={"messages": HI, **fields}, headers=headers)
    assert reply.status_code == 200, reply.text
    return model.requests[0]


def test_cc_10_the_system_prompt_may_be_blocks():
    blocks = [text("billing"), text("rules", cache_control={"type": "ephemeral", "ttl": "1h", "scope": "global"})]
    told = {"role": "system", "content": "billing\nrules"}
    assert ask_of(system=blocks).messages == ask_of(system="billing\nrules").messages == [told, *HI]
    assert ask_of(system=None).messages == ask_of(system=[]).messages == HI


def test_cc_11_and_13_system_messages_stay_where_they_are():
    left = "<total_tokens>15000000 tokens left</total_tokens>"
    messages = [
        *HI,
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more"},
        {"role": "system", "content": [text(left)]},
    ]
    assert ask_of(messages).messages == [*messages[:3], {"role": "system", "content": left}]
    assert ask_of(messages).ending == "opened"


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_cc_12_a_text_and_a_list_of_one_block_are_one_message(role):
    block = text("said", cache_control={"type": "ephemeral"})
    one = ask_of([*HI, {"role": role, "content": [block]}, *HI])
    assert one.messages == ask_of([*HI, {"role": role, "content": "said"}, *HI]).messages
    assert one.messages[1] == {"role": role, "content": "said"}


def test_a_reply_comes_back_as_one_message():
    reply = {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "any"},
            {"type": "redacted_thinking", "data": "xyz"},
            text("Let me "),
            text("see.", citations=None),
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1, "a": [2]}, "caller": {"type": "direct"}},
            {"type": "tool_use", "id": "t2", "name": "g", "input": None},
        ],
    }
    calls = [("t1", "f", {"b": 1, "a": [2]}), ("t2", "g", {})]
    assert ask_of([*HI, reply, *HI]).messages[1] == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id, name, arguments in calls
        ],
    }


def test_results_keep_their_place_among_the_texts():
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [text("a"), text("b")], "cache_control": None},
        {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "no"},
        {"type": "tool_result", "tool_use_id": "t3"},
        text("one"),
        text("two"),
        {"type": "tool_result", "tool_use_id": "t4", "content": [{"type": "tool_reference", "tool_name": "f"}]},
    ]
    messages = [{"role": "assistant", "content": [call]}, {"role": "user", "content": results}]
    assert ask_of(messages).messages[1:] == [
        {"role": "tool", "content": "a\nb", "tool_call_id": "t1", "name": "f"},
        {"role": "tool", "content": "Error: no", "tool_call_id": "t2"},
        {"role": "tool", "content": "", "tool_call_id": "t3"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "tool", "content": "f", "tool_call_id": "t4"},
    ]


def test_a_last_message_of_the_assistant_is_continued_unless_it_calls():
    call = {"type": "tool_use", "id": "t1", "name": "f", "input": {}}
    assert ask_of([*HI, {"role": "assistant", "content": "The answer is ("}]).ending == "continued"
    assert ask_of([*HI, {"role": "assistant", "content": [text("so"), call]}]).ending == "opened"
    assert ask_of().ending == "opened"


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"output_config": {"effort": "high", "task_budget": {"x": 1}}}, {"reasoning_effort": "high"}),
    ],
)
def test_cc_14_and_15_thinking_and_effort_reach_the_template(fields, variables):
    assert ask_of(**fields).variables == variables


async def test_cc_14_a_budget_bounds_the_thinking_of_a_model_that_thinks():
    enabled = {"thinking": {"type": "enabled", "budget_tokens": 5}}
    bound = (await request_of(enabled)).reasoning
    assert bound == ReasoningBudget(5, tuple(b"</think>"), tuple(b"<think>"))

    class Plain(FakePrompts):
        def __init__(self):
            super().__init__()
            self.tool_format = NoReasoning()

    class NoReasoning:
        reasoning = None

        def __getattr__(self, name):
            return getattr(HERMES, name)

    assert (await request_of(enabled, prompts=Plain())).reasoning is None


async def test_cc_16_and_19_what_clients_send_beside_it_is_accepted():
    request = await request_of(
        {
            "max_tokens": 64000,
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "metadata": {"user_id": "u", "x": 1},
            "service_tier": "auto",
            "speed": "fast",
            "betas": ["b"],
            "cache_control": {"type": "ephemeral"},
            "mcp_servers": [],
            "container": None,
            "brand_new": {"a": 1},
            "temperature": 1,
            "top_k": 7,
            "top_p": 0.5,
            "stop_sequences": ["x", "y"],
        },
        headers={"anthropic-beta": "a,b,c", "anthropic-version": "2023-06-01"},
    )
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1, 7, 0.5)
    assert (request.stop, request.max_tokens) == (("x", "y"), 64000)


@pytest.mark.parametrize(
    ("user", "header", "affinity"),
    [
        (None, None, None),
        ("someone", None, "someone"),
        ('{"device_id":"d","account_uuid":"a","session_id":"s1"}', None, "s1"),
        ("user_00ff_account_1-2_session_3-4", None, "3-4"),
        ("someone", "s2", "s2"),
        ("x" * 1000, None, "x" * 256),
    ],
)
async def test_requests_of_a_session_like_one_replica(user, header, affinity):
    headers = {} if header is None else {"x-claude-code-session-id": header}
    assert (await request_of({"metadata": {"user_id": user}}, headers)).affinity == affinity


def test_cc_17_tools_are_shown_as_in_every_dialect():
    tools = [
        {
            "input_schema": {"type": "object", "$schema": "x", "properties": {"a": {"type": "string"}}},
            "defer_loading": True,
            "eager_input_streaming": True,
            "cache_control": {"type": "ephemeral"},
            "description": "d",
            "name": "f",
            "strict": False,
        },
        {"type": "custom", "name": "g", "input_schema": {"type": "object"}},
    ]
    assert [tool.shown for tool in ask_of(tools=tools).tools] == [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": tools[0]["input_schema"]}},
        {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}},
    ]


def test_cc_17_tools_of_anthropics_servers_are_skipped_with_a_log_line(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    assert [tool.name for tool in ask_of(tools=[search, TOOL]).tools] == ["f"]
    assert "event=tool_skipped type='web_search_20250305'" in caplog.text


@pytest.mark.parametrize(
    ("choice", "asked"),
    [
        (None, ("auto", None, False)),
        ({"type": "auto"}, ("auto", None, False)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", None, True)),
        ({"type": "any"}, ("required", None, False)),
        ({"type": "any", "disable_parallel_tool_use": True}, ("required", None, True)),
        ({"type": "tool", "name": "f"}, ("required", ("f",), True)),
        ({"type": "none"}, ("none", None, False)),
    ],
)
def test_cc_17_the_choice_among_tools(choice, asked):
    got = ask_of(tools=[TOOL, TOOL | {"name": "g"}], tool_choice=choice).choice
    assert (got.mode, got.names, got.single) == asked


async def test_a_forced_call_is_enforced():
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    forced = (await request_of({"tools": [TOOL], "tool_choice": {"type": "any"}})).constraint
    assert [admits(forced, text) for text in (call, "Hello")] == [True, False]
    none = (await request_of({"tools": [TOOL], "tool_choice": {"type": "none"}})).constraint
    assert [admits(none, text) for text in (call, "Hello")] == [False, True]


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_cc_15_a_format_is_the_constraint_of_the_reply(field):
    form = {"type": "json_schema", "schema": {"type": "object"}}
    reply = ask_of(**{field: {"format": form} if field == "output_config" else form}).reply
    assert reply is not None
    assert (json.loads(reply.text), reply.param) == ({"type": "object"}, "output_config.format")


@pytest.mark.parametrize("stream", [False, True])
async def test_computed_tokens_up_to_a_breakpoint_count_as_written_to_the_cache(stream):
    marked = text("word " * 40, cache_control={"type": "ephemeral"})
    body = {"system": [marked], "messages": [{"role": "user", "content": "x" * 500}], "max_tokens": 9, "stream": stream}
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post(PATH, json=body)
        plain = await client.post(PATH, json={**body, "system": [text("word " * 40)], "stream": False})
    frames = [line.removeprefix("data: ") for line in reply.text.split("\n") if line.startswith("data: ")]
    usage = next(json.loads(f) for f in frames if "message_delta" in f)["usage"] if stream else reply.json()["usage"]
    n_marked = len(f"system: {'word ' * 40}\nuser: ")  # the head, and what every next message begins with
    n_prompt = len(f"system: {'word ' * 40}\nuser: {'x' * 500}\nassistant: ")
    assert usage["cache_read_input_tokens"] == 3  # the fake's
    assert usage["cache_creation_input_tokens"] == n_marked - 3
    assert usage["input_tokens"] == n_prompt - n_marked
    assert plain.json()["usage"]["cache_creation_input_tokens"] == 0
