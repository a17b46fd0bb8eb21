"""Responses through the official client, whole and streamed, and the order of the events."""

import json

import openai
import pydantic
import pytest

from erllama.errors import EngineStopped, QueueFull
from erllama.events import FinishReason
from tests.support.http_fakes import (
    FakeModel,
    FakePrompts,
    app_of,
    exchange,
    http_client,
    named_events,
    openai_client,
    replies,
    served,
)

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PATCH = {
    "type": "custom",
    "name": "apply_patch",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"},
}
ARGUMENTS = '{ "city":"Ulm" }'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'


def custom_call(text, name="apply_patch"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps({"input": text})}}}\n</tool_call>'


def events_of(body):
    """The events of a stream, whose `event` lines and numbers must be right: signs of life repeat
    the number before theirs.
    """
    named = named_events(body)
    events = [data for _, data in named]
    assert [name for name, _ in named] == [event["type"] for event in events]
    numbers = [event["sequence_number"] for event in events]
    repeats = [n for n, event in enumerate(events) if event["type"] == "response.in_progress" and n > 1]
    assert [number for n, number in enumerate(numbers) if n not in repeats] == list(range(len(events) - len(repeats)))
    assert all(numbers[n] == numbers[n - 1] for n in repeats)
    return events


async def stream_of(model, prompts=None, **fields):
    async with http_client(app_of(served(model, prompts))) as client:
        reply = await client.post(PATH, json={"input": "hi", "stream": True, **fields})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    return events_of(reply.content)


async def post(model, prompts=None, path=PATH, **fields):
    async with http_client(app_of(served(model, prompts))) as client:
        return await client.post(path, json={"input": "hi", **fields})


def kinds(events):
    """The types in their order, those that repeat once."""
    told = [event["type"].removeprefix("response.") for event in events]
    return [kind for number, kind in enumerate(told) if number == 0 or told[number - 1] != kind]


TEXT_KINDS = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]


async def test_a_response_is_complete_and_counts_its_tokens():
    model = FakeModel()
    async with openai_client(app_of(served(model))) as client:
        reply = await client.responses.create(model="demo", input="hi", instructions="Be brief.")
    assert reply.id.startswith("resp_")
    assert (reply.object, reply.model, reply.status, reply.error) == ("response", "demo", "completed", None)
    [item] = reply.output
    assert item.id.startswith("msg_")
    assert (item.role, item.status) == ("assistant", "completed")
    assert reply.output_text == "Hello, world!"
    assert bytes(model.requests[0].prompt_tokens) == b"system: Be brief.\nuser: hi\nassistant: "
    usage = reply.usage
    assert (usage.input_tokens, usage.output_tokens) == (len(model.requests[0].prompt_tokens), 13)
    assert usage.total_tokens == usage.input_tokens + 13
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (3, 0)


async def test_cx5_a_text_streams_in_the_full_order():
    events = await stream_of(FakeModel(replies("Grüße, 🌍!", per_item=1)))
    assert kinds(events) == ["created", "in_progress", *TEXT_KINDS, "completed"]
    added = next(event for event in events if event["type"] == "response.output_item.added")["item"]
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(event["delta"] for event in deltas) == "Grüße, 🌍!"
    assert {(event["item_id"], event["output_index"], event["content_index"]) for event in deltas} == {
        (added["id"], 0, 0)
    }
    done, last = events[-2]["item"], events[-1]["response"]
    assert done["content"] == [{"type": "output_text", "annotations": [], "logprobs": [], "text": "Grüße, 🌍!"}]
    assert last["output"] == [done]
    assert (last["status"], last["usage"]["output_tokens"]) == ("completed", len("Grüße, 🌍!".encode()))


async def test_cx4_every_snapshot_has_the_whole_schema():
    events = await stream_of(FakeModel(), tools=[WEATHER], metadata={"a": "b"}, temperature=0.5, top_p=1)
    snapshots = [event["response"] for event in events if "response" in event]
    assert [snapshot["status"] for snapshot in snapshots] == ["in_progress", "in_progress", "completed"]
    for snapshot in snapshots:
        assert set(openai.types.responses.Response.model_fields) - set(snapshot) <= {
            "access_programs", "context_edits", "conversation", "image", "prompt", "moderation", "prompt_cache_options",
            "prompt_cache_retention", "prompt_cache_diagnostics", "prompt_cache", "tool_usage", "diagnostics",
            *(name for name, field in openai.types.responses.Response.model_fields.items() if not field.is_required()),
        }  # fmt: skip
        assert snapshot["tools"] == [WEATHER]
        assert (snapshot["metadata"], snapshot["temperature"], snapshot["top_p"]) == ({"a": "b"}, 0.5, 1)
        assert (snapshot["tool_choice"], snapshot["parallel_tool_calls"]) == ("auto", True)
    assert len({snapshot["id"] for snapshot in snapshots}) == 1


