"""The HTTP code serves any dialect: a second one, made here, is like OpenAI's in nothing that a
client sees.
"""

import ast
import asyncio
import json
from pathlib import Path

import pytest
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

import deployments.http
from deployments.dialects.openai.routes import OpenAI
from deployments.generation.reply import read_body, streamed_reply, whole_replies
from deployments.http.dialect import BEARER, NDJSON, SSE, Dialect, KeyHeader, choose_dialect, own_routes
from deployments.http.middleware import engine_id
from deployments.http.options import HttpOptions
from deployments.ingress.http_app import make_http_app
from erllama.errors import DecodeFailed, EngineStopped, QueueFull
from erllama.events import Done, Tokens
from erllama.request import GenerationRequest, Prompt
from tests.support.http_fakes import FakeModel, exchange, http_client, replies, served

pytestmark = pytest.mark.anyio

SAY = "/tiny/say"


def lines(body: bytes):
    return [json.loads(line) for line in body.splitlines()]


class TinyReply:
    """Lines of text."""

    def feed(self, index, events):
        out = b""
        for event in events:
            if isinstance(event, Tokens):
                out += NDJSON.frame(json.dumps({"say": event.text}).encode(), "")
            elif isinstance(event, Done):
                out += NDJSON.frame(json.dumps({"tokens": event.stats.completion_tokens}).encode(), "")
        return out

    def close(self):
        return NDJSON.frame(b'{"over":true}', "")

    def fail(self, error, request_id):
        return NDJSON.frame(Tiny().error_body(error, request_id), "")

    def keepalive(self):
        return NDJSON.keepalive


class Tiny(Dialect):
    """Keys in a header of their own, errors as `fault`, lines of JSON, 529 where others say 503."""

    prefixes = ("/tiny", "/v1/tiny")
    framing = NDJSON
    keys = (KeyHeader("X-Tiny-Key"), BEARER)

    def routes(self, models, options):
        router = APIRouter()

        @router.post(SAY)
        async def say(request: Request):
            body = json.loads(await read_body(request, options.max_body_bytes))
            model = models.of(request).resolve(None)
            asked = GenerationRequest(request_id=engine_id(request), prompt=Prompt.of(body["text"].encode()))
            if not body.get("stream"):
                [reply] = await whole_replies(request, model, [asked])
                return JSONResponse({"said": reply.text})
            return streamed_reply(request, model, [asked], TinyReply(), keepalive_s=options.keepalive_s)

        return router

    def error_body(self, error, request_id):
        return json.dumps({"fault": error.message, "request": request_id}).encode()

    def status(self, error):
        return 529 if error.http_status == 503 else error.http_status


def app_of(model, *dialects, **options):
    return make_http_app([served(model)], HttpOptions(**options), dialects=dialects or (OpenAI(), Tiny()))


def fault(reply):
    """The status and the message of an error, which must have the shape of the tiny dialect."""
    body = reply.json()
    assert set(body) == {"fault", "request"}
    assert body["request"] == reply.headers["x-request-id"]
    return reply.status_code, body["fault"]


async def test_a_whole_reply_and_a_stream_of_lines():
    async with http_client(app_of(FakeModel(replies("hello", per_item=5)))) as client:
        whole = await client.post(SAY, json={"text": "hi"})
        stream = await client.post(SAY, json={"text": "hi", "stream": True})
    assert whole.json() == {"said": "hello"}
    assert stream.headers["content-type"] == "application/x-ndjson"
    assert lines(stream.content) == [{"say": "hello"}, {"tokens": 5}, {"over": True}]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_has_the_dialects_status_and_shape(stream):
    for error, status in ((EngineStopped("bye", retry_after_s=7), 529), (QueueFull("full", retry_after_s=7), 429)):
        async with http_client(app_of(FakeModel(replies("", error=error)))) as client:
            reply = await client.post(SAY, json={"text": "hi", "stream": stream})
        assert fault(reply) == (status, error.message)
        assert reply.headers["retry-after"] == "7"


async def test_an_error_in_a_running_stream_is_the_writers():
    async with http_client(app_of(FakeModel(replies("abcd", error=DecodeFailed("lost"))))) as client:
        reply = await client.post(SAY, json={"text": "hi", "stream": True}, headers={"x-request-id": "r1"})
    assert (reply.status_code, lines(reply.content)) == (200, [{"say": "abcd"}, {"fault": "lost", "request": "r1"}])


async def test_what_no_route_takes_is_refused_in_the_shape_of_the_paths_dialect():
    async with http_client(app_of(FakeModel(), max_body_bytes=10)) as client:
        for path in ("/tiny", "/tiny/nope", "/v1/tiny/nope"):
            assert fault(await client.get(path))[0] == 404
        wrong_method = await client.get(SAY)
        assert fault(wrong_method)[0] == 405
        assert wrong_method.headers["allow"] == "POST"
        assert fault(await client.post(SAY, json={"text": "too long for it"}))[0] == 413
        for path in ("/v1/nope", "/nope", "/tinyhouse"):
            reply = await client.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize("dialects", [(OpenAI(), Tiny()), (Tiny(), OpenAI())])
