"""Codex as it speaks: whole turns in the shape of its bodies, checked against the types of the
official client. The numbers are those of the list of what clients need; what one test of ours holds
alone stands beside its subject (test_responses_*.py) under the same numbers.
"""

import json

import openai.types.responses as types
import pyarrow as pa
import pytest

from deployments.dialects.responses.custom_format import InputAsCall
from deployments.dialects.responses.messages import chat_messages
from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart
from erllama.errors import ContextOverflow, EngineStopped, QueueFull
from erllama.events import FinishReason
from erllama.grammar.constraint import Constraint, ConstraintKind
from tests.support.http_fakes import (
    FakeModel,
    FakePrompts,
    app_of,
    http_client,
    named_events,
    openai_client,
    replies,
    served,
)
from tests.support.strict_types import check_strictly
from tests.support.tool_replies import admits

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
HEADERS = {
    "accept": "text/event-stream",
    "authorization": "Bearer none",
    "session-id": "0199-a",
    "thread-id": "0199-a",
    "x-client-request-id": "0199-a",
    "originator": "codex_exec",
    "x-codex-turn-metadata": "{}",
}
SHELL = {
    "type": "function",
    "name": "exec_command",
    "description": "Runs a command.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {"cmd": {"type": "string"}},
        "required": ["cmd"],
        "additionalProperties": False,
    },
}
AGENTS = {"type": "namespace", "name": "agents", "description": "d", "tools": [{**SHELL, "name": "spawn"}]}
GRAMMAR = 'start: "*** Begin\\n" LINE+ "*** End"\nLINE: /\\+[^\\n]*\\n/\n'
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Patches files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR},
}


def said(role, text, **fields):
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **fields}


TURN = {
    "model": "demo",
    "instructions": "You are Codex.",
    "input": [said("developer", "<permissions>"), said("user", "<environment_context>"), said("user", "Do it.")],
    "tools": [SHELL, AGENTS, PATCH, {"type": "web_search", "external_web_access": False}, {"type": "local_shell"}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199-a",
    "client_metadata": {"x-codex-installation-id": "1"},
}  # fmt: skip
CALLS = (
    "<think>\nHm.\n</think>\n\nI look.\n"
    '<tool_call>\n{"name": "exec_command", "arguments": { "cmd":"ls"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "agents__spawn", "arguments": {"cmd": "x"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "apply_patch", "arguments": {"input": "*** Begin"}}\n</tool_call>'
)


def events_of(reply):
    assert reply.status_code == 200, reply.text
    return [data for _, data in named_events(reply.content)]


async def turn(model, prompts=None, path=PATH, headers=None, **fields):
    async with http_client(app_of(served(model, prompts)), **HEADERS) as client:
        return await client.post(path, json=TURN | fields, headers=headers)


UNNAMED = (".store", ".response.store", ".name", ".item.status", ".response.output*.status")
"""What OpenAI sends and its own client has no name for: whether a response is stored, the name of the
function behind its arguments, the status of a custom call.
"""


def check_events(events):
    """Every event in the client's types."""
    for event in events:
        check_strictly(types.ResponseStreamEvent, event, UNNAMED)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


async def test_cx_1_and_4_a_turn_is_answered_in_the_clients_types():
    events = events_of(await turn(FakeModel(replies(CALLS))))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == [
        "reasoning", "message", "function_call", "function_call", "custom_tool_call",
    ]  # fmt: skip
    assert done[2]["arguments"] == '{ "cmd":"ls"}'
    assert (done[3]["name"], done[3]["namespace"], done[4]["input"]) == ("spawn", "agents", "*** Begin")
    assert done == events[-1]["response"]["output"], "the items are complete where Codex reads them"
    check_events(events)


async def test_cx_2_a_history_of_every_kind_is_read():
    """Also what other models and clients left in it: nothing of that may end a session."""
    prompts = FakePrompts(n_ctx=None)
    history = [
        said("user", "Do it."),
        {"type": "reasoning", "summary": [], "encrypted_content": None},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        said("assistant", "I look.", phase="commentary", end_turn=False),
        {"type": "local_shell_call", "call_id": "l1", "status": "completed", "action": {"type": "exec", "command": ["ls"]}},
        {"type": "local_shell_call_output", "call_id": "l1", "output": "a.py"},
        {"type": "shell_call", "call_id": "s1", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "s1", "output": [{"stdout": "a", "outcome": {"type": "exit"}}]},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "computer_call", "call_id": "k", "action": {"type": "click"}},
        {"type": "image_generation_call", "id": "ig_1", "result": "AAAA"},
        {"type": "ghost_snapshot", "ghost_commit": {}},
        {"type": "compaction", "encrypted_content": "of another server"},
        {"type": "of_tomorrow"},
        said("user", "Go on."),
    ]  # fmt: skip
    assert (await turn(FakeModel(), prompts, input=history)).status_code == 200
    messages = prompts.rendered[0][0][1:]
    shell = [
        (message["role"], message.get("tool_calls", [{}])[0].get("function"), message["content"])
        for message in messages
    ]
    assert shell == [
        ("user", None, "Do it."),
        ("assistant", {"name": "local_shell", "arguments": '{"type": "exec", "command": ["ls"]}'}, "I look."),
        ("tool", None, "a.py"),
        ("assistant", {"name": "shell", "arguments": '{"commands": ["ls"]}'}, ""),
        ("tool", None, '[{"stdout": "a", "outcome": {"type": "exit"}}]'),
        ("user", None, "Go on."),
    ]
    assert messages[1]["reasoning_content"] == "Hm."
    called = [messages[number]["tool_calls"][0]["id"] for number in (1, 3)]
    assert [messages[2]["tool_call_id"], messages[4]["tool_call_id"]] == called
    assert len(set(called)) == 2


