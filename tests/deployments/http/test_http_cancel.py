"""A client that goes away frees its sequences at once: at every stage, streamed or not, whoever
tells us.
"""

import asyncio
import json
import logging

import pytest

from erllama.events import Tokens
from tests.support.http_fakes import FakeModel, app_of, exchange, replies, served

pytestmark = pytest.mark.anyio

HI = {"messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def hangs_after(text: str):
    """Says `text`, then never anything more."""

    async def script(request):
        if text:
            yield [Tokens(tuple(text.encode()), text)]
        await asyncio.Event().wait()

    return script


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  (conditions are plain facts of the fakes)
            await asyncio.sleep(0)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("said", ["", "abc"])
@pytest.mark.parametrize("how", ["message", "cancel"])
async def test_a_client_that_leaves_cancels_every_choice(n, stream, said, how, caplog):
    model = FakeModel(hangs_after(said))
    async with exchange(app_of(served(model)), CHAT, HI | {"n": n, "stream": stream}) as client:
        await until(lambda: len(model.requests) == n)
        if stream and said:
            assert (await client.start())[0] == 200
            assert b"abc" in await client.chunk()
        if how == "message":
            client.disconnect()
            await asyncio.wait_for(client.task, 5)
        else:  # what Serve does
            client.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await client.task
        assert len(model.cancelled) == n
        assert model.finished == []
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def test_leaving_during_embeddings_cancels_them():
    cancelled = asyncio.Event()

    class Slow(FakeModel):
        async def embed(self, inputs):
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

    async with exchange(app_of(served(Slow())), "/v1/embeddings", {"input": "a"}) as client:
        client.disconnect()
        await asyncio.wait_for(client.task, 5)
    assert cancelled.is_set()


async def test_leaving_before_the_body_is_complete_starts_nothing():
    model = FakeModel()
    inbox: asyncio.Queue = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": b'{"mess', "more_body": True})
    inbox.put_nowait({"type": "http.disconnect"})
    sent = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
    }

    async def send(message):
        sent.append(message)

    await app_of(served(model))(scope, inbox.get, send)
    assert model.requests == []
    assert sent[0]["status"] == 499


async def test_a_server_that_tells_by_raising_from_send_cancels_too(caplog):
    """ASGI 2.4: `send` raises OSError once the client has gone."""
    model = FakeModel(replies("abcdefgh", per_item=1))
    inbox: asyncio.Queue = asyncio.Queue()
    inbox.put_nowait(
        {
            "type": "http.request",
            "body": b'{"messages":[{"role":"user","content":"x"}],"stream":true}',
            "more_body": False,
        }
    )
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
    }
    n_sent = 0

    async def send(message):
        nonlocal n_sent
        n_sent += 1
        if n_sent > 2:
            raise OSError("gone")

    await app_of(served(model))(scope, inbox.get, send)
    assert len(model.cancelled) == 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_lost_transport_counts_as_a_client_that_left():
    model = FakeModel(hangs_after("abc"))
    received = 0

    async def receive():
        nonlocal received
        received += 1
        if received == 1:
            return {"type": "http.request", "body": b'{"messages":[{"role":"user","content":"x"}]}', "more_body": False}
        raise RuntimeError("proxy died")

    async def send(message):
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "headers": [],
        "query_string": b"",
        "http_version": "1.1",
        "scheme": "http",
    }
    await asyncio.wait_for(app_of(served(model))(scope, receive, send), 5)
    assert len(model.requests) == len(model.cancelled) == 1


async def test_a_silent_stream_starts_after_the_interval_and_is_kept_alive():
    go = asyncio.Event()

    async def script(request):
        await go.wait()
        async for item in replies("done")(request):
            yield item

    async with exchange(app_of(served(FakeModel(script)), keepalive_s=0.01), CHAT, HI | {"stream": True}) as client:
        status, headers = await client.start()
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert await client.chunk() == b": keep-alive\n\n"
        assert await client.chunk() == b": keep-alive\n\n"
        go.set()
        rest = (await client.rest()).replace(b": keep-alive\n\n", b"")
    assert rest.startswith(b'data: {"id":"chatcmpl-')
    assert b'"content":"done"' in rest
    assert rest.endswith(b"data: [DONE]\n\n")


async def test_nothing_follows_the_final_message_however_long_a_client_takes_it():
    sent = []

    async def send(message):
        if message["type"] == "http.response.body" and not message.get("more_body"):
            await asyncio.sleep(0.1)  # keep-alives become due
        sent.append(message)

    body = json.dumps(HI | {"stream": True}).encode()
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():
        return next(messages, None) or await asyncio.Event().wait()

    headers = [(b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "headers": headers, "query_string": b"",
        "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    await asyncio.wait_for(app_of(served(FakeModel(replies("done"))), keepalive_s=0.01)(scope, receive, send), 5)
    assert [message.get("more_body") for message in sent[-2:]] == [True, False]
    assert sent[-1]["body"] == b""


async def test_an_error_after_a_keep_alive_is_an_event():
    from erllama.errors import QueueFull

    go = asyncio.Event()

    async def script(request):
        await go.wait()
        raise QueueFull("full")
        yield

    async with exchange(app_of(served(FakeModel(script)), keepalive_s=0.01), CHAT, HI | {"stream": True}) as client:
        assert (await client.start())[0] == 200
        assert await client.chunk() == b": keep-alive\n\n"
        go.set()
        rest = (await client.rest()).replace(b": keep-alive\n\n", b"")
    assert rest.startswith(b'data: {"error": {"message": "full", "type": "rate_limit_error"')
    assert rest.endswith(b"\n\ndata: [DONE]\n\n")


async def test_a_client_that_leaves_during_keep_alives_cancels():
    model = FakeModel(hangs_after(""))
    async with exchange(app_of(served(model), keepalive_s=0.01), CHAT, HI | {"stream": True}) as client:
        await client.start()
        client.disconnect()
        await asyncio.wait_for(client.task, 5)
    assert len(model.cancelled) == 1


async def test_nothing_is_sent_before_the_first_token_or_the_interval():
    model = FakeModel(hangs_after(""))
    async with exchange(app_of(served(model)), CHAT, HI | {"stream": True}) as client:
        await until(lambda: model.requests)
        await asyncio.sleep(0)
        assert client.silent


async def test_one_item_is_one_message_however_many_tokens():
    model = FakeModel(replies("x" * 100, per_item=100))
    async with exchange(app_of(served(model)), CHAT, HI | {"stream": True}) as client:
        await client.start()
        assert b'"content":"' + b"x" * 100 + b'"' in await client.chunk()
        assert b'"finish_reason":"stop"' in await client.chunk()
        assert await client.chunk() == b"data: [DONE]\n\n"
        assert await client.rest() == b""
