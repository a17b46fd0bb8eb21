"""What strict clients of OpenAI's chat completions need: every chunk in the types of the official
client, and the shapes on which others stumble. The numbers are those of the list of what clients
need; what one test of ours holds alone stands beside its subject (test_openai_*.py).
"""

import json

import openai.types as types
import openai.types.chat as chat
import pytest

from erllama.errors import EngineStopped
from erllama.events import FinishReason
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, replies, served, sse_events
from tests.support.strict_types import check_strictly

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "read", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}},
}
CALLS = '<tool_call>\n{"name": "read", "arguments": {"path": "/a"}}\n</tool_call>\n' * 2
REPLY = f"<think>\nHm.\n</think>\n\nI look.\n{CALLS}"
USAGE = {"stream_options": {"include_usage": True}}
UNNAMED = (".choices*.delta.reasoning_content", ".choices*.message.reasoning_content", ".timings")
"""What other servers send and OpenAI's client has no name for."""


async def post(model, prompts=None, path=PATH, **fields):
    async with http_client(app_of(served(model, prompts))) as client:
        return await client.post(path, json={"model": "demo", "messages": HI, **fields})


async def chunks_of(text=REPLY, **fields):
    kwargs = {"reason": fields.pop("reason")} if "reason" in fields else {}
    reply = await post(FakeModel(replies(text, **kwargs)), stream=True, **fields)
    assert reply.status_code == 200, reply.text
    return sse_events(reply.content)


async def test_oa_1_the_role_comes_first_and_the_reason_and_the_usage_stand_alone():
    chunks = await chunks_of(**USAGE)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [number for number, delta in enumerate(deltas) if "role" in delta] == [0]
    assert [number for number, delta in enumerate(deltas) if not delta] == [len(deltas) - 1], "no stray empty delta"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"] > 0) == ([], True)
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1


async def test_oa_1_what_was_cut_off_says_so_although_it_calls():
    for reason, told in ((FinishReason.STOP, "tool_calls"), (FinishReason.LENGTH, "length")):
        chunks = await chunks_of(tools=[TOOL], reason=reason)
        assert chunks[-1]["choices"][0]["finish_reason"] == told


async def test_oa_2_every_chunk_is_whole_in_the_clients_types():
    for fields in ({}, {"tools": [TOOL], **USAGE}, {"logprobs": True, "top_logprobs": 2}, {"n": 2}):
        for chunk in await chunks_of(**fields):
            check_strictly(chat.ChatCompletionChunk, chunk, UNNAMED)
            assert {"id", "object", "created", "model", "choices"} <= set(chunk)
            assert all({"index", "delta", "finish_reason"} <= set(choice) for choice in chunk["choices"])
    whole = (await post(FakeModel(replies(REPLY)), tools=[TOOL], logprobs=True)).json()
    check_strictly(chat.ChatCompletion, whole, UNNAMED)


