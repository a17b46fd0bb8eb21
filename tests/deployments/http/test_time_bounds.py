"""Requests that take too long, and clients that do not read: both end, are cancelled in the engine, and
leave the others alone.
"""

import asyncio
import json
import logging

import pytest

from deployments.http.tenant_client import RequestTimedOut, Timeouts, bounded
from erllama.events import Done, Failed, Progress, Tokens
from tests.support.http_fakes import FakeModel, app_of, exchange, http_client, replies, served, stats

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
SHORT = 0.05
CALLS = {
    "openai": ("/v1/chat/completions", {"messages": HI}),
    "anthropic": ("/v1/messages", {"messages": HI, "max_tokens": 9}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "ollama": ("/api/chat", {"model": "demo", "messages": HI, "stream": False}),
}


def said(text: str) -> Tokens:
    return Tokens(tuple(text.encode()), text)


def hangs(*texts: str):
    async def script(request):
        for text in texts:
            yield [said(text)]
        await asyncio.Event().wait()

    return script


def trickles(request):
    async def script(request):
        while True:
            await asyncio.sleep(SHORT / 5)
            yield [said("a")]

    return script(request)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("bound", "script", "what"),
    [
        ("prefill_timeout_s", hangs(), "the first token"),
        ("token_timeout_s", hangs("a"), "the next token"),
        ("total_timeout_s", hangs(), "the whole reply"),
        ("total_timeout_s", trickles, "the whole reply"),
    ],
)
async def test_what_takes_too_long_is_a_504_and_is_cancelled(name, bound, script, what):
    path, body = CALLS[name]
    model = FakeModel(script)
    async with http_client(app_of(served(model), **{bound: SHORT})) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code == 504
    assert f"{what} took longer than the {SHORT} s" in json.dumps(reply.json())
    if name in ("openai", "responses"):
        assert reply.json()["error"]["code"] == "timeout"
    if name == "anthropic":
        assert reply.json()["error"]["type"] == "timeout_error"
    assert (len(model.cancelled), model.finished) == (1, [])


async def test_in_a_stream_the_error_comes_in_the_dialects_form():
    model = FakeModel(hangs("abc"))
    async with exchange(
        app_of(served(model), token_timeout_s=SHORT), "/v1/messages", CALLS["anthropic"][1] | {"stream": True}
    ) as client:
        assert (await client.start())[0] == 200
        body = await client.rest()
    assert body.rstrip().rpartition(b"\n\n")[2].startswith(b"event: error\n")
    assert b"timeout_error" in body
    assert len(model.cancelled) == 1


async def test_one_choice_that_hangs_ends_all_of_a_request():
    n = 0

    async def script(request):
        nonlocal n
        n += 1
        if n == 1:
            await asyncio.Event().wait()
        async for events in replies("Hello")(request):
            yield events

    model = FakeModel(script)
    async with http_client(app_of(served(model), prefill_timeout_s=SHORT)) as client:
        reply = await client.post("/v1/chat/completions", json={"messages": HI, "n": 3})
    assert reply.status_code == 504
    assert len(model.cancelled) == 1


