"""Claude Code as it speaks: whole turns in the shape of its bodies, checked against the types of the
official client. The numbers are those of the list of what clients need; what one test of ours holds
alone stands beside its subject (test_anthropic_*.py) under the same numbers.
"""

import gzip
import json
from dataclasses import replace

import anthropic.types.beta as beta
import pyarrow as pa
import pytest

from deployments.dialects.anthropic.messages import template_messages
from deployments.dialects.anthropic.wire import MessageBody
from deployments.http.body import parse_json
from deployments.http.options import HttpOptions
from erllama.events import Done, FinishReason, Tokens
from tests.support.http_fakes import (
    FakeModel,
    FakePrompts,
    anthropic_client,
    app_of,
    http_client,
    named_events,
    replies,
    served,
    stats,
)
from tests.support.strict_types import check_strictly

pytestmark = pytest.mark.anyio

PATH = "/v1/messages?beta=true"
HEADERS = {
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,effort-2025-11-24,of-tomorrow-2027-01-01",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "user-agent": "claude-cli/2.1.257 (external, sdk-cli)",
    "x-stainless-lang": "js",
    "x-claude-code-session-id": "5c1d4c3e-0000-4000-8000-000000000000",
    "authorization": "Bearer none",
}
CACHED = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
READ = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "file_path": {"type": "string"},
            "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
        },
        "required": ["file_path"],
        "additionalProperties": False,
    },
    "eager_input_streaming": True,
}
SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
LEFT = {"role": "system", "content": "<total_tokens>15000000 tokens left</total_tokens>"}
CALL = '<tool_call>\n{"name": "Read", "arguments": {"file_path": "/a"}}\n</tool_call>'
TURN = {
    "model": "claude-opus-4-7",
    "max_tokens": 32000,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.257.1f2; cc_entrypoint=sdk-cli;"},
        {"type": "text", "text": "You are an agent.", **CACHED},
        {"type": "text", "text": "Rules.", "cache_control": {"type": "ephemeral", "scope": "global"}},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "<system-reminder>Today.</system-reminder>"},
                                     {"type": "text", "text": "Look into /a.", **CACHED}]},
        LEFT,
    ],
    "tools": [READ, {**READ, "name": "Other", "defer_loading": True, **CACHED}, SEARCH],
    "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": "s"})},
    "thinking": {"type": "adaptive", "display": "omitted"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
}  # fmt: skip


def app_saying(text, prompts=None, **kwargs):
    return app_of(served(FakeModel(replies(text, **kwargs)), prompts, aliases=("claude-*",)))


async def turn(app, **fields):
    async with http_client(app, **HEADERS) as client:
        return await client.post(PATH, json=TURN | fields)


async def events_of(app, **fields):
    reply = await turn(app, **fields)
    assert reply.status_code == 200, reply.text
    return [data for _, data in named_events(reply.content)]


async def test_cc_1_a_turn_is_taken_as_it_is_sent_and_answered_in_the_clients_types():
    prompts = FakePrompts(n_ctx=None)
    model = FakeModel(replies(f"<think>\nHm.\n</think>\n\nI look.\n{CALL}"))
    app = app_of(served(model, prompts, aliases=("claude-*",)))
    events = await events_of(app)
    for event in events:
        check_strictly(beta.BetaRawMessageStreamEvent, event)
    kinds = [event["content_block"]["type"] for event in events if "content_block" in event]
    assert kinds == ["thinking", "text", "tool_use"]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    messages, tools, variables = prompts.rendered[0]
    assert [message["role"] for message in messages] == ["system", "user", "system"]
    assert [tool["function"]["name"] for tool in tools] == ["Read", "Other"]
    assert variables == {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}


async def test_cc_2_probes_and_side_calls_are_whole_replies():
    app = app_saying('{"title": "x"}')
    probe = {"model": "claude-haiku-4-5", "max_tokens": 1, "messages": [{"role": "user", "content": "quota"}]}
    form = {
        "format": {"type": "json_schema", "schema": {"type": "object", "properties": {"title": {"type": "string"}}}}
    }
    title = {"model": "claude-haiku-4-5", "max_tokens": 21333, "system": TURN["system"], "tools": [],
             "messages": [{"role": "user", "content": "hi"}], "output_config": form, "temperature": 1}  # fmt: skip
    async with http_client(app, **HEADERS) as client:
        quota, named = [await client.post(PATH, json=body) for body in (probe, title)]
    for reply in (quota, named):
        assert reply.status_code == 200, reply.text
        check_strictly(beta.BetaMessage, reply.json())
    assert (quota.json()["usage"]["output_tokens"], quota.json()["stop_reason"]) == (1, "max_tokens")
    assert json.loads(named.json()["content"][0]["text"]) == {"title": "x"}