@pytest.mark.parametrize("kind", ["local_shell_call", "shell_call", "apply_patch_call", "local_shell_call_output"])
@pytest.mark.parametrize("value", [None, 5, [], {}, "x"])
def test_cx_2_no_shell_item_of_a_wrong_form_is_refused(kind, value):
    item = {"type": kind, "id": value, "call_id": value, "action": value, "operation": value, "output": value}
    [message] = chat_messages([item], None)
    assert message["role"] == ("tool" if kind.endswith("output") else "assistant")


async def test_cx_3_tools_that_cannot_be_had_are_left_out():
    prompts = FakePrompts(n_ctx=None)
    await turn(FakeModel(), prompts)
    assert [tool["function"]["name"] for tool in prompts.rendered[0][1]] == [
        "exec_command",
        "agents__spawn",
        "apply_patch",
    ]


async def test_cx_3_a_forced_patch_follows_its_grammar_and_is_a_call():
    patch = '*** Begin\n+a "b"\\\n*** End'
    for stream in (True, False):
        model, prompts = FakeModel(replies(patch, per_item=3)), FakePrompts(n_ctx=None)
        reply = await turn(model, prompts, tool_choice={"type": "custom", "name": "apply_patch"}, stream=stream)
        response = events_of(reply)[-1]["response"] if stream else reply.json()
        [item] = response["output"]
        assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "apply_patch", patch)
        grammar = model.requests[0].constraint
        assert grammar == Constraint(ConstraintKind.LARK, GRAMMAR, "tools[2].format.definition")
        assert [admits(grammar, text) for text in (patch, "*** Begin\nx", CALLS)] == [True, False, False]
        assert prompts.rendered[0][2]["enable_thinking"] is False, "nothing may come before it"
        assert len(prompts.rendered[0][1]) == 3


@pytest.mark.parametrize(("choice", "forced"), [("required", True), ("auto", False)])
async def test_cx_3_the_only_tool_is_the_one_that_is_required(choice, forced):
    model = FakeModel(replies("*** Begin\n+\n*** End"))
    events = events_of(await turn(model, tools=[PATCH], tool_choice=choice))
    assert (events[-1]["response"]["output"][-1]["type"] == "custom_tool_call") is forced
    assert (model.requests[0].constraint.text == GRAMMAR) is forced


