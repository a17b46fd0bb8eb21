"""An HTTP app that is told to go: nobody is let in, who is inside may finish."""

import asyncio

import pytest

from deployments.http.open_requests import OpenRequests
from deployments.ingress.http_app import make_http_app
from erllama.errors import EngineStopped
from erllama.events import Tokens
from tests.support.bounds import NO_WAIT_S
from tests.support.http_fakes import FakeModel, http_client, served

pytestmark = pytest.mark.anyio

ASK = {"model": "demo", "prompt": "abc"}


async def test_what_comes_is_refused_and_what_runs_may_end():
    started, go_on = asyncio.Event(), asyncio.Event()

    async def script(request):
        yield [Tokens((72,), "H")]
        started.set()
        await go_on.wait()
        async for events in FakeModel().script(request):
            yield events

    requests = OpenRequests()
    async with http_client(make_http_app([served(FakeModel(script))], open_requests=requests)) as client:
        running = asyncio.create_task(client.post("/v1/completions", json=ASK))
        await started.wait()
        assert not await requests.all_ended(0.0)
        requests.refuse(EngineStopped("bye"))

        refused = await client.post("/v1/completions", json=ASK)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "engine_stopped"
        assert (await client.get("/health")).status_code == 200  # the process lives
        assert (await client.get("/health/ready")).status_code == 503  # and should get nothing more

        ended = asyncio.create_task(requests.all_ended(NO_WAIT_S))
        go_on.set()
        assert (await running).json()["choices"][0]["text"] == "HHello, world!"
        assert await ended


async def test_a_request_that_fails_has_ended_too():
    async def script(request):
        raise RuntimeError("a bug")
        yield

    requests = OpenRequests()
    async with http_client(make_http_app([served(FakeModel(script))], open_requests=requests)) as client:
        assert (await client.post("/v1/completions", json=ASK)).status_code == 500
        assert (await client.post("/v1/completions", content=b"{")).status_code == 400
    assert await requests.all_ended(NO_WAIT_S)