async def test_a_cut_off_response_is_incomplete():
    events = await stream_of(FakeModel(), max_output_tokens=5)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-2]["item"]["status"] == "incomplete"
    whole = (await post(FakeModel(), max_output_tokens=5)).json()
    assert (whole["status"], whole["output"][0]["content"][0]["text"]) == ("incomplete", "Hello")


@pytest.mark.parametrize("per_item", [1, 7, 1000])
async def test_cx9_arguments_come_character_for_character(per_item):
    model = FakeModel(replies(f"Let me see.\n{CALL}", per_item=per_item))
    events = await stream_of(model, tools=[WEATHER])
    assert kinds(events) == [
        "created",
        "in_progress",
        *TEXT_KINDS,
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    item = events[-2]["item"]
    assert "".join(pieces) == item["arguments"] == ARGUMENTS
    assert item["id"].startswith("fc_")
    assert item["call_id"].startswith("call_")
    assert (item["name"], item["status"]) == ("get_weather", "completed")
    assert [output["type"] for output in events[-1]["response"]["output"]] == ["message", "function_call"]


async def test_the_clients_stream_parses_calls():
    class get_weather(pydantic.BaseModel):
        city: str

    fields = {"model": "demo", "input": "hi", "tools": [openai.pydantic_function_tool(get_weather)]}
    async with openai_client(app_of(served(FakeModel(replies(f"So.\n{CALL}", per_item=3))))) as client:
        async with client.responses.stream(**fields) as stream:
            events = [event async for event in stream]
            streamed = await stream.get_final_response()
        whole = await client.responses.parse(**fields)
    for reply in (streamed, whole):
        assert reply.output_text == "So."
        assert json.loads(reply.output[1].arguments) == {"city": "Ulm"}
        assert reply.output[1].parsed_arguments.city == "Ulm"
    [last] = [event for event in events if event.type == "response.function_call_arguments.delta"][-1:]
    assert last.snapshot == ARGUMENTS


async def test_the_client_parses_a_form():
    class Place(pydantic.BaseModel):
        city: str

    model = FakeModel(replies('{"city": "Ulm"}'))
    async with openai_client(app_of(served(model))) as client:
        reply = await client.responses.parse(model="demo", input="hi", text_format=Place)
        async with client.responses.stream(model="demo", input="hi", text_format=Place) as stream:
            await stream.until_done()
            streamed = await stream.get_final_response()
    assert reply.output_parsed == streamed.output_parsed == Place(city="Ulm")
    assert model.requests[0].constraint.param == "text.format.schema"


@pytest.mark.parametrize("per_item", [1, 5, 1000])
async def test_a_custom_tool_gives_its_text(per_item):
    text = '*** Begin\n"ä" \\ 🌍\t'
    events = await stream_of(FakeModel(replies(custom_call(text), per_item=per_item)), tools=[PATCH])
    assert kinds(events)[2:-1] == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    pieces = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    item = events[-2]["item"]
    assert "".join(pieces) == item["input"] == events[-3]["input"] == text
    assert item["id"].startswith("ctc_")
    assert (item["type"], item["name"]) == ("custom_tool_call", "apply_patch")
    async with openai_client(app_of(served(FakeModel(replies(custom_call(text)))))) as client:
        reply = await client.responses.create(model="demo", input="hi", tools=[PATCH])
    assert (reply.output[0].type, reply.output[0].input) == ("custom_tool_call", text)


async def test_cx3_a_call_of_a_namespace_has_name_and_namespace():
    tools = [
        {"type": "namespace", "name": "agents", "description": "d", "tools": [WEATHER, PATCH]},
        {"type": "web_search"},
    ]
    call = CALL.replace("get_weather", "agents__get_weather")
    prompts = FakePrompts()
    events = await stream_of(
        FakeModel(replies(f"{call}\n{custom_call('x', 'agents__apply_patch')}")), prompts, tools=tools
    )
    assert [tool["function"]["name"] for tool in prompts.rendered[0][1]] == [
        "agents__get_weather",
        "agents__apply_patch",
    ]
    called = [(item["type"], item["namespace"], item["name"]) for item in events[-1]["response"]["output"]]
    assert called == [("function_call", "agents", "get_weather"), ("custom_tool_call", "agents", "apply_patch")]


THOUGHT = "<think>\nhm, rain?\n</think>\n\nSunny."


async def test_reasoning_is_an_item_of_its_own():
    events = await stream_of(FakeModel(replies(THOUGHT, per_item=1)))
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        *TEXT_KINDS,
        "completed",
    ]
    thought, said = events[-1]["response"]["output"]
    assert thought["id"].startswith("rs_")
    assert (thought["summary"], thought["content"]) == ([], [{"type": "reasoning_text", "text": "hm, rain?"}])
    assert said["content"][0]["text"] == "Sunny."
    spent = events[-1]["response"]["usage"]["output_tokens_details"]["reasoning_tokens"]
    assert spent == len("<think>\nhm, rain?\n</think>")