async def test_embeddings_have_the_bound_of_a_whole_reply():
    class Slow(FakeModel):
        async def embed(self, inputs):
            await asyncio.Event().wait()

    async with http_client(app_of(served(Slow()), total_timeout_s=SHORT)) as client:
        reply = await client.post("/v1/embeddings", json={"input": "a"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")


async def test_the_time_of_a_reader_is_not_that_of_a_token():
    async def lists():
        for text in "abc":
            yield [said(text)]
        yield [Done(stats(type("R", (), {"prompt_tokens": (1,)}), 3), "key")]

    got = []
    async for events in bounded(lists(), Timeouts(prefill_s=SHORT, token_s=SHORT)):
        got += events
        await asyncio.sleep(2 * SHORT)
    assert isinstance(got[-1], Done)
    assert len(got) == 4


async def test_news_of_a_prefill_are_no_token():
    async def lists():
        while True:
            await asyncio.sleep(SHORT / 10)
            yield [Progress(100, 0, 1, None, 1.0)]

    got = [event async for events in bounded(lists(), Timeouts(prefill_s=SHORT, token_s=5)) for event in events]
    assert isinstance(got[-1], Failed)
    assert "the first token" in got[-1].error.message
    assert len(got) > 1


async def test_an_error_of_the_model_passes_as_it_is():
    async def lists():
        yield [said("a")]
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        async for _ in bounded(lists(), Timeouts(token_s=5)):
            pass


async def test_a_stream_that_is_closed_closes_what_it_bounds():
    closed = asyncio.Event()

    async def lists():
        try:
            while True:
                yield [said("a")]
        finally:
            closed.set()

    stream = bounded(lists(), Timeouts(total_s=5))
    assert not isinstance((await anext(stream))[0], Failed)
    await stream.aclose()
    assert closed.is_set()
    assert RequestTimedOut.http_status == 504


# --- clients that do not read ---------------------------------------------------------------------

STREAM = {"messages": HI, "stream": True}


def scope(path: str = "/v1/chat/completions") -> dict:
    return {
        "type": "http", "method": "POST", "path": path, "headers": [], "query_string": b"", "http_version": "1.1", "scheme": "http",
    }  # fmt: skip


def inbox_of(body: dict) -> asyncio.Queue:
    inbox: asyncio.Queue = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": json.dumps(body).encode(), "more_body": False})
    return inbox


def stops_reading(n_pieces: int, sent: list[dict]):
    """A server's `send` whose buffer is full after so many pieces of a body, and stays so."""

    async def send(message):
        sent.append(message)
        if len([one for one in sent if one["type"] == "http.response.body"]) > n_pieces:
            await asyncio.Event().wait()

    return send


@pytest.mark.parametrize("n_pieces", [0, 1, 3])
async def test_a_stream_that_nobody_reads_is_cancelled_and_others_go_on(n_pieces, caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    model = FakeModel(trickles)
    app = app_of(served(model), slow_reader_s=SHORT)
    sent: list[dict] = []
    async with exchange(app, "/v1/chat/completions", STREAM) as reader:
        await reader.start()
        await asyncio.wait_for(app(scope(), inbox_of(STREAM).get, stops_reading(n_pieces, sent)), 5)
        assert len(model.cancelled) == 1
        # the body has no end, on which servers close the connection
        assert all(message["more_body"] for message in sent[1:])
        for _ in range(n_pieces + 5):  # the other one is served meanwhile, and after
            await reader.chunk()
        assert not reader.task.done()
    assert "reason=slow_reader" in caplog.text
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_a_keepalive_that_nobody_reads_ends_the_stream_too():
    model = FakeModel(hangs("a"))
    sent: list[dict] = []
    app = app_of(served(model), slow_reader_s=SHORT, keepalive_s=SHORT)
    await asyncio.wait_for(app(scope(), inbox_of(STREAM).get, stops_reading(2, sent)), 5)
    assert sent[-1]["body"].startswith(b":")
    assert len(model.cancelled) == 1


async def test_a_reader_that_is_slow_but_reads_is_served_to_the_end():
    model = FakeModel(replies("Hello, world!", per_item=1))
    sent: list[dict] = []

    async def send(message):
        await asyncio.sleep(0.08)  # 16 pieces: longer than the bound all together, each far below it
        sent.append(message)

    await app_of(served(model), slow_reader_s=1)(scope(), inbox_of(STREAM).get, send)
    assert not sent[-1].get("more_body")
    assert b"[DONE]" in b"".join(message.get("body", b"") for message in sent)
    assert len(model.finished) == 1


async def test_without_a_bound_a_stream_waits_for_its_reader():
    model = FakeModel(trickles)
    sent: list[dict] = []
    app = app_of(served(model), slow_reader_s=None)
    task = asyncio.create_task(app(scope(), inbox_of(STREAM).get, stops_reading(1, sent)))
    done, _ = await asyncio.wait([task], timeout=3 * SHORT)
    assert not done
    assert model.cancelled == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(model.cancelled) == 1
