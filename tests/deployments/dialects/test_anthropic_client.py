"""The official client against the app, whole and streamed; CC numbers are those of the list of what
Claude Code needs.
"""

import json

import anthropic
import pytest

from erllama.events import FinishReason
from tests.support.http_fakes import FakeModel, FakePrompts, anthropic_client, app_of, replies, served

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "name": "get_weather",
    "description": "The weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
THOUGHT = "<think>\nLet me see.\n</think>"


def app_saying(text, prompts=None, **kwargs):
    return app_of(served(FakeModel(replies(text, **kwargs)), prompts))


async def final(client, **fields):
    async with client.messages.stream(model="demo", max_tokens=1000, messages=HI, **fields) as stream:
        events = [event async for event in stream]
        return events, await stream.get_final_message()


async def test_a_whole_reply_and_the_same_streamed():
    async with anthropic_client(app_saying("Hello, world!")) as client:
        whole = await client.messages.create(model="demo", max_tokens=1000, messages=HI)
        events, streamed = await final(client)
    assert (whole.role, whole.model, whole.stop_reason, whole.stop_sequence) == ("assistant", "demo", "end_turn", None)
    assert [(block.type, block.text) for block in whole.content] == [("text", "Hello, world!")]
    assert whole.id.startswith("msg_")
    assert whole.model_dump(exclude={"id"}) == streamed.model_dump(exclude={"id"}) | {
        "content": whole.model_dump()["content"]
    }
    assert "".join(event.text for event in events if event.type == "text") == "Hello, world!"
    prompt = len("user: hi\nassistant: ")
    assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens) == (prompt - 3, 3)
    assert (whole.usage.cache_creation_input_tokens, whole.usage.output_tokens) == (0, 13)


@pytest.mark.parametrize("per_item", [1, 3, 500])
async def test_cc_32_thinking_text_and_calls_are_blocks_in_their_order(per_item):
    text = f"{THOUGHT}\n\nLet me look.\n{CALL}\n{CALL}"
    async with anthropic_client(app_saying(text, per_item=per_item)) as client:
        whole = await client.messages.create(model="demo", max_tokens=1000, messages=HI, tools=[WEATHER])
        _, streamed = await final(client, tools=[WEATHER])
    for reply in (whole, streamed):
        assert [block.type for block in reply.content] == ["thinking", "text", "tool_use", "tool_use"]
        thinking, said, *calls = reply.content
        assert (thinking.thinking, said.text) == ("Let me see.", "Let me look.")
        assert thinking.signature
        assert [(call.name, call.input) for call in calls] == [("get_weather", {"city": "Ulm"})] * 2
        assert len({call.id for call in calls}) == 2
        assert reply.stop_reason == "tool_use"
        assert reply.usage.output_tokens == len(text)
        assert reply.usage.output_tokens_details.thinking_tokens == len(THOUGHT)


async def test_a_reply_with_a_call_comes_back_with_its_result():
    prompts = FakePrompts()
    async with anthropic_client(app_saying(THOUGHT + CALL, prompts)) as client:
        reply = await client.messages.create(model="demo", max_tokens=1000, messages=HI, tools=[WEATHER])
        call = reply.content[-1]
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        turn = [*HI, {"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
        await client.messages.create(model="demo", max_tokens=1000, messages=turn, tools=[WEATHER])
    function = {"name": "get_weather", "arguments": {"city": "Ulm"}}
    assert prompts.rendered[1][0] == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Let me see.",
            "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_0", "name": "get_weather"},
    ]
    assert prompts.rendered[0][1] == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather.",
                "parameters": WEATHER["input_schema"],
            },
        }
    ]


async def test_cc_35_the_reasons_to_stop():
    async with anthropic_client(app_saying("abcdefgh")) as client:
        cut = await client.messages.create(model="demo", max_tokens=4, messages=HI)
        _, streamed = await final(client, stop_sequences=["x"])
    assert (cut.stop_reason, cut.content[0].text) == ("max_tokens", "abcd")
    assert streamed.stop_reason == "end_turn"
    async with anthropic_client(app_saying(CALL, reason=FinishReason.LENGTH)) as client:
        cut = await client.messages.create(model="demo", max_tokens=1000, messages=HI, tools=[WEATHER])
    assert cut.stop_reason == "model_context_window_exceeded"


async def test_cc_3_tokens_are_counted_without_a_reply_also_beyond_the_context():
    model = FakeModel()
    async with anthropic_client(app_of(served(model, FakePrompts(n_ctx=10)))) as client:
        counted = await client.messages.count_tokens(model="demo", messages=HI, tools=[WEATHER], system="be brief")
    assert counted.input_tokens == len("system: be brief\nuser: hi\nassistant: ")
    assert model.requests == []


async def test_cc_5_models_are_listed_page_by_page_and_found():
    app = app_of(*(served(FakeModel(), id=id) for id in ("one", "two", "three")), served(FakeModel(), id="a/b"))
    async with anthropic_client(app) as client:
        assert [model.id async for model in client.models.list(limit=1)] == ["one", "two", "three", "a/b"]
        page = await client.models.list(limit=2, after_id="one")
        assert ([model.id for model in page.data], page.first_id, page.last_id, page.has_more) == (
            ["two", "three"], "two", "three", True,
        )  # fmt: skip
        back = await client.models.list(limit=2, before_id="a/b")
        assert ([model.id for model in back.data], back.has_more) == (["two", "three"], True)
        card = await client.models.retrieve("a/b")
        assert (card.id, card.display_name, card.type, card.max_input_tokens) == ("a/b", "a/b", "model", 4096)
        assert card.created_at.year == 2023
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("four")
        for fields in ({"limit": 0}, {"limit": 1001}, {"after_id": "four"}):
            with pytest.raises(anthropic.BadRequestError):
                await client.models.list(**fields)


async def test_a_reply_that_must_fit_a_schema():
    model = FakeModel(replies('{"a": 1}'))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    async with anthropic_client(app_of(served(model))) as client:
        reply = await client.messages.create(
            model="demo",
            max_tokens=100,
            messages=HI,
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
    assert json.loads(reply.content[0].text) == {"a": 1}
    assert json.loads(model.requests[0].constraint.text) == schema


async def test_the_beta_client_is_served_too():
    async with anthropic_client(app_saying("Hello")) as client:
        reply = await client.beta.messages.create(
            model="demo", max_tokens=100, messages=HI, betas=["context-management-2025-06-27", "new-2030-01-01"],
            context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        )  # fmt: skip
    assert reply.content[0].text == "Hello"


async def test_cc_37_a_stream_that_loses_its_replica_ends_as_overloaded():
    from erllama.errors import DecodeFailed, EngineStopped

    for error, kind in ((EngineStopped("gone"), "overloaded_error"), (DecodeFailed("lost"), "api_error")):
        async with anthropic_client(app_saying("abcd", error=error)) as client:
            with pytest.raises(anthropic.APIStatusError) as caught:
                await final(client)
        assert caught.value.body["error"]["type"] == kind
