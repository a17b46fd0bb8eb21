"""The client of the benchmark against a transport that does what it is told."""

import json

import httpx
import pytest

from erllama.benchmark.client import BenchClient
from erllama.benchmark.workload import Workload
from erllama.errors import ErllamaError

pytestmark = pytest.mark.anyio
WORKLOAD = Workload(prompt_tokens=50, concurrency=1, turns=2, reply_tokens=4)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def stream(n_prompt=10, **usage):
    chunks = [
        {"choices": [{"delta": {"content": "so "}}]},
        {"choices": [], "usage": {"prompt_tokens": n_prompt, **usage}},
    ]
    text = ": a comment\n\n" + "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


async def measured(*answers):
    """The turns of one conversation; an answer that is an exception is raised."""
    left = list(answers)

    def handle(request):
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://test") as http:
        turns = await BenchClient(http, "m", WORKLOAD, "run").measure(n_words=20)
    return turns, left


async def test_a_connection_that_was_closed_in_the_moment_of_asking_is_no_error():
    turns, left = await measured(stream(), httpx.RemoteProtocolError("disconnected"), stream())
    assert ([turn.error for turn in turns], left) == ([None, None], [])


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([httpx.RemoteProtocolError("disconnected")] * 2, "disconnected"),
        ([httpx.ConnectError("refused")], "refused"),
        ([httpx.ReadTimeout("")], "ReadTimeout"),
        ([httpx.Response(500, text="out of memory")], "the server answered 500: out of memory"),
    ],
)
async def test_a_conversation_ends_with_its_first_error(answers, told):
    turns, left = await measured(*answers, stream(), stream())
    assert ([turn.error for turn in turns], len(left)) == ([told], 2)


async def test_a_server_that_counts_no_tokens_cannot_be_measured():
    def handle(request):
        return stream(n_prompt=None)

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://test") as http:
        with pytest.raises(ErllamaError, match="does not count tokens"):
            await BenchClient(http, "m", WORKLOAD, "run").calibrate()