async def test_oa_3_pieces_of_calls_have_their_index_and_the_first_its_names():
    chunks = await chunks_of(tools=[TOOL])
    pieces = [piece for chunk in chunks for piece in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert {piece["index"] for piece in pieces} == {0, 1}
    for index in (0, 1):
        first, *rest = [piece for piece in pieces if piece["index"] == index]
        assert first["id"].startswith("call_")
        assert (first["type"], first["function"]["name"]) == ("function", "read")
        assert all(set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in rest)
        arguments = "".join(piece["function"]["arguments"] for piece in (first, *rest))
        assert json.loads(arguments) == {"path": "/a"}


@pytest.mark.parametrize("stream", [False, True])
async def test_oa_4_usage_is_complete(stream):
    if stream:
        usage = (await chunks_of(**USAGE))[-1]["usage"]
    else:
        usage = (await post(FakeModel(replies(REPLY)))).json()["usage"]
    check_strictly(types.CompletionUsage, usage)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len("<think>\nHm.\n</think>")


async def test_oa_5_completions_carry_an_id():
    model = FakeModel(replies("abcdefgh"))
    body = {"prompt": "x", "messages": None}
    whole = (await post(model, path="/v1/completions", **body)).json()
    chunks = sse_events((await post(model, path="/v1/completions", stream=True, **body)).content)
    for reply in (whole, *chunks):
        assert reply["id"].startswith("cmpl-")
    check_strictly(types.Completion, whole, UNNAMED)
    assert len({chunk["id"] for chunk in chunks}) == 1


ACCEPTED = {
    "prompt_cache_key": "k", "parallel_tool_calls": True, "reasoning_effort": "low", "verbosity": "low", "store": True,
    "user": "u", "metadata": {"a": "b"}, "stream_options": {"include_usage": True, "include_obfuscation": False},
    "prediction": {"type": "content", "content": "x"}, "modalities": ["text"], "service_tier": "auto",
    "safety_identifier": "s", "prompt_cache_retention": "24h", "audio": None, "web_search_options": None,
}  # fmt: skip


@pytest.mark.parametrize("name", ACCEPTED)
async def test_oa_6_fields_of_clients_are_accepted(name):
    stream = name == "stream_options"
    reply = await post(FakeModel(), tools=[TOOL], stream=stream, **{name: ACCEPTED[name]})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content"),
    ],
)
async def test_oa_6_what_a_text_model_cannot_do_is_refused_by_name(fields, param):
    reply = await post(FakeModel(), **fields)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_oa_6_histories_of_clients_are_read():
    cached = {"cache_control": {"type": "ephemeral"}}
    call = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    history = [
        {"role": "developer", "content": "Rules."},
        {"role": "user", "content": [{"type": "text", "text": "hi", **cached}]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "found"}]},
        {"role": "system", "content": "Late."},
        {"role": "assistant", "content": "So.", "reasoning": "Hm."},
        {"role": "user", "content": "more"},
    ]
    prompts = FakePrompts()
    assert (await post(FakeModel(), prompts, messages=history, tools=[TOOL])).status_code == 200
    told = prompts.rendered[0][0]
    assert [message["role"] for message in told] == [
        "system",
        "user",
        "assistant",
        "tool",
        "system",
        "assistant",
        "user",
    ]
    assert [message["content"] for message in told] == ["Rules.", "hi", "", "found", "Late.", "So.", "more"]
    assert (told[2]["reasoning_content"], told[5]["reasoning"]) == ("Hm.", "Hm."), "adapted to the template later"


async def test_oa_7_reasoning_has_a_field_of_its_own():
    chunks = await chunks_of()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas).startswith("I look.")
    message = (await post(FakeModel(replies(REPLY)), tools=[TOOL])).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "I look.")


async def test_oa_8_an_error_in_a_stream_is_an_event_with_a_message():
    reply = await post(FakeModel(replies("abc", error=EngineStopped("It stopped."))), stream=True)
    frames = [frame.removeprefix("data: ") for frame in reply.text.removesuffix("\n\n").split("\n\n")]
    failed = next(json.loads(frame) for frame in frames if '"error"' in frame)
    assert failed["error"]["message"] == "It stopped."
    check_strictly(types.ErrorObject, failed["error"])


async def test_oa_9_a_stream_ends_with_done():
    reply = await post(FakeModel(), stream=True)
    assert reply.text.endswith("data: [DONE]\n\n")
    assert reply.text.count("[DONE]") == 1


async def test_oa_10_models_are_listed_with_their_context():
    app = app_of(served(FakeModel(), FakePrompts(n_ctx=2048)), served(FakeModel(), FakePrompts(n_ctx=None), id="b"))
    async with http_client(app) as client:
        listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    extras = (".meta", ".max_model_len", ".context_length", ".status")
    for model in listed["data"]:
        check_strictly(types.Model, model, extras)
    first, second = listed["data"]
    assert (first["meta"]["n_ctx"], first["max_model_len"], first["context_length"]) == (2048, 2048, 2048)
    assert set(second) == {"id", "object", "created", "owned_by", "status"}
    assert second["status"] == {"value": "loaded"}