async def test_cx4_a_summary_is_told_where_it_is_asked_for():
    events = await stream_of(FakeModel(replies(THOUGHT, per_item=4)), reasoning={"summary": "auto"})
    assert kinds(events)[2:8] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    assert all(event["summary_index"] == 0 for event in events if "reasoning_summary" in event["type"])
    thought = events[-1]["response"]["output"][0]
    assert thought["summary"] == [{"type": "summary_text", "text": "hm, rain?"}]
    async with (
        openai_client(app_of(served(FakeModel(replies(THOUGHT))))) as client,
        client.responses.stream(model="demo", input="hi", reasoning={"summary": "auto"}) as stream,
    ):
        reply = await stream.get_final_response()
    assert (reply.output[0].summary[0].text, reply.output_text) == ("hm, rain?", "Sunny.")


async def test_an_empty_reply_is_an_empty_message():
    async with openai_client(app_of(served(FakeModel(replies(""))))) as client:
        reply = await client.responses.create(model="demo", input="hi")
    assert (len(reply.output), reply.output_text) == (1, "")


async def test_logprobs_cover_the_text_only():
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    for per_item in (1, 4, 1000):
        events = await stream_of(FakeModel(replies(THOUGHT, per_item=per_item)), **fields)
        deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
        told = [one["token"] for logprobs in deltas for one in logprobs]
        assert "".join(told).strip() == "Sunny."
        [part] = events[-1]["response"]["output"][-1]["content"]
        assert [one["token"] for one in part["logprobs"]] == told
        assert len(part["logprobs"][0]["top_logprobs"]) == 2


async def test_cx8_a_prompt_that_does_not_fit_fails_in_the_stream():
    [created, _, failed] = await stream_of(FakeModel(), FakePrompts(n_ctx=8))
    assert created["type"] == "response.created"
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["error"]["code"] == "context_length_exceeded"
    reply = await post(FakeModel(), FakePrompts(n_ctx=8))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert reply.json()["error"]["param"] == "input"


async def test_cx8_a_full_queue_says_in_the_stream_when_to_come_back():
    full = FakeModel(replies("", error=QueueFull("The queue is full.", retry_after_s=7)))
    events = await stream_of(full)
    error = events[-1]["response"]["error"]
    assert (error["code"], error["message"]) == ("rate_limit_exceeded", "The queue is full. Please try again in 7s.")
    reply = await post(full)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")


async def test_an_error_behind_the_first_event_ends_the_stream():
    events = await stream_of(FakeModel(replies("abc", error=EngineStopped("It stopped."))))
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert "It stopped." in events[-1]["response"]["error"]["message"]


async def test_an_error_before_the_first_event_has_its_status():
    reply = await post(FakeModel(replies("", error=EngineStopped("It stopped."))), stream=True)
    assert (reply.status_code, reply.json()["error"]["type"]) == (503, "server_error")


async def test_cx7_a_silent_stream_repeats_in_progress():
    async def silent(request):
        import asyncio

        await asyncio.Event().wait()
        yield []

    app = app_of(served(FakeModel(silent)), keepalive_s=0.02)
    async with exchange(app, PATH, {"input": "hi", "stream": True}) as talk:
        assert (await talk.start())[0] == 200
        body = b"".join([await talk.chunk() for _ in range(3)])
    events = events_of(body)
    assert kinds(events) == ["created", "in_progress"]
    assert len(events) == 4


async def test_input_tokens_are_counted_without_a_reply():
    model = FakeModel()
    async with openai_client(app_of(served(model, FakePrompts(n_ctx=8)))) as client:
        counted = await client.responses.input_tokens.count(model="demo", input="hi", instructions="x")
    assert (counted.object, counted.input_tokens) == ("response.input_tokens", len("system: x\nuser: hi\nassistant: "))
    assert model.requests == []


async def test_a_stop_of_the_engine_is_no_end():
    events = await stream_of(FakeModel(replies("ab", reason=FinishReason.CANCELLED)))
    assert events[-1]["response"]["error"]["code"] == "server_error"
