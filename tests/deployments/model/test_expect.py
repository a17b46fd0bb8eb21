"""A next turn on its way to the replica that has its beginning."""

from __future__ import annotations

import asyncio

import pytest

from deployments.routing.prompt import prompt_of
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest, build_request
from tests.support.replica_kit import Fixture

pytestmark = pytest.mark.anyio


@pytest.fixture
def fixture(tmp_path):
    made = Fixture(tmp_path)
    yield made
    made.replica.close()


async def generated(replica, request):
    return [events async for events in replica.generate(request)]


async def counts(fixture):
    """Once the engine has nothing to do any more."""
    while True:
        cache = (await fixture.replica.stats()).cache
        if cache.idle_turns + cache.idle_given_up:
            return cache
        await asyncio.to_thread(fixture.replica._model._call, lambda engine: None)


async def test_a_replica_computes_what_follows_on_a_request_that_it_served(fixture):
    request = build_request("it", list(b"hello"), {"response_tokens": 3, "temperature": 0.0})
    await generated(fixture.replica, request)
    kv = next(list(one) for one in fixture.backend.kv if one)
    turn = NextTurn("it", (*kv, 1, 2, 3), len(kv))
    before = (await fixture.replica.stats()).counts
    [answer] = [told async for told in fixture.replica.answer("it", "expect", (turn,), {}) if told]
    assert answer == [None]
    cache = await counts(fixture)
    assert (cache.idle_tokens, cache.idle_turns) == (3, 1)
    assert [*kv, 1, 2, 3] in fixture.backend.kv
    stats = await fixture.replica.stats()
    assert stats.counts == before
    assert fixture.replica._model.memory().idle_s > 0


async def test_a_replica_that_did_not_serve_the_request_gives_it_up(fixture):
    await fixture.replica.expect(NextTurn("unknown", (1, 2, 3), 2))
    cache = await counts(fixture)
    assert (cache.idle_tokens, cache.idle_given_up) == (0, 1)


async def test_a_replica_that_goes_away_expects_nothing(fixture):
    await asyncio.to_thread(fixture.replica.drain, 0.0)
    await fixture.replica.expect(NextTurn("unknown", (1, 2, 3), 2))


async def test_a_turn_is_routed_as_its_request_was():
    tokens = tuple(range(100))
    turn = NextTurn("it", tokens, 90, "tenant")
    asked = prompt_of("generate", (GenerationRequest("it", tokens, salt="tenant"),), 32)
    expected = prompt_of("answer", ("it", "expect", (turn,), {}), 32)
    assert (expected.chain, expected.n_tokens) == (asked.chain, 100)
    assert len(expected.chain) == 3
    assert expected.attempt == 1