async def test_cc_3_all_of_a_turn_can_be_counted():
    prompts = FakePrompts()
    async with http_client(app_of(served(FakeModel(), prompts, aliases=("claude-*",))), **HEADERS) as client:
        body = {key: TURN[key] for key in ("model", "messages", "system", "tools", "thinking", "context_management")}
        reply = await client.post("/v1/messages/count_tokens?beta=true", json=body | {"betas": ["x"]})
    assert reply.json() == {"input_tokens": len(prompts.render_chat(*prompts.rendered[0]).prompt.tokens)}


async def test_cc_5_names_that_claude_code_would_list_are_listed():
    app = app_of(
        served(FakeModel(), id="qwen3", aliases=("claude-qwen3", "claude-*", "anthropic-?")),
        served(FakeModel(), id="b"),
    )
    async with http_client(app, **HEADERS) as client:
        page = (await client.get("/v1/models?limit=1000")).json()
        card = (await client.get("/v1/models/claude-qwen3")).json()
        by_pattern = (await client.get("/v1/models/claude-opus-4-7")).json()
    assert [model["id"] for model in page["data"]] == ["qwen3", "claude-qwen3", "b"]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("qwen3", "b", False)
    assert (card["id"], card["display_name"]) == ("claude-qwen3", "claude-qwen3 (qwen3)")
    assert by_pattern["id"] == "qwen3"
    for listed in [*page["data"], card]:
        assert listed["type"] == "model"
        assert listed["created_at"].endswith("Z")


async def test_cc_5_pages_go_by_the_listed_names():
    app = app_of(served(FakeModel(), id="a", aliases=("claude-a",)), served(FakeModel(), id="b"))
    async with anthropic_client(app) as client:
        assert [model.id async for model in client.models.list(limit=1)] == ["a", "claude-a", "b"]
        assert [model.id for model in (await client.models.list(after_id="claude-a")).data] == ["b"]


async def test_cc_6_unknown_names_map_where_a_pattern_or_a_default_says_so_and_else_are_404():
    for name in ("claude-haiku-4-5-20251001", "claude-opus-4-7[1m]"):
        assert (await turn(app_saying("hi"), model=name)).status_code == 200
    reply = await turn(app_of(served(FakeModel())), model="claude-haiku-4-5")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")


async def test_cc_8_bodies_of_32_mb_are_read():
    assert HttpOptions().max_body_bytes >= 32_000_000
    long = {"role": "user", "content": "x" * 3_000_000}
    assert (await turn(app_saying("hi", FakePrompts(n_ctx=None)), messages=[long])).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "Zstd", "identity"])
async def test_bodies_may_come_compressed(encoding):
    raw = json.dumps(TURN).encode()
    packed = {"gzip": gzip.compress, "zstd": lambda data: pa.compress(data, "zstd", asbytes=True)}
    body = packed.get(encoding.lower(), lambda data: data)(raw)
    async with http_client(app_saying("hi"), **HEADERS) as client:
        reply = await client.post(PATH, content=body, headers={"content-encoding": encoding})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("zstd", pa.compress(b" " * 5000, "zstd", asbytes=True), 413),
        ("gzip", gzip.compress(b" " * 5000, mtime=0), 413),
        ("zstd", pa.compress(b"{}" * 500, "zstd", asbytes=True)[:-3], 400),
        ("zstd", b"{}", 400),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-9], 400),
        ("br", b"{}", 415),
        ("gzip, zstd", b"{}", 415),
        ("zstd", b" " * 2000, 413),
    ],
)
async def test_a_compressed_body_that_is_too_large_or_broken_is_refused(encoding, body, status):
    async with http_client(app_of(served(FakeModel()), max_body_bytes=1000)) as client:
        reply = await client.post(PATH, content=body, headers={"content-encoding": encoding})
    assert reply.status_code == status, reply.text
    assert reply.json()["type"] == "error"


def told(*content, role="user"):
    """The messages of a history as the template sees them."""
    hi = {"role": "user", "content": "hi"}
    body = {"messages": [hi, {"role": role, "content": list(content)}]}
    return template_messages(parse_json(MessageBody, json.dumps(body).encode()))[1:]


def text(said, **fields):
    return {"type": "text", "text": said, **fields}


