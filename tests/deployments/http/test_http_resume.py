"""Streams that are cut and go on, through HTTP: whatever event a client saw last, it gets the next
one, and all of it together is the stream as it would have been, byte for byte.
"""

import asyncio
import json
import re

import pytest

from erllama.chat.tool_formats.json_format import HERMES
from erllama.errors import EngineStopped
from tests.support.http_fakes import (
    FakeModel,
    FakePrompts,
    anthropic_client,
    app_of,
    exchange,
    http_client,
    openai_client,
    replies,
    served,
)
from tests.support.recorded_model import RecordedModel

pytestmark = pytest.mark.anyio

CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Ulm"}}\n</tool_call>'
TEXT = f"<think>Well, let me see.</think>It rains \u2014 so \U0001f327.\n{CALL}"
MESSAGES = [{"role": "user", "content": "hi"}]
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
BODIES = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "tools": [{"type": "function", "function": FUNCTION}], "stream_options": {"include_usage": True}}),
    "logprobs": ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 1}),
    "completion": ("/v1/completions", {"prompt": "hi", "echo": True, "max_tokens": 999}),
    "native": ("/completion", {"prompt": "hi", "n_predict": 999, "n_probs": 1}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "max_tokens": 999, "tools": [{"name": "f", "input_schema": FUNCTION["parameters"]}]}),
    "response": ("/v1/responses", {"input": "hi", "tools": [{"type": "function", **FUNCTION}]}),
}  # fmt: skip
DIALECTS = [pytest.param(*case, id=name) for name, case in BODIES.items()]
ON = {"resume_grace_s": 60.0}


def app_with(model, **options):
    return app_of(served(model, FakePrompts(tool_format=HERMES)), **{**ON, **options})


def streamed(body):
    return {"model": "demo", "stream": True, **body}


def events_of(data: bytes) -> list[bytes]:
    return [event + b"\n\n" for event in data.split(b"\n\n")[:-1]]


def last_id(events: list[bytes]) -> bytes:
    found = re.match(rb"id: (\S+)\n", events[-1])
    assert found, events[-1]
    return found[1]


async def resumed(app, path, body, last: bytes):
    """The rest of a stream, behind the event `last`."""
    async with http_client(app, **{"Last-Event-ID": last.decode()}) as http:
        return await http.post(path, content=json.dumps(streamed(body)))


async def cut(app, path, body, n: int) -> list[bytes]:
    """What a client has that leaves with its `n`th event, which must have left by then."""
    async with exchange(app, path, streamed(body)) as client:
        assert (await client.start())[0] == 200
        data = b""
        while data.count(b"\n\n") < n:
            data += await client.chunk()
        client.disconnect()
        await client.task
    return events_of(data)[:n]


@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_a_stream_that_has_ended_goes_on_behind_every_event(path, body):
    model = RecordedModel(replies(TEXT, per_item=3))
    app = app_with(model)
    async with http_client(app) as http:
        whole = events_of((await http.post(path, content=json.dumps(streamed(body)))).content)
    stream = last_id(whole).rpartition(b".")[0]
    assert [last_id([event]) for event in whole] == [b"%b.%d" % (stream, n) for n in range(1, len(whole) + 1)]
    assert len(whole) > 10
    for n in range(len(whole) + 1):
        answer = await resumed(app, path, body, b"%b.%d" % (stream, n))
        assert (answer.status_code, answer.content) == (200, b"".join(whole[n:])), n
    assert model.runs == 1, "nothing was computed again"


