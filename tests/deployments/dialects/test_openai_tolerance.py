"""What clients and front ends send beside the point: it passes, or is refused by its name."""

import json

import pytest

from erllama.chat.tool_formats.choose import format_named
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served, sse_events

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


async def post(body, model=None, prompts=None, path=CHAT):
    async with http_client(app_of(served(model or FakeModel(), prompts))) as client:
        return await client.post(path, json=body)


async def test_values_that_mean_off_are_off():
    model = FakeModel()
    off = {
        "top_k": -1, "top_p": 1, "min_p": 0, "repeat_last_n": -1, "seed": -1, "presence_penalty": 0, "logprobs": 0,
        "top_logprobs": 0, "max_tokens": -1, "max_completion_tokens": -1, "stop": "", "logit_bias": [], "n": 1,
        "repeat_penalty": 1, "grammar": "", "typical_p": 1, "tfs_z": 1, "mirostat": 0, "mirostat_tau": 5, "xtc_probability": 0,
        "xtc_threshold": 0.1, "dry_multiplier": 0, "dry_base": 1.75, "dry_sequence_breakers": ["\n"], "dynatemp_range": 0,
        "dynatemp_exponent": 1, "top_n_sigma": 0, "min_tokens": 0, "reasoning_format": "auto", "unheard_of": None,
    }  # fmt: skip
    reply = await post({"messages": HI, **off}, model)
    assert reply.status_code == 200, reply.text
    [request] = model.requests
    assert (request.sampling.top_k, request.sampling.top_p, request.sampling.min_p) == (0, 1, 0)
    assert (request.sampling.seed, request.sampling.logit_bias) == (None, ())
    assert (request.max_tokens, request.stop, request.logprobs, request.grammar) == (None, (), None, None)


async def test_a_completion_without_logprobs_says_false():
    assert (await post({"prompt": "x", "logprobs": False}, path="/v1/completions")).json()["choices"][0][
        "logprobs"
    ] is None


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"stream_options": {"include_usage": True}}, "stream_options", "'stream'"),
        ({"stop": ["x"] * 65}, "stop", "64"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "'king'"),
        ({"mirostat": True}, "mirostat", "mirostat"),
        ({"reasoning_format": "none"}, "reasoning_format", "reasoning_format"),
        ({"chat_template": "x"}, "chat_template", "chat_template"),
        ({"messages": [*HI, {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "file"}]}]}, "messages[1].content", "part 1 has 'file'"),
        ({"messages": [{"role": "assistant", "reasoning": 5}]}, "messages[0].reasoning", "string"),
    ],
)  # fmt: skip
async def test_what_would_change_a_reply_is_refused_by_name(fields, param, words):
    reply = await post({"messages": HI, **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
    assert words in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ('{"messages":[{"role":"user","content":"a \\ud800 b"}]}', "messages[0].content"),
        ('{"messages":[{"role":"user","content":[{"type":"text","text":"\\uDFFF"}]}]}', "messages[0].content[0].text"),
        ('{"messages":[{"role":"user","content":"x"}],"stop":["a","\\udc00"]}', "stop[1]"),
        ('{"messages":[{"role":"user","content":"x"}],"user":"\\ud83d"}', "user"),
        ('{"messages":[{"role":"user","content":"x","\\ud83d":1}]}', "messages[0]"),
        ('{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}', "model"),
    ],
)
async def test_a_lone_surrogate_is_named(body, param):
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post(CHAT, content=body.encode())
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert "surrogate" in reply.json()["error"]["message"]


async def test_a_pair_of_surrogates_and_a_nul_are_text():
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        body = b'{"messages":[{"role":"user","content":"\\ud83d\\ude00\\u0000"}]}'
        assert (await client.post(CHAT, content=body)).status_code == 200
    assert "😀\0".encode() in bytes(model.requests[0].prompt_tokens)