async def test_the_first_dialect_answers_for_paths_that_nobody_claims(dialects):
    async with http_client(app_of(FakeModel(), *dialects)) as client:
        assert set((await client.get("/nope")).json()) == (
            {"error"} if isinstance(dialects[0], OpenAI) else {"fault", "request"}
        )
        assert set((await client.get("/v1/nope")).json()) == {"error"}
        assert set((await client.get("/tiny/nope")).json()) == {"fault", "request"}


async def test_a_bug_is_500_in_the_dialects_shape_without_its_words():
    async with http_client(app_of(FakeModel())) as client:
        reply = await client.post(SAY, content=b"no json")
    assert fault(reply)[0] == 500
    assert "JSONDecodeError" not in reply.text


async def test_keys_stand_where_the_dialect_says():
    app = app_of(FakeModel(), api_keys=("k1",))
    async with http_client(app) as client:
        for headers in (
            {"x-tiny-key": "k1"},
            {"authorization": "Bearer k1"},
            {"x-tiny-key": "wrong", "authorization": "bearer k1"},
        ):
            assert (await client.post(SAY, json={"text": "hi"}, headers=headers)).status_code == 200
        for headers in ({}, {"x-tiny-key": ""}, {"x-tiny-key": "Bearer k1"}, {"authorization": "k1"}):
            refused = await client.post(SAY, json={"text": "hi"}, headers=headers)
            assert fault(refused) == (401, "Incorrect or missing API key. Send it as 'X-Tiny-Key: <key>'.")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/v1/models", headers={"x-tiny-key": "k1"})).status_code == 401
        assert (await client.get("/v1/models", headers={"authorization": "Bearer k1"})).status_code == 200


async def test_a_dialect_whose_keys_have_no_scheme_names_none():
    class Bare(Tiny):
        keys = (KeyHeader("X-Tiny-Key"),)

    async with http_client(app_of(FakeModel(), Bare(), api_keys=("k1",))) as client:
        refused = await client.get("/tiny/nope")
    assert refused.status_code == 401
    assert "www-authenticate" not in refused.headers


async def test_a_framing_without_keepalive_stays_silent_and_keeps_its_status_open():
    go = asyncio.Event()
    ticks = 0

    class Counting(TinyReply):
        def keepalive(self):
            nonlocal ticks
            ticks += 1
            if ticks == 3:
                go.set()
            return super().keepalive()

    class Silent(Tiny):
        def routes(self, models, options):
            router = APIRouter()

            @router.post(SAY)
            async def say(request: Request):
                await read_body(request, options.max_body_bytes)
                asked = GenerationRequest(request_id="r", prompt=Prompt.of((1,)))
                return streamed_reply(
                    request, models.of(request).resolve(None), [asked], Counting(), keepalive_s=options.keepalive_s
                )

            return router

    async def script(request):
        await go.wait()
        raise QueueFull("full")
        yield

    async with exchange(app_of(FakeModel(script), Silent(), keepalive_s=0.01), SAY, {"text": "hi"}) as client:
        assert (await client.start())[0] == 429


def test_the_longest_prefix_claims_and_only_whole_segments_count():
    openai, tiny = OpenAI(), Tiny()

    def chosen(path, root=""):
        return choose_dialect((openai, tiny), {"path": root + path, "root_path": root})

    assert [chosen(path) for path in ("/v1", "/v1/tiny", "/v1/tiny/x", "/v1/tinyx", "/v1x", "/")] == [
        openai,
        tiny,
        tiny,
        *[openai] * 3,
    ]
    assert chosen("/tiny/say", root="/mounted") is tiny


async def test_two_dialects_may_have_one_path():
    class Twin(Tiny):
        """As big as the tiny one, for whoever asks for it by a header."""

        prefixes = (SAY,)

        def claim(self, path, scope):
            return super().claim(path, scope) if (b"x-twin", b"1") in scope["headers"] else 0

        def routes(self, models, options):
            router = own_routes(self)

            @router.get(SAY)
            async def say():
                return JSONResponse("twin")

            return router

    async with http_client(app_of(FakeModel(), Tiny(), Twin())) as client:
        assert (await client.get(SAY, headers={"x-twin": "1"})).json() == "twin"
        assert fault(await client.get(SAY))[0] == 405
    async with http_client(app_of(FakeModel(), Twin(), Tiny())) as client:
        assert (await client.get(SAY, headers={"x-twin": "1"})).json() == "twin"
        assert (await client.post(SAY, json={"text": "hi"})).status_code == 200


def test_server_sent_events_have_a_name_if_the_dialect_gives_one():
    assert SSE.frame(b"{}", "") == b"data: {}\n\n"
    assert SSE.frame(b"{}", "ping") == b"event: ping\ndata: {}\n\n"


def test_the_http_code_imports_no_dialect_and_nothing_above_it():
    above = (
        "deployments.dialects",
        "deployments.ingress",
        "deployments.model",
        "deployments.app",
        "deployments.config",
    )
    folder = Path(deployments.http.__path__[0])
    imported = {
        name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert "deployments.http.dialect" in imported
    assert [name for name in imported if name.startswith(above) or name == "deployments"] == []
