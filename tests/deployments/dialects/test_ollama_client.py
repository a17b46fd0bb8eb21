"""Ollama's API as its official client speaks it, against scripted replies."""

from datetime import datetime

import ollama
import pytest

from erllama.errors import DecodeFailed, QueueFull
from erllama.events import Done, FinishReason, Tokens
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, ollama_client, replies, served, stats

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def get_weather(city: str, days: int = 1) -> str:
    """The weather of a city.

    Args:
        city: where
        days: how many
    """
    return f"{city}: {days}"


NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


async def chatted(script="Hello, world!", messages=HI, *, model=None, prompts=None, **options):
    model = model or FakeModel(replies(script, per_item=3))
    async with ollama_client(app_of(served(model, prompts))) as client:
        reply = await client.chat("demo", messages, **options)
        return [part async for part in reply] if options.get("stream") else reply


async def test_a_whole_chat_has_text_reason_and_measured_costs():
    async def script(request):
        yield [Tokens(tuple(b"Hello"), "Hello")]
        yield [Done(stats(request, 5), "key")]

    reply = await chatted(model=FakeModel(script))
    assert (reply.model, reply.message.role, reply.message.content) == ("demo", "assistant", "Hello")
    assert (reply.done, reply.done_reason, reply.message.tool_calls, reply.message.thinking) == (
        True,
        "stop",
        None,
        None,
    )
    assert (reply.prompt_eval_count, reply.eval_count) == (len("user: hi\nassistant: "), 5)
    assert (reply.load_duration, reply.prompt_eval_duration, reply.eval_duration) == (0, 1_000_000, 1_000_000)
    assert reply.total_duration > 0
    assert reply.created_at.endswith("Z")
    assert datetime.fromisoformat(reply.created_at).tzinfo is not None


async def test_a_stream_has_the_text_in_pieces_and_the_costs_at_its_end():
    parts = await chatted(stream=True)
    assert "".join(part.message.content for part in parts) == "Hello, world!"
    assert len(parts) == 6
    assert [part.done for part in parts] == [False] * 5 + [True]
    assert {part.done_reason for part in parts[:-1]} == {None}
    assert (parts[-1].done_reason, parts[-1].eval_count, parts[-1].message.content) == ("stop", 13, "")
    assert parts[-1].prompt_eval_count == len("user: hi\nassistant: ")
    assert parts[0].eval_count is None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_that_is_cut_off_says_length(stream):
    got = await chatted(stream=stream, options={"num_predict": 4})
    last = got[-1] if stream else got
    assert (last.done_reason, last.eval_count) == ("length", 4)


async def test_calls_come_whole_with_objects():
    said = f"Let me see. {CALL}\n{TIME}"
    whole = await chatted(said, tools=[get_weather, NOW])
    parts = await chatted(said, tools=[get_weather, NOW], stream=True)
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    for found in (whole.message.tool_calls, calls):
        assert [(call.function.name, call.function.arguments) for call in found] == [
            ("get_weather", {"city": "Köln", "days": 2}),
            ("now", {}),
        ]
    assert max(len(part.message.tool_calls or ()) for part in parts) == 1
    assert whole.message.content.strip() == "Let me see."
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert (whole.done_reason, parts[-1].done_reason, parts[-1].message.tool_calls) == ("stop", "stop", None)


@pytest.mark.parametrize("stream", [False, True])
async def test_half_a_call_is_not_made(stream):
    got = await chatted(CALL, tools=[get_weather], stream=stream, options={"num_predict": 60})
    last = got[-1] if stream else got
    assert last.done_reason == "length"
    assert not any(part.message.tool_calls for part in (got if stream else [got]))


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_json_is_no_call(stream):
    said = '<tool_call>\n{"name": "now", "arguments": {"a": NaN}}\n</tool_call>'
    got = await chatted(said, tools=[NOW], stream=stream)
    assert (got[-1] if stream else got).done_reason == "stop"


