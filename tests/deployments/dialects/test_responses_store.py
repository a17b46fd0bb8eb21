"""Responses that are kept: conversations that go on from one, and what can be asked about it."""

import json

import openai
import pytest

from deployments.dialects.responses.store import MemoryStore, PreviousResponseNotFound, ResponseNotFound, StoredResponse
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, openai_client, replies, served

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
F = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
CALL_F = '<think>\nhm\n</think>\n\nSo.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


async def test_a_conversation_goes_on_from_a_response():
    prompts = FakePrompts()
    model = FakeModel(replies(CALL_F))
    async with openai_client(app_of(served(model, prompts))) as client:
        first = await client.responses.create(model="demo", input="hi", instructions="Old.", tools=[F])
        model.script = replies("Fine.")
        result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "4"}
        second = await client.responses.create(model="demo", input=[result], previous_response_id=first.id)
        async with client.responses.stream(model="demo", input="bye", previous_response_id=second.id) as stream:
            third = await stream.get_final_response()
        counted = await client.responses.input_tokens.count(model="demo", input="x", previous_response_id=third.id)
    assert (first.store, second.previous_response_id) == (True, first.id)
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "So.", "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "4"},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "bye"},
    ]
    assert prompts.rendered[0][0] == [{"role": "system", "content": "Old."}, messages[0]]
    assert prompts.rendered[1][0] == messages[:3]
    assert prompts.rendered[2][0] == messages
    assert prompts.rendered[3][0] == [
        *messages,
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "x"},
    ]
    assert counted.input_tokens > 0


async def test_an_item_can_be_meant_by_its_id():
    prompts = FakePrompts()
    async with openai_client(app_of(served(FakeModel(), prompts))) as client:
        first = await client.responses.create(model="demo", input="hi")
        item = {"type": "item_reference", "id": first.output[0].id}
        second = await client.responses.create(model="demo", input=[{"role": "user", "content": "hi"}, item])
        listed = await client.responses.input_items.list(second.id, order="asc")
    assert prompts.rendered[1][0][1] == {"role": "assistant", "content": "Hello, world!"}
    assert listed.data[1].id == first.output[0].id


async def test_a_response_can_be_read_listed_and_deleted():
    async with openai_client(app_of(served(FakeModel()))) as client:
        first = await client.responses.create(model="demo", input="hi")
        second = await client.responses.create(
            model="demo", input=[{"role": "user", "content": "bye"}], previous_response_id=first.id
        )
        assert await client.responses.retrieve(second.id) == second
        pages = [item async for item in client.responses.input_items.list(second.id, limit=1, order="asc")]
        newest = await client.responses.input_items.list(second.id)
        with pytest.raises(openai.BadRequestError, match="in the background"):
            await client.responses.cancel(second.id)
        await client.responses.delete(first.id)
        for asked in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
            with pytest.raises(openai.NotFoundError):
                await asked(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="demo", input="x", previous_response_id=second.id)
    assert [item.role for item in pages] == ["user", "assistant", "user"]
    assert [item.id for item in newest.data] == [item.id for item in reversed(pages)]
    assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_to_be_stored_is_not(stream):
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post(PATH, json={"input": "hi", "store": False, "stream": stream})
        blocks = reply.text.split("data: ")
        response = json.loads(blocks[-1])["response"] if stream else reply.json()
        assert response["store"] is False
        assert (await client.get(f"{PATH}/{response['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("path", "param"),
    [("?stream=true", "stream"), ("/input_items?limit=0", "limit"), ("/input_items?limit=x", "limit"),
     ("/input_items?order=up", "order"), ("/input_items?after=msg_1", "after")],
)  # fmt: skip
async def test_what_cannot_be_asked_is_refused_by_name(path, param):
    async with http_client(app_of(served(FakeModel()))) as client:
        id = (await client.post(PATH, json={"input": "hi"})).json()["id"]
        reply = await client.get(f"{PATH}/{id}{path}")
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def stored(id, previous=None, size=10, items=()):
    return StoredResponse(id, previous, "", "x" * size, items)


def test_the_store_is_bounded_and_keeps_what_was_used_last():
    store = MemoryStore(max_bytes=30)
    for id in "abc":
        store.put(stored(id, items=(f"item_{id}",)))
    store.get("a")
    store.put(stored("d"))
    assert store.holder("item_b") is None
    assert [store.get(id).id for id in "acd"] == ["a", "c", "d"]
    with pytest.raises(ResponseNotFound):
        store.get("b")
    store.put(stored("huge", size=31))
    with pytest.raises(ResponseNotFound):
        store.get("huge")
    assert store.holder("item_a").id == "a"


def test_a_chain_with_a_gap_is_no_conversation():
    store = MemoryStore(max_bytes=30)
    store.put(stored("a"))
    store.put(stored("b", "a"))
    store.put(stored("c", "b"))
    assert [response.id for response in store.chain("c")] == ["a", "b", "c"]
    store.delete("a")
    with pytest.raises(PreviousResponseNotFound, match="'a'"):
        store.chain("c")
