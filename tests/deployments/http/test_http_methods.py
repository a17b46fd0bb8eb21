"""Methods and paths that every HTTP client may use, whatever the dialect."""

import json

import pytest

from tests.support.http_fakes import FakeModel, app_of, exchange, http_client, served, sse_events

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/v1/models/demo", "/health", "/health/ready", "/v1/models/nope", "/", "/api/tags"]
)
async def test_head_is_get_without_its_body(path):
    async with http_client(app_of(served(FakeModel()))) as client:
        get, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-length"] == str(len(get.content))


async def test_a_slash_at_the_end_means_nothing():
    async with http_client(app_of(served(FakeModel()))) as client:
        for path in ("/v1/models", "/v1/models/demo", "/health"):
            assert (await client.get(f"{path}/")).json() == (await client.get(path)).json()
        reply = await client.post("/v1/chat/completions/", json={"messages": HI})
        assert (reply.status_code, reply.history) == (200, [])
        assert (await client.get("/")).text == "Ollama is running"  # an empty path has a route of its own


async def test_paths_without_v1_are_the_same():
    async with http_client(app_of(served(FakeModel()))) as client:
        assert (await client.get("/models/")).json() == (await client.get("/v1/models")).json()
        reply = await client.post("/chat/completions", json={"messages": HI})
        assert reply.json()["choices"][0]["message"]["content"]
        assert (await client.post("/completions", json={"prompt": 3})).json()["error"]["param"] == "prompt"
        assert (await client.post("/embeddings", json={})).status_code == 400
        assert (await client.get("/models/nope")).json()["error"]["code"] == "model_not_found"
        assert (await client.get("/chatter")).status_code == 404


async def test_options_tells_the_methods():
    async with http_client(app_of(served(FakeModel()))) as client:
        for path, allow in (("/v1/models", "GET, HEAD, OPTIONS"), ("/v1/chat/completions", "POST, OPTIONS")):
            reply = await client.options(path)
            assert (reply.status_code, reply.headers["allow"], reply.content) == (204, allow, b"")
        assert (await client.options("/v1/nope")).status_code == 404
        assert (await client.delete("/v1/models")).headers["allow"] == "GET, HEAD"


async def test_a_client_of_http_1_0_gets_a_stream_as_one_body():
    app = app_of(served(FakeModel()))

    async def old(scope, receive, send):
        await app({**scope, "http_version": "1.0"}, receive, send)

    async with exchange(old, "/v1/chat/completions", {"messages": HI, "stream": True}) as request:
        status, headers = await request.start()
        message = await request.next()
    assert status == 200
    assert not message["more_body"]
    assert headers["content-length"] == str(len(message["body"]))
    assert json.dumps(sse_events(message["body"])[-1]["choices"][0]["finish_reason"]) == '"stop"'
