"""Responses that are kept: conversations that go on from one, and what can be asked about it."""

import json
import logging

import fsspec
import openai
import pytest
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from cache_store import StoreConfig, TierConfig, TierError
from cache_store.documents.store import DocumentStore
from deployments.dialects.responses.stored.memory import MemoryStore
from deployments.dialects.responses.stored.response import (
    BadResponse,
    PreviousResponseNotFound,
    ResponseNotDeleted,
    ResponseNotFound,
    StoredResponse,
    holder_id,
    item_id,
    new_id,
)
from deployments.dialects.responses.stored.store import ResponseStore
from deployments.http.options import HttpOptions
from deployments.ingress.http_app import all_dialects, make_http_app
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


def stored(id, *earlier, size=10, items=()):
    return StoredResponse(id, earlier, "", "x" * size, items)


def test_the_memory_is_bounded_and_keeps_what_was_used_last():
    memory = MemoryStore(max_bytes=30)
    for id in "abc":
        memory.put("", stored(id))
    memory.get("", "a")
    memory.put("", stored("d"))
    memory.put("", stored("huge", size=31))
    memory.put("", stored("a", size=5))
    assert [id for id in ("a", "b", "c", "d", "huge") if memory.get("", id)] == ["a", "c", "d"]
    memory.put("", stored("e", size=5))
    assert [id for id in ("a", "c", "d", "e") if memory.get("", id)] == ["a", "c", "d", "e"]
    assert (memory.drop("", "a"), memory.drop("", "a")) == (True, False)


@pytest.mark.parametrize("index", [0, 9, 10, 1234])
@pytest.mark.parametrize("prefix", ["msg", "rs", "fc", "ctc"])
def test_an_item_tells_its_response(prefix, index):
    response = new_id("resp")
    assert holder_id(item_id(prefix, response, index)) == response


@pytest.mark.parametrize("id", ["", "msg", "msg_", "msg_1", f"msg_{'a' * 32}", f"msg_{'g' * 32}1", f"../{'a' * 32}1"])
def test_other_ids_have_no_response(id):
    assert holder_id(id) is None


def test_a_response_survives_its_bytes_and_damage_is_told():
    response = StoredResponse("resp_1", ("resp_0", "resp_00"), '["grüß"]', '{"🌍": 1}', ("msg_1",))
    packed = response.packed()
    assert StoredResponse.unpacked(packed) == response
    for damaged in (b"", packed[:5], packed[:-1], packed + b"x", b"\xff" * 40, packed.replace(b'"id"', b'"ix"')):
        with pytest.raises(BadResponse):
            StoredResponse.unpacked(damaged)


class FakeDocuments:
    """Documents in a dict; `failing` makes every call behave as a dead tier does."""

    def __init__(self):
        self.kept = {}
        self.failing = False
        self.asked = []

    def put(self, scope, id, content, n_bytes):
        if not self.failing:
            self.kept[scope, id] = content()
        return not self.failing

    def get(self, scope, ids, deadline_s):
        self.asked.append(("get", list(ids)))
        return {} if self.failing else {id: self.kept[scope, id] for id in ids if (scope, id) in self.kept}

    def gone(self, scope, ids, deadline_s):
        self.asked.append(("gone", list(ids)))
        return set() if self.failing else {id for id in ids if (scope, id) not in self.kept}

    def delete(self, scope, id, deadline_s):
        if self.failing:
            raise TierError("dead")
        return self.kept.pop((scope, id), None) is not None


async def test_a_chain_with_a_gap_is_no_conversation():
    store = ResponseStore()
    for response in (stored("a"), stored("b", "a"), stored("c", "a", "b")):
        store.put(response)
    assert [response.id for response in await store.chain("c")] == ["a", "b", "c"]
    await store.delete("a")
    with pytest.raises(PreviousResponseNotFound, match="'a'"):
        await store.chain("c")


async def test_another_process_reads_a_conversation_in_two_steps():
    documents = FakeDocuments()
    first, second = ResponseStore(documents), ResponseStore(documents)
    for response in (stored("a"), stored("b", "a"), stored("c", "a", "b")):
        first.put(response)
    assert [response.id for response in await second.chain("c")] == ["a", "b", "c"]
    assert documents.asked == [("get", ["c"]), ("get", ["a", "b"])]
    await second.chain("c")
    assert len(documents.asked) == 2, "what was read is remembered"


async def test_a_scope_sees_its_own_responses_alone():
    documents = FakeDocuments()
    id = new_id("resp")
    item = item_id("msg", id, 0)
    for store in (ResponseStore(documents), ResponseStore(documents)):
        store.put(stored(id, items=(item,)), "one")
        assert (await store.get(id, "one")).id == id
        for scope in ("", "two"):
            with pytest.raises(ResponseNotFound):
                await store.get(id, scope)
            with pytest.raises(ResponseNotFound):
                await store.delete(id, scope)
            assert await store.holders([item], scope) == []
        assert [response.id for response in await store.holders([item], "one")] == [id]


