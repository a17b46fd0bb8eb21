"""The stream as bytes: what Claude Code counts on (CC-30 to CC-37)."""

import asyncio
import json
from dataclasses import replace

import pytest

from erllama.errors import DecodeFailed, EngineStopped, QueueFull
from erllama.events import Done, FinishReason, Tokens
from tests.support.http_fakes import (
    FakeModel,
    FakePrompts,
    app_of,
    exchange,
    http_client,
    named_events,
    replies,
    served,
    stats,
)

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
HI = {"model": "demo", "max_tokens": 1000, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "now", "input_schema": {"type": "object"}}
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
THOUGHT = "<think>\nLet me see.\n</think>"
PROMPT = len("user: hi\nassistant: ")


def events_of(body):
    """The events of a whole stream; each must have a line with its type (CC-30)."""
    events = named_events(body)
    assert [name for name, _ in events] == [data["type"] for _, data in events]
    return [data for _, data in events]


async def streamed(text, prompts=None, body=HI, **kwargs):
    async with http_client(app_of(served(FakeModel(replies(text, **kwargs)), prompts))) as client:
        reply = await client.post(f"{PATH}?beta=true", json=body)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events_of(reply.content)


async def test_cc_31_the_order_of_events():
    start, opened, *deltas, closed, delta, stop = await streamed("Hello, world!", body=HI | {"model": ""})
    assert start["message"] | {"id": ""} == {
        "id": "",
        "type": "message",
        "role": "assistant",
        "model": "demo",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": PROMPT,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 4,
        },
    }
    assert opened == {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    assert {one["type"] for one in deltas} == {"content_block_delta"}
    assert "".join(one["delta"]["text"] for one in deltas) == "Hello, world!"
    assert closed == {"type": "content_block_stop", "index": 0}
    assert delta["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert delta["usage"] == {
        "input_tokens": PROMPT - 3,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": 13,
        "output_tokens_details": {"thinking_tokens": 0},
    }
    assert stop == {"type": "message_stop"}


async def test_cc_31_the_model_is_the_one_that_was_asked_for():
    app = app_of(served(FakeModel(), aliases=("claude-x",)))
    async with http_client(app) as client:
        whole = await client.post(PATH, json=HI | {"model": "claude-x", "stream": False})
        stream = await client.post(PATH, json=HI | {"model": "claude-x"})
    assert whole.json()["model"] == events_of(stream.content)[0]["message"]["model"] == "claude-x"


@pytest.mark.parametrize("per_item", [1, 5, 500])
async def test_cc_32_and_33_each_block_is_closed_before_the_next_and_deltas_fit_theirs(per_item):
    events = await streamed(
        f"{THOUGHT}\n\nLet me look.\n{CALL}\n{CALL}", body=HI | {"tools": [TOOL]}, per_item=per_item
    )
    fitting = {
        "text": {"text_delta"},
        "thinking": {"thinking_delta", "signature_delta"},
        "tool_use": {"input_json_delta"},
    }
    kinds, open_index, last = [], None, None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert open_index is None
            block = event["content_block"]
            kinds.append(block["type"])
            open_index = event["index"]
            assert open_index == len(kinds) - 1
            assert block.get(block["type"], "") == ""
            assert block.get("input", {}) == {}
        elif event["type"] == "content_block_delta":
            assert event["index"] == open_index
            last = event["delta"]["type"]
            assert last in fitting[kinds[-1]]
        else:
            assert (event["type"], event["index"]) == ("content_block_stop", open_index)
            assert kinds[-1] != "thinking" or last == "signature_delta"
            open_index = None
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    arguments = [
        "".join(event["delta"]["partial_json"] for event in events if event.get("index") == index and "delta" in event)
        for index in (2, 3)
    ]
    assert [json.loads(text or "{}") for text in arguments] == [{}, {}]
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_call_streams_as_it_is_made():
    text = '<tool_call>\n{"name": "now", "arguments": {"zone": "' + "Ulm " * 50 + '"}}\n</tool_call>'
    events = await streamed(text, body=HI | {"tools": [TOOL]})
    pieces = [event["delta"]["partial_json"] for event in events if "delta" in event and "index" in event]
    assert len(pieces) > 40
    assert json.loads("".join(pieces)) == {"zone": "Ulm " * 50}


async def test_a_reply_without_text_has_no_block():
    events = await streamed("")
    assert [event["type"] for event in events] == ["message_start", "message_delta", "message_stop"]


async def test_cc_35_a_stop_sequence_is_told():
    async def script(request):
        yield [Tokens((97,), "a")]
        yield [Done(replace(stats(request, 2), stop_sequence="END"), "key")]

    async with http_client(app_of(served(FakeModel(script)))) as client:
        whole = (await client.post(PATH, json=HI | {"stream": False})).json()
        events = events_of((await client.post(PATH, json=HI)).content)
    told = {"stop_reason": "stop_sequence", "stop_sequence": "END"}
    assert events[-2]["delta"] == told
    assert {key: whole[key] for key in told} == told


async def test_cc_35_a_call_that_was_cut_off_is_no_call_to_run():
    cut = CALL[:-20]
    n_tokens = len(cut.encode())
    body = HI | {"tools": [TOOL], "max_tokens": n_tokens}
    events = await streamed(cut, body=body, reason=FinishReason.LENGTH)
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(("cached", "told"), [(0, 0), (PROMPT, PROMPT - 1)])
async def test_cc_34_input_and_cached_tokens_are_the_prompts_and_never_0(cached, told):
    async def script(request):
        yield [Tokens((97,), "a"), Done(stats(request, 1, cached=cached), "key")]

    async with http_client(app_of(served(FakeModel(script)))) as client:
        usage = events_of((await client.post(PATH, json=HI)).content)[-2]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (PROMPT - told, told)


async def test_reasoning_that_the_prompt_has_opened_is_thinking():
    class Opening(FakePrompts):
        def render_chat(self, *args):
            return replace(super().render_chat(*args), in_reasoning=True)

    events = await streamed("Hm.</think>Yes", Opening())
    blocks = [event["content_block"]["type"] for event in events if "content_block" in event]
    assert blocks == ["thinking", "text"]
    assert events[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": len("Hm.</think>")}


async def test_cc_36_a_silent_stream_pings_before_its_first_token():
    go = asyncio.Event()

    async def script(request):
        await go.wait()
        async for item in replies("Hello")(request):
            yield item

    async with exchange(app_of(served(FakeModel(script)), keepalive_s=0.01), PATH, HI) as client:
        assert (await client.start())[0] == 200
        assert await client.chunk() == b'event: ping\ndata: {"type":"ping"}\n\n'
        go.set()
        events = [event for event in events_of(await client.rest()) if event["type"] != "ping"]
    assert [events[0]["type"], events[-1]["type"]] == ["message_start", "message_stop"]


@pytest.mark.parametrize(
    ("error", "kind"), [(EngineStopped("gone"), "overloaded_error"), (DecodeFailed("x"), "api_error")]
)
async def test_cc_37_an_error_in_a_running_stream(error, kind):
    *_, last = await streamed("abcd", error=error)
    assert {key: last[key] for key in ("type", "error")} == {
        "type": "error",
        "error": {"type": kind, "message": error.message},
    }


async def test_an_error_before_the_first_token_is_a_status():
    async with http_client(app_of(served(FakeModel(replies("", error=QueueFull("full")))))) as client:
        assert (await client.post(PATH, json=HI)).status_code == 429


async def test_a_client_that_leaves_cancels_its_request():
    async def script(request):
        yield [Tokens((97,), "a")]
        await asyncio.Event().wait()

    model = FakeModel(script)
    async with exchange(app_of(served(model)), PATH, HI) as client:
        await client.start()
        await client.chunk()
        client.disconnect()
        await asyncio.wait_for(client.task, 5)
    assert len(model.cancelled) == 1