async def test_a_conversation_with_calls_and_results_comes_back():
    prompts = FakePrompts()
    whole = await chatted(CALL + TIME, tools=[get_weather, NOW], prompts=prompts)
    history = [
        *HI,
        whole.message,
        {"role": "tool", "tool_name": "now", "content": "noon"},
        {"role": "tool", "tool_name": "get_weather", "content": "rain"},
    ]
    await chatted("fine", history, tools=[get_weather, NOW], prompts=prompts)
    messages, tools, _ = prompts.rendered[-1]
    assert [call["function"]["arguments"] for call in messages[1]["tool_calls"]] == [{"city": "Köln", "days": 2}, {}]
    ids = {call["function"]["name"]: call["id"] for call in messages[1]["tool_calls"]}
    assert len(set(ids.values())) == 2
    assert [(m["name"], m["tool_call_id"]) for m in messages[2:]] == [
        ("now", ids["now"]),
        ("get_weather", ids["get_weather"]),
    ]
    assert [tool["function"]["name"] for tool in tools] == ["get_weather", "now"]
    assert tools[0]["function"]["parameters"]["properties"]["city"]["type"] == "string"


async def test_thinking_comes_beside_the_text():
    said = "<think>\nHm, well.\n</think>\n\nYes."
    prompts = FakePrompts()
    whole = await chatted(said, think=True, prompts=prompts)
    parts = await chatted(said, think="high", stream=True, prompts=prompts)
    assert (whole.message.thinking.strip(), whole.message.content.strip()) == ("Hm, well.", "Yes.")
    assert "".join(part.message.thinking or "" for part in parts) == whole.message.thinking
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [variables for _, _, variables in prompts.rendered] == [
        {"enable_thinking": True, "thinking": True},
        {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"},
    ]
    await chatted("Yes.", [*HI, whole.message, *HI], think=False, prompts=prompts)
    messages, _, variables = prompts.rendered[-1]
    assert messages[1]["thinking"] == whole.message.thinking
    assert variables == {"enable_thinking": False, "thinking": False}


async def test_a_format_constrains_the_reply():
    for wanted in ("json", {"type": "object", "properties": {"a": {"type": "integer"}}}):
        model = FakeModel(replies("{}"))
        assert (await chatted(model=model, format=wanted)).message.content == "{}"
        [request] = model.requests
        assert request.constraint.param == "format"
        assert ("integer" in request.constraint.text) is (wanted != "json")


async def test_log_probabilities():
    whole = await chatted("Hey!", logprobs=True, top_logprobs=2)
    parts = await chatted("Hey!", logprobs=True, top_logprobs=2, stream=True)
    assert [one.token for one in whole.logprobs] == list("Hey!")
    assert [len(one.top_logprobs) for one in whole.logprobs] == [2] * 4
    assert [one.token for part in parts for one in part.logprobs or ()] == list("Hey!")
    assert (await chatted("Hey!")).logprobs is None


@pytest.mark.parametrize("stream", [False, True])
async def test_generate_goes_on_behind_the_context_of_an_earlier_reply(stream):
    model = FakeModel(replies("Yes."))
    async with ollama_client(app_of(served(model))) as client:
        first = await client.generate("demo", "One?", stream=stream)
        told = [part async for part in first][-1].context if stream else first.context
        await client.generate("demo", "Two?", context=told)
        raw = await client.generate("demo", "Once", raw=True)
    said = b"user: One?\nassistant: Yes."
    assert bytes(told) == said
    assert bytes(model.requests[1].prompt_tokens) == said + b"user: Two?\nassistant: "
    assert raw.context is None


async def test_generate_whole_streamed_and_raw():
    prompts, model = FakePrompts(), FakeModel(replies("<think>Hm.</think>Sure.", per_item=3))
    async with ollama_client(app_of(served(model, prompts))) as client:
        whole = await client.generate("demo", "Why?", system="Be short.", think=True)
        stream = await client.generate("demo", "Why?", stream=True, options={"temperature": 0})
        parts = [part async for part in stream]
        raw = await client.generate("demo", "Once", raw=True)
    assert (whole.response, whole.thinking, whole.done_reason) == ("Sure.", "Hm.", "stop")
    assert "".join(part.response for part in parts) == "Sure."
    assert "".join(part.thinking or "" for part in parts) == "Hm."
    assert (parts[-1].done, parts[-1].eval_count) == (True, 23)
    assert raw.response == "<think>Hm.</think>Sure."
    assert [messages for messages, _, _ in prompts.rendered] == [
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}],
        [{"role": "user", "content": "Why?"}],
    ]
    assert bytes(model.requests[2].prompt_tokens) == b"Once"
    assert model.requests[1].sampling.temperature == 0