@pytest.mark.parametrize("other_reader", [False, True], ids=["stopped", "running"])
@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_a_stream_that_was_cut_in_the_middle_goes_on(path, body, other_reader):
    """Alone, so that its request is cancelled and goes on; and while somebody else reads it."""
    for n_items in range(5, 26, 4):
        model = RecordedModel(replies(TEXT, per_item=3), hold_at=n_items)
        app = app_with(model)
        seen = await cut(app, path, body, 1) if not other_reader else []
        if other_reader:
            async with exchange(app, path, streamed(body)) as other:
                await other.start()
                seen = events_of(await other.chunk())
                rest = asyncio.create_task(resumed(app, path, body, last_id(seen)))
                await asyncio.sleep(0)
                model.released.set()
                answer, remaining = await rest, await other.rest()
            assert answer.content == remaining
        else:
            model.released.set()
            answer = await resumed(app, path, body, last_id(seen))
        assert answer.status_code == 200
        whole = await resumed(app, path, body, last_id(seen).rpartition(b".")[0] + b".0")
        assert b"".join(seen) + answer.content == whole.content
        assert model.runs == (1 if other_reader else 2)


@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_one_that_is_cut_at_every_event_and_goes_on_each_time_is_whole(path, body):
    model = RecordedModel(replies(TEXT, per_item=3))
    app = app_with(model)
    seen = await cut(app, path, body, 1)
    n_reads = 0
    while True:
        headers = [(b"last-event-id", last_id(seen))]
        async with exchange(app, path, streamed(body), headers) as client:
            assert (await client.start())[0] == 200
            more = await client.chunk()
            client.disconnect()
            await client.task
        if not more:
            break
        seen += events_of(more)[:1]
        n_reads += 1
    whole = await resumed(app, path, body, last_id(seen).rpartition(b".")[0] + b".0")
    assert b"".join(seen) == whole.content
    assert n_reads > 10


async def test_signs_of_life_have_no_ids_and_do_not_count():
    path, body = BODIES["response"]
    model = RecordedModel(replies("Hello"), hold_at=0)
    async with exchange(app_with(model, keepalive_s=0.01), path, streamed(body)) as client:
        await client.start()
        silent = events_of(b"".join([await client.chunk() for _ in range(3)]))
        model.released.set()
        rest = events_of(await client.rest())
    begun, life = silent[:2], silent[2:]
    assert [event.splitlines()[1] for event in begun] == [b"event: response.created", b"event: response.in_progress"]
    assert [event.splitlines()[0] for event in life] == [b"event: response.in_progress"] * len(life)
    numbered = [event for event in begun + rest if event.startswith(b"id: ")]
    assert [int(last_id([event]).rpartition(b".")[2]) for event in numbered] == list(range(1, len(numbered) + 1))
    again = await resumed(app_with(model), path, body, last_id(numbered).rpartition(b".")[0] + b".0")
    assert again.content == b"".join(numbered)


async def test_a_stream_that_fails_has_an_error_without_an_id():
    path, body = BODIES["chat"]
    model = RecordedModel(replies("Hello", error=EngineStopped("gone")))
    async with http_client(app_with(model)) as http:
        *good, error, done = events_of((await http.post(path, content=json.dumps(streamed(body)))).content)
    assert last_id(good)
    assert error.startswith(b'data: {"error"')
    assert done == b"data: [DONE]\n\n"


# --- refusals -------------------------------------------------------------------------------------


async def begun(app, name="chat", **more):
    path, body = BODIES[name]
    async with http_client(app) as http:
        return last_id(events_of((await http.post(path, content=json.dumps(streamed(body | more)))).content))


@pytest.mark.parametrize("name", ["chat", "messages", "response"])
async def test_what_is_not_kept_is_a_404_in_the_dialects_shape_and_nothing_is_generated(name):
    model = RecordedModel()
    path, body = BODIES[name]
    answer = await resumed(app_with(model), path, body, b"req-gone.4")
    error = answer.json()["error"]
    assert answer.status_code == 404
    assert "Last-Event-ID" in error["message"]
    assert error["type"] == "not_found_error" if name == "messages" else error["code"] == "stream_not_resumable"
    assert model.requests == []


