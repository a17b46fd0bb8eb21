"""A stream begins when the engine begins to compute a long part of its prompt, not with its first
token.
"""

import asyncio
import json

import pytest

from deployments.generation.reply import LONG_COMPUTE_TOKENS
from erllama.errors import DecodeFailed
from erllama.events import Done, Failed, Progress, Tokens
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, exchange, served, stats

pytestmark = pytest.mark.anyio

LONG = "x" * LONG_COMPUTE_TOKENS  # a token per character
STREAMS = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}], "stream": True},
    "/v1/completions": lambda text: {"prompt": text, "stream": True},
    "/v1/messages": lambda text: {"messages": [{"role": "user", "content": text}], "stream": True, "max_tokens": 9},
    "/v1/responses": lambda text: {"input": text, "stream": True},
    "/v1beta/models/demo:streamGenerateContent?alt=sse": lambda text: {"contents": [{"parts": [{"text": text}]}]},
    "/api/chat": lambda text: {"model": "demo", "messages": [{"role": "user", "content": text}]},
    "/completion": lambda text: {"prompt": text, "stream": True},
}


def app(script):
    return app_of(served(FakeModel(script), FakePrompts(n_ctx=100_000)), keepalive_s=3600.0)


@pytest.mark.parametrize("path", sorted(STREAMS))
async def test_the_first_byte_comes_before_the_first_token_of_a_long_prompt(path):
    computed = asyncio.Event()

    async def script(request):
        assert request.report_progress
        yield [Progress(len(request.prompt), 0, 0, None, 0.0)]
        await computed.wait()
        yield [Progress(len(request.prompt), 0, len(request.prompt) - 1, None, 1.0)]
        yield [Tokens((104, 105), "hi")]
        yield [Done(stats(request, 2), "key")]

    async with exchange(app(script), path, STREAMS[path](LONG)) as client:
        status, headers = await client.start()
        first = await client.chunk()
        kind = "application/x-ndjson" if path == "/api/chat" else "text/event-stream"
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        assert first.endswith(b"\n")
        assert client.silent
        computed.set()
        rest = (await client.rest()).decode()
    assert any(says(line, "hi") for line in rest.split("\n"))


def says(line, text):
    """Whether a line of a stream says `text`, whichever dialect wrote it."""
    data = line.removeprefix("data: ")
    return data.startswith("{") and text in json.dumps(json.loads(data))


@pytest.mark.parametrize("path", sorted(STREAMS))
async def test_a_short_prompt_keeps_its_status_until_the_first_token(path):
    async def script(request):
        assert not request.report_progress
        yield [Tokens((104, 105), "hi")]
        yield [Done(stats(request, 2), "key")]

    async with exchange(app(script), path, STREAMS[path]("short")) as client:
        status, _ = await client.start()
        assert status == 200
        await client.rest()


@pytest.mark.parametrize("path", sorted(STREAMS))
async def test_a_long_prompt_that_is_kept_keeps_its_status_until_the_first_token(path):
    async def script(request):
        kept = len(request.prompt) - LONG_COMPUTE_TOKENS + 1
        yield [Progress(len(request.prompt), kept, kept, "ram", 0.0)]
        yield [Failed(DecodeFailed("the model broke down"))]

    async with exchange(app(script), path, STREAMS[path](LONG * 3)) as client:
        status, _ = await client.start()
        assert status == 500
        await client.rest()