async def test_cx_3_a_pattern_holds_wherever_the_tool_is_called():
    tool = {**PATCH, "name": "number", "format": {"type": "grammar", "syntax": "regex", "definition": "[0-9]+|none"}}
    model, prompts = FakeModel(), FakePrompts(n_ctx=None)
    await turn(model, prompts, tools=[tool])
    call = '<tool_call>\n{{"name": "number", "arguments": {{"input": "{}"}}}}\n</tool_call>'
    constraint = model.requests[0].constraint
    assert [admits(constraint, call.format(said)) for said in ("42", "none", "4x", "nonesuch", "")] == [
        True, True, False, False, False,
    ]  # fmt: skip
    assert prompts.rendered[0][1][0]["function"]["parameters"]["properties"] == {"input": {"type": "string"}}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "grammar", "syntax": "peg", "definition": "x"}, "tools[0].format.syntax"),
        ({"type": "grammar", "syntax": "lark"}, "tools[0].format.definition"),
        ({"type": "grammar", "syntax": "lark", "definition": "x" * 70_000}, "tools[0].format.definition"),
    ],
)
async def test_cx_3_a_form_that_is_none_is_refused_by_name(form, param):
    reply = await turn(FakeModel(), tools=[{**PATCH, "format": form}])
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("pieces", [["ab", '"\n', "🌍"], [""], [], ["\\"]])
def test_an_input_becomes_the_arguments_of_a_call(pieces):
    splitter = InputAsCall("f")
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.finish()
    assert parts[0] == CallStart("f")
    arguments = "".join(part.text for part in parts[1:] if isinstance(part, ArgumentsDelta))
    assert json.loads(arguments) == {"input": "".join(pieces)}


@pytest.mark.parametrize("error", [EngineStopped("gone"), None])
async def test_cx_6_a_stream_says_how_it_ended(error):
    events = events_of(await turn(FakeModel(replies("abc", error=error))))
    assert events[-1]["type"] == ("response.completed" if error is None else "response.failed")
    check_events(events)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ContextOverflow("too long", n_prompt=10, n_most=5), "context_length_exceeded", "too long"),
        (QueueFull("full", retry_after_s=3), "rate_limit_exceeded", "try again in 3s"),
    ],
)
async def test_cx_8_the_codes_that_codex_acts_on_come_inside_of_the_stream(error, code, words):
    events = events_of(await turn(FakeModel(replies("", error=error))))
    assert [event["type"] for event in events] == ["response.created", "response.in_progress", "response.failed"]
    failed = events[-1]["response"]["error"]
    assert failed["code"] == code
    assert words in failed["message"]


async def test_cx_9_ids_have_a_prefix_and_a_suffix():
    response = events_of(await turn(FakeModel(replies(CALLS))))[-1]["response"]
    ids = [response["id"], *(item["id"] for item in response["output"])]
    assert [id.split("_")[0] for id in ids] == ["resp", "rs", "msg", "fc", "fc", "ctc"]
    assert all(len(id.split("_")) == 2 and len(id.split("_")[1]) + 1 >= 33 for id in ids)
    assert len(set(ids)) == len(ids)


async def test_cx_10_usage_is_that_of_the_engine():
    model = FakeModel(replies(CALLS))
    usage = events_of(await turn(model))[-1]["response"]["usage"]
    n_prompt, n_reply = len(model.requests[0].prompt_tokens), len(CALLS.encode())
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (
        n_prompt,
        n_reply,
        n_prompt + n_reply,
    )
    assert usage["input_tokens_details"]["cached_tokens"] == 3
    assert usage["output_tokens_details"]["reasoning_tokens"] == len("<think>\nHm.\n</think>")


# without a default in Codex: where one is missing it reads none of the list
NEEDED = {
    "slug": str, "display_name": str, "supported_reasoning_levels": list, "shell_type": str, "visibility": str,
    "supported_in_api": bool, "priority": int, "base_instructions": str, "support_verbosity": bool,
    "truncation_policy": dict, "supports_parallel_tool_calls": bool, "experimental_supported_tools": list,
}  # fmt: skip


async def test_cx_11_models_are_listed_as_codex_reads_them_for_codex_alone():
    app = app_of(served(FakeModel(), FakePrompts(n_ctx=32768), id="one"), served(FakeModel(), id="two"))
    async with http_client(app, **HEADERS) as client:
        listed = (await client.get("/v1/models?client_version=0.171.0")).json()
        plain = (await client.get("/v1/models")).json()
    assert set(plain) == {"object", "data"}
    assert listed["data"] == plain["data"]
    assert [(model["slug"], model["context_window"]) for model in listed["models"]] == [("one", 32768), ("two", 4096)]
    for model in listed["models"]:
        assert {name: type(model[name]) for name in NEEDED} == NEEDED
        assert model["base_instructions"]
        assert set(model["truncation_policy"]) == {"mode", "limit"}