async def test_after_the_grace_time_a_stream_is_gone():
    now = 0.0
    model = RecordedModel()
    model.recordings._clock = lambda: now
    app = app_with(model)
    last = await begun(app)
    now = 59.0
    assert (await resumed(app, *BODIES["chat"], last)).status_code == 200
    now = 120.0
    assert (await resumed(app, *BODIES["chat"], last)).status_code == 404


async def test_another_body_is_refused():
    app = app_with(RecordedModel())
    last = await begun(app)
    path, body = BODIES["chat"]
    for other in ({**body, "temperature": 1}, {**body, "messages": [*MESSAGES, *MESSAGES]}):
        answer = await resumed(app, path, other, last)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "stream_differs")
    assert (await resumed(app, *BODIES["logprobs"], last)).status_code == 409


async def test_another_key_is_refused_as_well():
    app = app_with(RecordedModel(), api_keys=("one", "two"))
    path, body = BODIES["chat"]
    content = json.dumps(streamed(body))
    async with http_client(app) as http:
        whole = await http.post(path, content=content, headers={"Authorization": "Bearer one"})
        last = last_id(events_of(whole.content)).decode()
        for key, status in (("one", 200), ("two", 409)):
            headers = {"Authorization": f"Bearer {key}", "Last-Event-ID": last}
            assert (await http.post(path, content=content, headers=headers)).status_code == status


async def test_tenants_share_neither_streams_nor_replies():
    model = RecordedModel(replies("Hello"), hold_at=1)
    app = app_with(model, api_keys=({"key": "1", "name": "a"}, {"key": "2", "name": "b"}))
    path, body = BODIES["chat"]
    content = json.dumps(streamed(body) | {"seed": 3})
    async with http_client(app) as http:
        headers = [{"Authorization": f"Bearer {key}"} for key in (1, 2, 1)]
        asked = [asyncio.create_task(http.post(path, content=content, headers=one)) for one in headers]
        await model.asked(3)
        model.released.set()
        wholes = [await one for one in asked]
        assert model.runs == 2
        last = last_id(events_of(wholes[0].content)).decode()
        for one, status in zip(headers[:2], (200, 404), strict=True):
            assert (await http.post(path, content=content, headers=one | {"Last-Event-ID": last})).status_code == status


@pytest.mark.parametrize("last", [b"x", b".4", b"req-1.", b"req-1.-4", "req.\u0663".encode("latin-1", "replace")])
async def test_an_id_that_is_none_is_refused(last):
    answer = await resumed(app_with(RecordedModel()), *BODIES["chat"], last)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


async def test_several_choices_have_no_ids():
    path, body = BODIES["chat"]
    async with http_client(app_with(RecordedModel())) as http:
        assert b"id: req" not in (await http.post(path, json=streamed(body | {"n": 2}))).content


async def test_a_reply_in_one_body_cannot_go_on():
    app = app_with(RecordedModel())
    path, body = BODIES["chat"]
    async with http_client(app) as http:
        content = streamed(body) | {"stream": False, "stream_options": None}
        answer = await http.post(path, json=content, headers={"Last-Event-ID": "req-1.4"})
    assert answer.status_code == 404


async def test_without_a_grace_time_there_are_no_ids_and_nothing_is_kept():
    model = RecordedModel()
    app = app_with(model, resume_grace_s=0.0)
    path, body = BODIES["chat"]
    async with http_client(app) as http:
        assert b"id: req" not in (await http.post(path, content=json.dumps(streamed(body)))).content
    assert len(model.recordings) == 0
    assert (await resumed(app, path, body, b"req-1.4")).status_code == 404


async def test_identical_requests_of_ollamas_dialect_join():
    model = RecordedModel(replies("Hello"), hold_at=1)
    body = {"model": "demo", "messages": MESSAGES, "options": {"temperature": 0}}
    async with http_client(app_with(model)) as http:
        asked = [asyncio.create_task(http.post("/api/chat", json=body | {"stream": on})) for on in (True, False)]
        await model.asked(2)
        model.released.set()
        assert [(await one).status_code for one in asked] == [200, 200]
    assert model.runs == 1


