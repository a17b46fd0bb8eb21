"""Responses in the background: they go on without a connection, are polled, streamed from any event
on and cancelled; another ingress goes on with what a replica keeps.
"""

import asyncio
import json

import pytest

from deployments.dialects.responses.background import BackgroundReplies
from erllama.errors import EngineStopped
from erllama.events import FinishReason
from tests.support.http_fakes import app_of, exchange, http_client, openai_client, replies, served
from tests.support.recorded_model import RecordedModel

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
BODY = {"model": "demo", "input": "hi", "background": True}
ON = {"resume_grace_s": 60.0}


def app_with(model, **options):
    return app_of(served(model), **{**ON, **options})


def numbers_of(data: bytes) -> list[int]:
    lines = [line for line in data.decode().splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: "))["sequence_number"] for line in lines]


async def until_ended(http, id):
    """The response once it has ended: its stream is read to the end."""
    await http.get(f"{PATH}/{id}?stream=true")
    return (await http.get(f"{PATH}/{id}")).json()


async def test_the_answer_is_there_at_once_and_the_response_follows():
    model = RecordedModel(replies("Hello, world!"), hold_at=1)
    async with http_client(app_with(model)) as http:
        queued = (await http.post(PATH, json=BODY)).json()
        assert (queued["status"], queued["background"], queued["output"]) == ("queued", True, [])
        await model.asked(1)
        running = (await http.get(f"{PATH}/{queued['id']}")).json()
        assert (running["id"], running["status"]) == (queued["id"], "in_progress")
        model.released.set()
        done = await until_ended(http, queued["id"])
        assert done["status"] == "completed"
        assert done["output"][0]["content"][0]["text"] == "Hello, world!"
        again = (await http.post(PATH, json={"model": "demo", "input": "x", "previous_response_id": done["id"]})).json()
        assert again["status"] == "completed"


async def test_a_poll_tells_what_there_is():
    model = RecordedModel(replies("Hello, world!"), hold_at=2)
    async with http_client(app_with(model)) as http:
        id = (await http.post(PATH, json=BODY)).json()["id"]
        async with exchange_get(http, id) as lines:
            async for line in lines:
                if '"delta":"o, w"' in line:
                    break
        (item,) = (await http.get(f"{PATH}/{id}")).json()["output"]
        assert (item["status"], item["content"][0]["text"]) == ("in_progress", "Hello, w")
        model.released.set()
        await until_ended(http, id)


def exchange_get(http, id):
    """httpx hands a body over only when it is complete, so the stream is read from the app itself."""
    app = http._transport.app

    class Lines:
        async def __aenter__(self):
            self.inbox, self.outbox = asyncio.Queue(), asyncio.Queue()
            scope = {
                "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
                "scheme": "http", "path": f"{PATH}/{id}", "raw_path": b"", "query_string": b"stream=true", "root_path": "",
                "headers": [], "server": ("t", 80), "client": ("c", 1),
            }  # fmt: skip
            self.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})
            self.task = asyncio.create_task(app(scope, self.inbox.get, self.outbox.put))
            return self.lines()

        async def lines(self):
            while True:
                message = await asyncio.wait_for(self.outbox.get(), 5)
                for line in message.get("body", b"").decode().splitlines():
                    yield line

        async def __aexit__(self, *_):
            self.inbox.put_nowait({"type": "http.disconnect"})
            await self.task

    return Lines()


async def test_a_stream_that_breaks_leaves_the_response_alone_and_goes_on_behind_every_event():
    model = RecordedModel(replies("Hello, world!"), hold_at=1)
    app = app_with(model)
    async with exchange(app, PATH, BODY | {"stream": True}) as client:
        await client.start()
        first = await client.chunk()
        client.disconnect()
        await client.task
    id = json.loads(first.decode().split("data: ")[1].splitlines()[0])["response"]["id"]
    model.released.set()
    async with http_client(app) as http:
        whole = (await http.get(f"{PATH}/{id}?stream=true")).content
        numbers = numbers_of(whole)
        assert numbers == list(range(len(numbers)))
        assert whole.startswith(first)
        events = [event + b"\n\n" for event in whole.split(b"\n\n")[:-1]]
        for after in numbers:
            rest = await http.get(f"{PATH}/{id}", params={"stream": "true", "starting_after": after})
            assert rest.content == b"".join(events[after + 1 :])
        same = await http.post(PATH, content=json.dumps(BODY | {"stream": True}), headers={"Last-Event-ID": f"{id}.3"})
        assert same.content == b"".join(events[3:])
    assert (model.runs, model.cancelled) == (1, [])


async def test_another_ingress_goes_on_with_what_the_replica_keeps():
    """The first one is killed: its task is gone, and so is all that it knew."""
    model = RecordedModel(replies("Hello, world!"), hold_at=2)
    first, second = app_with(model), app_with(model)
    async with http_client(first) as http:
        id = (await http.post(PATH, json=BODY)).json()["id"]
        await model.asked(1)
        running = [task for task in asyncio.all_tasks() if "BackgroundReply" in task.get_coro().__qualname__]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    model.released.set()
    async with http_client(second) as http:
        assert (await http.get(f"{PATH}/{id}")).json()["id"] == id
        done = await until_ended(http, id)
        assert done["output"][0]["content"][0]["text"] == "Hello, world!"
        assert len(running) == 1
        assert model.runs == 2