async def test_cx_12_bodies_may_be_zstd():
    body = pa.compress(json.dumps(TURN).encode(), "zstd", asbytes=True)
    async with http_client(app_of(served(FakeModel())), **HEADERS) as client:
        sent = {"content-encoding": "zstd", "content-type": "application/json"}
        reply = await client.post(PATH, content=body, headers=sent)
    assert events_of(reply)[-1]["type"] == "response.completed"


async def test_cx_12_a_conversation_is_compacted_and_goes_on_from_its_summary():
    model, prompts = FakeModel(replies("<think>\nHm.\n</think>\n\nThey did it.")), FakePrompts(n_ctx=None)
    history = [said("user", "Do it."), said("assistant", "Done."), {"role": "user", "content": "And that."}]
    async with openai_client(app_of(served(model, prompts))) as client:
        short = await client.responses.compact(model="demo", input=history, instructions="You are Codex.")
        await client.responses.create(
            model="demo", input=[*short.to_dict(warnings=False)["output"], said("user", "Go on.")]
        )
    assert (short.object, short.output[-1].type) == ("response.compaction", "compaction")
    assert short.usage.output_tokens_details.reasoning_tokens > 0
    assert model.requests[0].constraint is None
    asked, gone_on = prompts.rendered[0][0], prompts.rendered[-1][0]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user", "user"]
    assert [message["content"] for message in gone_on[:2]] == ["Do it.", "And that."]
    assert gone_on[2]["role"] == "user"
    assert gone_on[2]["content"].endswith(":\nThey did it.")
    assert gone_on[3]["content"] == "Go on."


@pytest.mark.parametrize("given", ["Do it.", [said("user", "Do it.")]])
async def test_cx_12_compaction_has_tools_in_its_prompt_and_calls_none(given):
    model, prompts = FakeModel(replies("Short.")), FakePrompts(n_ctx=None)
    reply = await turn(model, prompts, path=f"{PATH}/compact", input=given, text={"format": {"type": "json_object"}})
    assert reply.status_code == 200, reply.text
    first, last = reply.json()["output"]
    assert (first["content"], last["type"]) == ([{"type": "input_text", "text": "Do it."}], "compaction")
    assert len(prompts.rendered[0][1]) == 3, "the prompt goes on from that of the session"
    assert [admits(model.requests[0].constraint, text) for text in ("Short.", CALLS)] == [True, False]


async def test_cx_12_a_conversation_that_leaves_no_room_says_so():
    reply = await turn(FakeModel(), FakePrompts(n_ctx=8), path=f"{PATH}/compact")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_cx_13_each_turns_prompt_begins_with_the_one_before():
    prompts = FakePrompts(n_ctx=None)
    model = FakeModel(replies("Done."))
    output = events_of(await turn(model, prompts))[-1]["response"]["output"]
    for item in output:  # what Codex keeps of an item
        item.pop("id")
        item.pop("status")
    await turn(model, prompts, input=[*TURN["input"], *output, said("user", "More.")])
    first, second = [bytes(request.prompt_tokens) for request in model.requests]
    assert second.startswith(first + b"Done.")


async def test_what_changes_nothing_is_accepted_and_shown():
    fields = {
        "max_tool_calls": 3, "service_tier": "priority", "safety_identifier": "s", "prompt_cache_retention": "24h",
        "stream_options": {"include_obfuscation": True}, "truncation": "auto", "text": {"verbosity": "low"},
        "include": ["file_search_call.results", "web_search_call.action.sources", "of_tomorrow"], "user": "u",
    }  # fmt: skip
    response = (await turn(FakeModel(), stream=False, **fields)).json()
    shown = ("max_tool_calls", "safety_identifier", "prompt_cache_retention", "user")
    assert {name: response[name] for name in shown} == {name: fields[name] for name in shown}
    assert (response["truncation"], response["service_tier"]) == ("disabled", "default"), "what was done, not asked"
    check_strictly(types.Response, response, UNNAMED)


async def test_an_incomplete_response_is_one_in_the_clients_types():
    events = events_of(await turn(FakeModel(replies("abc", reason=FinishReason.LENGTH))))
    assert (events[-1]["type"], events[-1]["response"]["incomplete_details"]) == (
        "response.incomplete", {"reason": "max_output_tokens"},
    )  # fmt: skip
    check_events(events)