async def test_ollamas_lines_have_no_ids():
    async with http_client(app_with(RecordedModel())) as http:
        lines = (await http.post("/api/chat", json={"model": "demo", "messages": MESSAGES})).text.splitlines()
    assert all(json.loads(line) for line in lines)


# --- clients --------------------------------------------------------------------------------------


async def test_official_clients_read_events_with_ids():
    app = app_with(FakeModel(replies("Hello, world!")))
    async with openai_client(app) as client:
        stream = await client.chat.completions.create(model="demo", messages=MESSAGES, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello, world!"
        async with client.responses.stream(model="demo", input="hi") as events:
            async for _ in events:
                pass
            assert (await events.get_final_response()).output_text == "Hello, world!"
    async with (
        anthropic_client(app) as client,
        client.messages.stream(model="demo", messages=MESSAGES, max_tokens=99) as stream,
    ):
        assert await stream.get_final_text() == "Hello, world!"


# --- joining --------------------------------------------------------------------------------------

SESSION = {"x-session-id": "s"}


@pytest.mark.parametrize(
    ("first", "second", "fields", "joined"),
    [
        ({}, {}, {"temperature": 0}, True),
        ({}, {}, {"seed": 3}, True),
        ({}, {}, {}, False),
        (SESSION, SESSION, {}, False),
        ({}, {}, {"seed": 3, "n": 2}, True),
        ({"Idempotency-Key": "a"}, {"Idempotency-Key": "a"}, {}, True),
        ({"Idempotency-Key": "a"}, {"Idempotency-Key": "a"}, {"n": 2}, True),
        ({"Idempotency-Key": "a"}, {"Idempotency-Key": "b"}, {}, False),
        ({"x-stainless-retry-count": "0", **SESSION}, {"x-stainless-retry-count": "1", **SESSION}, {}, True),
        ({"x-stainless-retry-count": "0", **SESSION}, {"x-stainless-retry-count": "0", **SESSION}, {}, False),
        ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}, {}, False),
        ({"x-stainless-retry-count": "0", **SESSION}, {"x-stainless-retry-count": "1", "x-session-id": "t"}, {}, False),
        ({"x-request-id": "a"}, {"x-request-id": "a"}, {}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_which_requests_have_one_reply(first, second, fields, joined, stream):
    model = RecordedModel(replies("Hello"), hold_at=1)
    app = app_with(model)
    body = {"model": "demo", "messages": MESSAGES, "stream": stream, **fields}
    async with http_client(app) as http:
        asked = [
            asyncio.create_task(http.post("/v1/chat/completions", json=body, headers=headers))
            for headers in (first, second)
        ]
        n = fields.get("n", 1)
        await model.asked(2 * n)
        model.released.set()
        answers = [await one for one in asked]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert model.runs == (n if joined else 2 * n)


@pytest.mark.parametrize(
    "other",
    [
        {"temperature": 0.5, "seed": 3},
        {"messages": [{"role": "user", "content": "ho"}]},
        {"stop": ["x"]},
        {"max_tokens": 7},
        {"logprobs": True},
        {"seed": 4},
        {"response_format": {"type": "json_object"}},
    ],
    ids=str,
)
async def test_what_decides_the_reply_decides_who_joins(other):
    model = RecordedModel(replies("Hello"), hold_at=1)
    app = app_with(model)
    body = {"model": "demo", "messages": MESSAGES, "seed": 3}
    async with http_client(app) as http:
        bodies = [body, body | other, body | {"user": "who asks does not", "metadata": {}}]
        asked = [asyncio.create_task(http.post("/v1/chat/completions", json=one)) for one in bodies]
        await model.asked(3)
        model.released.set()
        for one in asked:
            assert (await one).status_code == 200
    assert model.runs == 2