async def test_what_another_process_deletes_is_forgotten_after_a_while():
    documents, now = FakeDocuments(), [0.0]
    first, second = ResponseStore(documents), ResponseStore(documents, fresh_s=60, clock=lambda: now[0])
    first.put(stored("a"))
    await second.get("a")
    await first.delete("a")
    now[0] = 59.0
    await second.get("a")
    now[0] = 60.0
    with pytest.raises(ResponseNotFound):
        await second.get("a")


async def test_a_dead_store_costs_what_is_not_remembered_and_deletions():
    documents, now = FakeDocuments(), [0.0]
    store = ResponseStore(documents, fresh_s=60, clock=lambda: now[0])
    store.put(stored("a"))
    documents.failing = True
    store.put(stored("b", "a"))
    now[0] = 100.0
    assert [response.id for response in await store.chain("b")] == ["a", "b"]
    with pytest.raises(ResponseNotDeleted):
        await store.delete("a")
    with pytest.raises(ResponseNotFound):
        await store.get("c")


async def test_what_an_ingress_still_writes_is_found_at_the_second_look():
    documents = FakeDocuments()
    writing = stored("a")

    def late(scope, ids, deadline_s):
        documents.get = FakeDocuments.get.__get__(documents)
        documents.put(scope, "a", writing.packed, 10)
        return {}

    documents.get = late
    assert [response.id for response in await ResponseStore(documents).chain("a")] == ["a"]


# --- the store's tiers: two applications over one directory, as before and after a restart -------------


@pytest.fixture(params=["disk", "s3"])
def documents(request, tmp_path):
    """Opens what an ingress opens, as often as it is called."""
    if request.param == "disk":
        tiers = (TierConfig(f"memory://{new_id('front')}"), TierConfig(str(tmp_path / "kv")))
    else:
        tiers = (TierConfig(str(tmp_path / "kv")), request.getfixturevalue("bucket"))
    opened = []

    def open_documents(salt=""):
        config = StoreConfig(tiers, salt=salt)
        opened.append(DocumentStore.open(config, "responses", max_bytes=1 << 20, ttl_s=1000))
        return opened[-1]

    yield open_documents
    for documents in opened:
        documents.close()


@pytest.fixture(scope="module")
def endpoint():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test", "session": AioSession()}
    server.stop()
    server._server.server_close()


@pytest.fixture
def bucket(endpoint):
    name = new_id("b").replace("_", "-")
    fsspec.filesystem("s3", skip_instance_cache=True, **endpoint).mkdir(name)
    return TierConfig(f"s3://{name}/kv", storage_options=endpoint)


def app_over(documents, model, prompts=None):
    store = ResponseStore(documents)
    return make_http_app([served(model, prompts)], HttpOptions(), dialects=all_dialects(store))


async def test_a_conversation_and_its_items_outlive_the_process(documents):
    model, prompts = FakeModel(replies(CALL_F)), FakePrompts()
    before = documents()
    async with openai_client(app_over(before, model)) as client:
        first = await client.responses.create(model="demo", input="hi", tools=[F])
        result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "4"}
        model.script = replies("Fine.")
        async with client.responses.stream(model="demo", input=[result], previous_response_id=first.id) as stream:
            second = await stream.get_final_response()
    before.close()
    async with openai_client(app_over(documents(), model, prompts)) as client:
        assert await client.responses.retrieve(first.id) == first
        third = await client.responses.create(model="demo", input="bye", previous_response_id=second.id)
        item = {"type": "item_reference", "id": second.output[0].id}
        await client.responses.create(model="demo", input=[{"role": "user", "content": "?"}, item])
        listed = [one.type async for one in client.responses.input_items.list(third.id, order="asc")]
    roles = [message["role"] for message in prompts.rendered[0][0]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]
    assert prompts.rendered[1][0][1] == {"role": "assistant", "content": "Fine."}
    assert listed[:4] == ["message", "reasoning", "message", "function_call"]
    assert listed[4:] == ["function_call_output", "message", "message"]


async def test_a_deletion_holds_for_every_process_to_come(documents):
    before = documents()
    async with openai_client(app_over(before, FakeModel())) as client:
        kept = await client.responses.create(model="demo", input="hi")
        gone = await client.responses.create(model="demo", input="hi")
        unstored = await client.responses.create(model="demo", input="hi", store=False)
        await client.responses.delete(gone.id)
    before.close()
    async with openai_client(app_over(documents(), FakeModel())) as client:
        assert (await client.responses.retrieve(kept.id)).id == kept.id
        for id in (gone.id, unstored.id):
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(id)
    async with openai_client(app_over(documents(salt="other"), FakeModel())) as client:
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(kept.id)