async def test_embeddings():
    async with ollama_client(app_of(served(FakeModel()))) as client:
        one = await client.embed("demo", "abc")
        several = await client.embed("demo", ["abc", "de"], dimensions=2)
        old = await client.embeddings("demo", "abc")
        nothing = await client.embed("demo", "")
    assert one.embeddings == [[3.0, 0.5, 0.5, 0.5]]
    assert (one.model, one.prompt_eval_count) == ("demo", 3)
    assert one.total_duration > 0
    assert [sum(x * x for x in vector) for vector in several.embeddings] == pytest.approx([1, 1])
    assert [vector[0] / vector[1] for vector in several.embeddings] == pytest.approx([6, 4])
    assert several.prompt_eval_count == 5
    assert old.embedding == [3.0, 0.5, 0.5, 0.5]
    assert nothing.embeddings == []


async def test_list_show_and_ps():
    sleeping = FakeModel(state=None)
    app = app_of(served(FakeModel()), served(sleeping, id="qwen3:8b"))
    async with ollama_client(app) as client:
        models = (await client.list()).models
        running = (await client.ps()).models
        shown = await client.show("demo")
        asleep = await client.show("qwen3:8b")
    assert [model.model for model in models] == ["demo:latest", "qwen3:8b"]
    assert (models[0].size, models[0].digest, models[0].details.parameter_size) == (1234, "f00d", "494.03M")
    assert models[0].modified_at.year == 2023
    assert [(model.name, model.context_length, model.size_vram) for model in running] == [("demo:latest", 4096, 0)]
    assert shown.modelinfo["general.architecture"] == "qwen3"
    assert shown.modelinfo["qwen3.context_length"] == 4096
    assert (shown.details.family, shown.details.quantization_level) == ("qwen3", "Q8_0")
    assert shown.capabilities == asleep.capabilities == ["completion", "tools", "insert"]
    assert shown.parameters.split() == ["num_ctx", "4096"]
    assert asleep.modelinfo == {}
    assert sleeping.requests == []


async def test_errors_carry_status_and_words():
    async with ollama_client(app_of(served(FakeModel()))) as client:
        with pytest.raises(ollama.ResponseError) as unknown:
            await client.chat("nobody", HI)
        with pytest.raises(ollama.ResponseError) as refused:
            await client.chat("demo", HI, options={"mirostat": 2})
        with pytest.raises(ollama.ResponseError) as pulled:
            await client.pull("demo")
        with pytest.raises(ollama.ResponseError) as streamed:
            [part async for part in await client.pull("demo", stream=True)]
        with pytest.raises(ollama.ResponseError) as deleted:
            await client.delete("demo")
    assert (unknown.value.status_code, unknown.value.error) == (404, "model 'nobody' not found")
    assert refused.value.status_code == 400
    assert "mirostat" in refused.value.error
    assert {error.value.status_code for error in (pulled, streamed, deleted)} == {501}


async def test_an_error_in_a_running_stream_is_a_line():
    model = FakeModel(replies("abcd", error=DecodeFailed("lost")))
    async with ollama_client(app_of(served(model))) as client:
        stream = await client.chat("demo", HI, stream=True)
        assert (await anext(stream)).message.content == "abcd"
        with pytest.raises(ollama.ResponseError, match="lost"):
            await anext(stream)


async def test_an_error_before_the_stream_has_its_status():
    model = FakeModel(replies("", error=QueueFull("full")))
    async with ollama_client(app_of(served(model))) as client:
        with pytest.raises(ollama.ResponseError) as full:
            [part async for part in await client.chat("demo", HI, stream=True)]
    assert (full.value.status_code, full.value.error) == (503, "full")


async def test_load_and_unload():
    model = FakeModel(replies(""))
    async with ollama_client(app_of(served(model))) as client:
        loaded = [await client.generate("demo"), await client.chat("demo")]
        unloaded = [await client.generate("demo", keep_alive=0), await client.chat("demo", keep_alive="0s")]
    assert [reply.done_reason for reply in (*loaded, *unloaded)] == ["load", "load", "unload", "unload"]
    assert all(reply.done for reply in (*loaded, *unloaded))
    assert [request.max_tokens for request in model.requests] == [0, 0]


async def test_a_key_is_a_bearer_token():
    app = app_of(served(FakeModel()), api_keys=("k1",))
    async with ollama_client(app, authorization="Bearer k1") as client:
        assert (await client.chat("demo", HI)).done
    async with ollama_client(app, authorization="Bearer k2") as client:
        with pytest.raises(ollama.ResponseError, match="API key"):
            await client.list()


async def test_a_done_reason_of_the_engine_is_told():
    model = FakeModel(replies("x", reason=FinishReason.LENGTH))
    assert (await chatted(model=model)).done_reason == "length"