async def test_history_is_accepted_as_it_was_left():
    prompts = FakePrompts()
    call = {"id": "c", "type": "function", "index": 0, "function": {"name": "f", "arguments": '{"a": ', "x": 1}}
    as_object = {"function": {"name": "f", "arguments": {"a": "é"}}}
    thoughts = {"reasoning_content": "a", "reasoning": "b", "thinking": "c"}
    messages = [
        {"role": "user", "content": None},
        {"role": "user", "content": []},
        {"role": "assistant"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "tool_calls": [], **thoughts},
        {"role": "assistant", "tool_calls": [call, as_object]},
        {"role": "tool", "content": [{"type": "text", "text": "42"}]},
    ]
    reply = await post({"messages": messages}, prompts=prompts)
    assert reply.status_code == 200, reply.text
    shown = prompts.rendered[0][0]
    assert shown[:3] == [{"role": r, "content": ""} for r in ("user", "user", "assistant")]
    assert shown[3] == {"role": "assistant", "content": "no", **thoughts}
    assert [one["function"]["arguments"] for one in shown[4]["tool_calls"]] == ['{"a": ', '{"a": "é"}']
    assert shown[5] == {"role": "tool", "content": "42"}


async def test_usage_is_null_in_all_chunks_but_the_last():
    body = {"stream": True, "stream_options": {"include_usage": True}, "n": 2}
    for path, given in ((CHAT, {"messages": HI}), ("/v1/completions", {"prompt": "x"})):
        async with http_client(app_of(served(FakeModel()))) as client:
            *chunks, last = sse_events((await client.post(path, json=given | body)).content)
            plain = sse_events((await client.post(path, json=given | {"stream": True})).content)
        assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 26)
        assert len({json.dumps([chunk["id"], chunk["created"]]) for chunk in [*chunks, last]}) == 1
        assert not any("usage" in chunk for chunk in plain)


@pytest.mark.parametrize(("path", "prompt"), [(CHAT, {"messages": HI}), ("/v1/completions", {"prompt": "x"})])
async def test_the_key_of_a_prompt_cache_is_an_affinity(path, prompt):
    model = FakeModel()
    assert (await post({**prompt, "prompt_cache_key": "agent-7", "n": 2}, model, path=path)).status_code == 200
    assert [request.affinity for request in model.requests] == ["agent-7", "agent-7"]
    refused = await post({**prompt, "prompt_cache_key": 7}, path=path)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_cache_key")


async def test_tools_whose_grammar_would_be_too_large_leave_a_free_reply_free():
    names = [f"{n}-{'x' * 60}" for n in range(512)]
    schema = {"type": "object", "properties": {"q": {"type": "string", "enum": ["x" * 64, "y" * 64]}}}
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name in names]
    model = FakeModel()
    prompts = FakePrompts(tool_format=format_named("mistral"))
    reply = await post({"messages": HI, "tools": tools}, model, prompts)
    assert reply.status_code == 200, reply.text
    assert model.requests[0].grammar is None
    forced = await post({"messages": HI, "tools": tools, "tool_choice": "required"}, prompts=prompts)
    assert (forced.status_code, forced.json()["error"]["param"]) == (400, "tools")


async def test_a_listed_model_tells_its_context():
    async with http_client(
        app_of(served(FakeModel(), FakePrompts(n_ctx=512)), served(FakeModel(), FakePrompts(None), id="b"))
    ) as client:
        known, unknown = (await client.get("/v1/models")).json()["data"]
    assert (known["meta"], known["max_model_len"], known["context_length"]) == ({"n_ctx": 512}, 512, 512)
    assert set(unknown) == {"id", "object", "created", "owned_by", "status"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_session_in_the_headers_is_an_affinity_unless_the_body_names_one(stream):
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        for headers, key in (({}, None), ({"Session-Id": "s" * 300}, None), ({"x-session-id": "s"}, "key")):
            body = {"messages": HI, "stream": stream, "prompt_cache_key": key}
            assert (await client.post(CHAT, json=body, headers=headers)).status_code == 200
    assert [request.affinity for request in model.requests] == [None, "s" * 256, "key"]
