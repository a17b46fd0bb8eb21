"""Several requests as one stream: bounded in flight, closed as one."""

import asyncio
from contextlib import aclosing

import pytest

from deployments.generation.fan_out import MAX_IN_FLIGHT, fan_out
from erllama.events import Tokens
from erllama.request import GenerationRequest, Prompt
from tests.support.http_fakes import FakeModel, replies

pytestmark = pytest.mark.anyio


def requests(n):
    return [GenerationRequest(request_id=str(i), prompt=Prompt.of((1,))) for i in range(n)]


async def test_choices_keep_their_own_order():
    texts = {0: "", 1: "", 2: ""}
    async with aclosing(fan_out(FakeModel(replies("abcdefgh", per_item=1)), requests(3))) as items:
        async for index, events in items:
            texts[index] += "".join(event.text for event in events if isinstance(event, Tokens))
    assert set(texts.values()) == {"abcdefgh"}


@pytest.mark.parametrize("n", [1, 2])
async def test_closing_early_closes_every_request(n):
    model = FakeModel(replies("abcdefgh", per_item=1))
    async with aclosing(fan_out(model, requests(n))) as items:
        async for _ in items:
            break
    assert len(model.cancelled) == len(model.requests)
    assert model.requests


async def test_no_more_than_the_limit_run_at_once():
    running = peak = 0

    async def script(request):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        async for item in replies("ab", per_item=1)(request):
            await asyncio.sleep(0)
            yield item
        running -= 1

    async with aclosing(fan_out(FakeModel(script), requests(3 * MAX_IN_FLIGHT))) as items:
        async for _ in items:
            pass
    assert peak == MAX_IN_FLIGHT


async def test_a_slow_reader_holds_the_choices_back():
    produced = 0

    async def script(request):
        nonlocal produced
        while True:
            produced += 1
            yield [Tokens((1,), "x")]

    async with aclosing(fan_out(FakeModel(script), requests(2))) as items:
        await anext(items)
        for _ in range(100):
            await asyncio.sleep(0)
    assert produced < 10