def document(source, **fields):
    return {"type": "document", "source": source, **fields}


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (document({"type": "text", "media_type": "text/plain", "data": "body"}), "body"),
        (document({"type": "text", "data": "body"}, title="T", context="C", citations={"enabled": True}), "T\nC\nbody"),
        (document({"type": "content", "content": [text("a"), text("b")]}, title=None), "a\nb"),
        (document({"type": "content", "content": "a"}), "a"),
        ({"type": "search_result", "title": "T", "source": "http://x", "content": [text("a")]}, "T\nhttp://x\na"),
    ],
)
def test_cc_18_documents_are_texts_wherever_they_stand(block, said):
    assert told(block, text("go")) == [{"role": "user", "content": f"{said}\ngo"}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("found"), block]}
    assert told(result) == [{"role": "tool", "tool_call_id": "t", "content": f"found\n{said}"}]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "x"}},
        {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [{"type": "web_search_result"}]},
        {"type": "mcp_tool_use", "id": "m", "name": "n", "server_name": "s", "input": {}},
        {"type": "compaction", "content": "short"},
        {"type": "of_tomorrow", "x": 1},
    ],
)
def test_cc_18_what_other_servers_ran_is_skipped_everywhere(block, caplog):
    caplog.set_level("INFO", logger="deployments.http")
    assert told(text("a"), block, text("b"), role="assistant") == [{"role": "assistant", "content": "ab"}]
    assert told(text("a"), block, text("b")) == [{"role": "user", "content": "a\nb"}]
    assert told(block) == [{"role": "user", "content": ""}]
    result = {"type": "tool_result", "tool_use_id": "t", "content": [block, text("found")]}
    assert told(result)[0]["content"] == "found"
    assert f"event=block_skipped type='{block['type']}'" in caplog.text


async def test_cc_16_context_edits_are_answered_where_they_were_asked_for():
    for fields, answered in ({}, True), ({"context_management": None}, False):
        events = await events_of(app_saying("hi"), **fields)
        whole = (await turn(app_saying("hi"), stream=False, **fields)).json()
        check_strictly(beta.BetaMessage, whole)
        for said in (events[-2], whole):
            assert said.get("context_management") == ({"applied_edits": []} if answered else None)
            assert ("context_management" in said) is answered


async def test_cc_19_and_41_more_tokens_than_fit_are_no_fault():
    """So the words on which the client sends less are never needed."""
    model = FakeModel()
    reply = await turn(app_of(served(model, FakePrompts(n_ctx=4096), aliases=("claude-*",))), max_tokens=64000)
    assert reply.status_code == 200, reply.text
    assert model.requests[0].max_tokens == 64000, "the engine ends the reply where its context ends"


async def test_cc_30_every_frame_is_named_by_its_type():
    frames = named_events((await turn(app_saying(f"<think>\nHm.\n</think>\n\nSo.\n{CALL}"))).content)
    assert {name for name, _ in frames} == {
        "message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop",
    }  # fmt: skip
    assert all(name == data["type"] for name, data in frames)


@pytest.mark.parametrize(
    ("max_tokens", "n", "reason"),
    [(9, 9, "max_tokens"), (100, 9, "model_context_window_exceeded"), (None, 9, "model_context_window_exceeded")],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_cc_35_a_reply_tells_which_bound_cut_it_off(max_tokens, n, reason, stream):
    async def script(request):
        yield [Tokens(tuple(range(97, 97 + n)), "abcdefghi")]
        yield [Done(replace(stats(request, n), finish_reason=FinishReason.LENGTH), "key")]

    reply = await turn(app_of(served(FakeModel(script), aliases=("claude-*",))), max_tokens=max_tokens, stream=stream)
    told = named_events(reply.content)[-2][1]["delta"] if stream else reply.json()
    assert told["stop_reason"] == reason


async def test_cc_40_errors_and_replies_carry_the_request_id_in_its_header():
    async with http_client(app_saying("hi"), **HEADERS) as client:
        good = await client.post(PATH, json=TURN)
        bad = await client.post(PATH, json={})
        elsewhere = await client.post("/v1/chat/completions", json={})
    assert good.headers["request-id"] == good.headers["x-request-id"]
    assert bad.headers["request-id"] == bad.json()["request_id"]
    assert "request-id" not in elsewhere.headers


async def test_cc_50_each_turns_prompt_begins_with_the_one_before():
    """The breakpoint moves, so that a message comes back as a bare string; reminders stay."""
    prompts = FakePrompts(n_ctx=None)
    model = FakeModel(replies("Done."))
    app = app_of(served(model, prompts, aliases=("claude-*",)))
    first = TURN["messages"]
    second = [
        {"role": "user", "content": "<system-reminder>Today.</system-reminder>\nLook into /a."},
        LEFT,
        {"role": "assistant", "content": [text("Done.")]},
        {"role": "user", "content": [text("More.", **CACHED)]},
        LEFT,
    ]
    third = [*second[:3], {"role": "user", "content": "More."}, LEFT, {"role": "assistant", "content": "Done."},
             {"role": "user", "content": [text("And more.", **CACHED)]}, LEFT]  # fmt: skip
    for messages in (first, second, third):
        assert (await turn(app, messages=messages)).status_code == 200
    asked = [bytes(request.prompt_tokens) for request in model.requests]
    assert asked[1].startswith(asked[0])
    assert asked[2].startswith(asked[1])


async def test_batches_and_files_do_not_exist_in_the_shape_of_the_api():
    async with http_client(app_of(served(FakeModel())), **HEADERS) as client:
        for method, path in (("POST", "/v1/messages/batches"), ("GET", "/v1/messages/batches/b1")):
            reply = await client.request(method, path, json={"requests": []})
            assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")