async def test_two_ingresses_tell_the_same_of_one_response():
    model = RecordedModel(replies("Hello, world!"), hold_at=1)
    async with http_client(app_with(model)) as one, http_client(app_with(model)) as two:
        id = (await one.post(PATH, json=BODY)).json()["id"]
        await model.asked(1)
        assert (await two.get(f"{PATH}/{id}")).json()["status"] == "in_progress"
        model.released.set()
        streams = [(await http.get(f"{PATH}/{id}?stream=true")).content for http in (one, two)]
        bodies = [(await http.get(f"{PATH}/{id}")).json() for http in (one, two)]
    assert streams[0] == streams[1]
    assert bodies[0] == bodies[1]
    assert model.runs == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_cancel_ends_it_wherever_it_comes_and_what_was_made_stays(elsewhere):
    model = RecordedModel(replies("Hello, world!"), hold_at=2)
    one, two = app_with(model), app_with(model)
    async with http_client(one) as http, http_client(two if elsewhere else one) as other:
        id = (await http.post(PATH, json=BODY)).json()["id"]
        async with exchange_get(http, id) as lines:
            async for line in lines:
                if '"delta":"o, w"' in line:
                    break
        answer = await other.post(f"{PATH}/{id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        if not elsewhere:
            assert answer.json()["output"][0]["content"][0]["text"] == "Hello, w"
        assert (await other.post(f"{PATH}/{id}/cancel")).json() == answer.json()
        assert (await other.get(f"{PATH}/{id}")).json() == answer.json()
        assert model.recordings.n_running == 0


async def test_a_failure_is_told_and_kept():
    model = RecordedModel(replies("Hello", error=EngineStopped("gone")))
    async with http_client(app_with(model)) as http:
        id = (await http.post(PATH, json=BODY)).json()["id"]
        stream = (await http.get(f"{PATH}/{id}?stream=true")).content
        failed = (await http.get(f"{PATH}/{id}")).json()
    assert stream.rstrip().split(b"\n")[-2] == b"event: response.failed"
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")


async def test_one_that_is_cut_off_is_incomplete():
    model = RecordedModel(replies("Hello, world!", reason=FinishReason.LENGTH))
    async with http_client(app_with(model)) as http:
        id = (await http.post(PATH, json=BODY | {"max_output_tokens": 4})).json()["id"]
        done = await until_ended(http, id)
    assert (done["status"], done["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")


async def test_a_deleted_response_ends_and_is_gone():
    model = RecordedModel(replies("Hello, world!"), hold_at=1)
    async with http_client(app_with(model)) as http:
        id = (await http.post(PATH, json=BODY)).json()["id"]
        await model.asked(1)
        assert (await http.delete(f"{PATH}/{id}")).json()["deleted"]
        assert (await http.get(f"{PATH}/{id}")).status_code == 404
    assert model.recordings.n_running == 0


async def test_the_official_client_polls_streams_and_cancels():
    model = RecordedModel(replies("Hello, world!"))
    async with openai_client(app_with(model)) as client:
        stream = await client.responses.create(model="demo", input="hi", background=True, stream=True)
        events = [event async for event in stream]
        id = events[0].response.id
        rest = await client.responses.retrieve(id, stream=True, starting_after=4)
        assert [event.sequence_number async for event in rest] == list(range(5, len(events)))
        assert (await client.responses.retrieve(id)).output_text == "Hello, world!"
        queued = await client.responses.create(model="demo", input="hi", background=True)
        assert queued.status == "queued"
        assert (await client.responses.cancel(queued.id)).status in ("cancelled", "completed")


@pytest.mark.parametrize(
    ("query", "status", "param"),
    [("stream=true&starting_after=x", 400, "starting_after"), ("stream=true&starting_after=-1", 400, "starting_after")],
)
async def test_what_cannot_be_is_refused(query, status, param):
    async with http_client(app_with(RecordedModel())) as http:
        id = (await http.post(PATH, json=BODY)).json()["id"]
        answer = await http.get(f"{PATH}/{id}?{query}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
        unknown = await http.get(f"{PATH}/resp_x?stream=true")
        assert unknown.status_code == 404
        refused = await http.post(PATH, json=BODY | {"store": False})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background")


async def test_another_tenant_finds_nothing_at_any_ingress():
    model = RecordedModel(replies("Hello, world!"), hold_at=1)
    keys = ({"key": "1", "name": "a"}, {"key": "2", "name": "b"})
    own, other = {"Authorization": "Bearer 1"}, {"Authorization": "Bearer 2"}
    async with http_client(app_with(model, api_keys=keys)) as one, http_client(app_with(model, api_keys=keys)) as two:
        id = (await one.post(PATH, json=BODY, headers=own)).json()["id"]
        await model.asked(1)
        for http in (one, two):
            for path in (f"{PATH}/{id}", f"{PATH}/{id}?stream=true"):
                assert (await http.get(path, headers=other)).status_code == 404
            assert (await http.post(f"{PATH}/{id}/cancel", headers=other)).status_code == 404
            assert (await http.delete(f"{PATH}/{id}", headers=other)).status_code == 404
            assert (await http.get(f"{PATH}/{id}", headers=own)).json()["status"] == "in_progress"
        model.released.set()
        for http in (one, two):
            await http.get(f"{PATH}/{id}?stream=true", headers=own)
            assert (await http.get(f"{PATH}/{id}", headers=own)).json()["status"] == "completed"


class Ended:
    def __init__(self, id):
        self.id, self.ended, self.n_bytes = id, True, 600

    def start(self, when_ended):
        pass


async def test_what_has_ended_is_bounded():
    async def adopt(id):
        raise AssertionError

    kept = BackgroundReplies(adopt, 60.0, max_bytes=1300)
    for name in "abc":
        kept.start(Ended(name))
    assert [name in kept for name in "abc"] == [False, True, True]
