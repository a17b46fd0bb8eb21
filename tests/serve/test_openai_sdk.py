"""The official client, unmodified, against a real `serve run` with the trained demo model."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from openai import BadRequestError, InternalServerError, NotFoundError, OpenAI

from tests.support.serve_process import ServeProcess
from tests.support.streams import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]

HELLO = [{"role": "user", "content": "Hello!"}]


def chat_text(client: OpenAI, **params) -> str:
    reply = client.chat.completions.create(
        **{"model": "demo", "messages": HELLO, "temperature": 0, "max_tokens": 32, **params}
    )
    return reply.choices[0].message.content


def test_models_lists_every_model_and_retrieves_one(client):
    assert {m.id for m in client.models.list()} == {"demo", "tiny", "narrow", "encoder", "broken", "sleepy"}
    assert client.models.retrieve("demo").owned_by == "erllama"


def test_chat_answers_a_greeting_and_ends_by_itself(client):
    reply = client.chat.completions.create(model="demo", messages=HELLO, temperature=0)
    assert "help" in reply.choices[0].message.content.lower()
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.prompt_tokens > 0
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    # others may have begun with the same token
    assert 0 <= reply.usage.prompt_tokens_details.cached_tokens < reply.usage.prompt_tokens


def test_a_fact_told_early_is_recalled(client):
    messages = [
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": "Nice to meet you, Alice."},
        {"role": "user", "content": "What is my name?"},
    ]
    assert "Alice" in chat_text(client, messages=messages)


def test_streamed_chunks_join_to_the_unary_text_and_usage_comes_last(client):
    whole = chat_text(client)
    chunks = list(
        client.chat.completions.create(
            model="demo",
            messages=HELLO,
            temperature=0,
            max_tokens=32,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_completions_continue_a_prompt_streamed_and_not(client):
    params = {"model": "demo", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 24}
    whole = client.completions.create(**params).choices[0].text
    parts = [chunk.choices[0].text for chunk in client.completions.create(**params, stream=True) if chunk.choices]
    assert whole
    assert "".join(parts) == whole


def test_several_prompts_give_several_choices(client):
    reply = client.completions.create(model="demo", prompt=["Once upon", "One day"], temperature=0, max_tokens=4)
    assert [c.index for c in reply.choices] == [0, 1]


def test_n_choices_differ_by_seed_and_repeat(client):
    story = [{"role": "user", "content": "Tell me a short story."}]
    params = {"model": "demo", "messages": story, "temperature": 1.0, "max_tokens": 60, "n": 3, "seed": 5}
    first = [c.message.content for c in client.chat.completions.create(**params).choices]
    second = [c.message.content for c in client.chat.completions.create(**params).choices]
    assert first == second
    assert len(set(first)) > 1


def test_logprobs_cover_every_token_and_the_greedy_token_leads(client):
    reply = client.chat.completions.create(
        model="demo", messages=HELLO, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    for entry in content:
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].token == entry.token
        assert len(entry.top_logprobs) == 3


def test_json_schema_is_obeyed(client):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    text = chat_text(
        client,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema}},
    )
    value = json.loads(text)
    assert set(value) == {"name", "age"}
    assert isinstance(value["age"], int)


def test_a_grammar_is_obeyed(client):
    assert chat_text(client, extra_body={"grammar": 'root ::= "yes" | "no"'}) in ("yes", "no")


def test_logit_bias_bans_tokens(client):
    params = {"model": "demo", "prompt": "Once upon a", "temperature": 0, "max_tokens": 1}
    plain = client.completions.create(**params).choices[0].text
    most = {str(token): -100 for token in range(1200)}  # of 1280: the greedy one is among them
    assert client.completions.create(**params, logit_bias=most).choices[0].text != plain


def test_stop_strings_end_the_text_and_never_leak(client):
    text = chat_text(client)
    word = text.split()[1]
    assert chat_text(client, stop=[word]) == text[: text.index(word)]


def test_max_completion_tokens_and_ignore_eos(client):
    reply = client.chat.completions.create(
        model="demo", messages=HELLO, temperature=0, max_completion_tokens=40, extra_body={"ignore_eos": True}
    )
    assert reply.usage.completion_tokens == 40
    assert reply.choices[0].finish_reason == "length"


def test_embeddings_are_unit_vectors_from_both_kinds_of_model(client):
    for model in ("encoder", "demo"):
        reply = client.embeddings.create(model=model, input=["hello world", "something else"])
        assert [d.index for d in reply.data] == [0, 1]
        for item in reply.data:
            assert sum(x * x for x in item.embedding) == pytest.approx(1.0, abs=1e-3)
        plain = client.embeddings.create(model=model, input="hello world", encoding_format="float").data[0].embedding
        assert plain == pytest.approx(reply.data[0].embedding, abs=1e-4)


def test_an_alias_reaches_its_model(client):
    assert chat_text(client, model="gpt-demo") == chat_text(client)


def test_tools_reach_the_model_and_calls_come_back_parsed(client):
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    reply = client.chat.completions.create(model="demo", messages=question, tools=[tool], temperature=0, max_tokens=64)
    assert reply.choices[0].finish_reason == "tool_calls"
    call = reply.choices[0].message.tool_calls[0].function
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Paris"}


# --- errors ---------------------------------------------------------------------------------------


def test_an_unknown_model_is_404(client):
    with pytest.raises(NotFoundError) as caught:
        chat_text(client, model="nope")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 1000}, "n"),
        ({"messages": []}, "messages"),
        ({"extra_body": {"grammar": "root ::= ("}}, "grammar"),
        ({"extra_body": {"no_such_parameter": 1}}, "no_such_parameter"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ],
)
def test_bad_input_is_400_and_names_the_parameter(client, params, param):
    with pytest.raises(BadRequestError) as caught:
        chat_text(client, **params)
    assert caught.value.param == param
    assert chat_text(client, max_tokens=2)  # and the replica lives


def test_a_prompt_beyond_the_context_names_both_numbers(client):
    with pytest.raises(BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=[5] * 300, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert "300" in caught.value.message
    assert "256" in caught.value.message


def test_generating_with_an_encoder_is_400(client):
    with pytest.raises(BadRequestError):
        client.completions.create(model="encoder", prompt="hello", max_tokens=1)


def test_a_model_that_cannot_load_fails_alone_and_says_why(client):
    with pytest.raises(InternalServerError) as caught:
        client.completions.create(model="broken", prompt="hello", max_tokens=1)
    assert "missing.gguf" in caught.value.message
    assert chat_text(client, max_tokens=2)


def test_why_a_model_cannot_load_stands_in_its_readiness_and_on_the_console(server: ServeProcess):
    wait_until(lambda: "broken: failed: " in server.log.read_text(), "Serve gives up")
    (line,) = [line for line in server.log.read_text().splitlines() if "broken: failed: " in line]
    assert "missing.gguf" in line
    health = httpx.get(f"{server.url}/health/ready").json()
    assert health["models"]["broken"] == "not_ready"
    assert "missing.gguf" in health["reasons"]["broken"]
    assert f"Serving at {server.url}/v1, without broken" in server.log.read_text()


def test_malformed_json_is_400_in_openai_shape(server: ServeProcess):
    reply = httpx.post(f"{server.url}/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_request_ids_are_echoed(server: ServeProcess):
    reply = httpx.get(f"{server.url}/v1/models", headers={"x-request-id": "abc-123"})
    assert reply.headers["x-request-id"] == "abc-123"


def test_a_full_queue_answers_429_with_retry_after(server: ServeProcess):
    # one runs, one waits, the others are refused
    body = {"model": "narrow", "prompt": [5], "max_tokens": 250, "ignore_eos": True}

    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as http:
            return await asyncio.gather(*(http.post(f"{server.url}/v1/completions", json=body) for _ in range(24)))

    replies = asyncio.run(burst())
    refused = [reply for reply in replies if reply.status_code == 429]
    assert {reply.status_code for reply in replies} == {200, 429}
    for reply in refused:
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["type"] == "rate_limit_error"


def test_a_model_scaled_to_zero_answers_its_first_request(client):
    assert (
        client.completions.create(model="sleepy", prompt=[5, 6], max_tokens=3, temperature=0).usage.completion_tokens
        == 3
    )
