"""What models are told to expect, over the HTTP app: once a reply is complete, and while nothing else
is asked of them.
"""

from __future__ import annotations

import asyncio

import pytest

from deployments.access.keys import ApiKey
from erllama.errors import EngineStopped
from erllama.events import FinishReason
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, replies, served

pytestmark = pytest.mark.anyio

BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
PROMPT = b"user: Hello\nassistant: "
SAID = b"Hello, world!"


def prompts() -> FakePrompts:
    made = FakePrompts()
    made.expects_turns = True
    return made


async def asked(app, *bodies, **headers):
    async with http_client(app, **headers) as client:
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=BODY | body) for body in bodies))
    assert {answer.status_code for answer in answers} == {200}
    await app.state.expected_turns.settled()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_is_told_what_follows_on_a_complete_reply(stream):
    model = FakeModel(replies(SAID.decode()))
    await asked(app_of(served(model, prompts())), {"stream": stream})
    [turn] = model.expected
    assert bytes(turn.tokens) == b"user: Hello\nassistant: Hello, world!\nuser:", (
        "without the white space before the text"
    )
    assert turn.request_id == model.requests[0].request_id
    assert turn.n_kept == len(PROMPT + SAID) - 1


@pytest.mark.parametrize(
    ("script", "body", "expects"),
    [
        (replies("Hello", reason=FinishReason.LENGTH), {}, True),
        (replies("Hello", error=EngineStopped("gone")), {"stream": True}, True),
        (replies("Hello"), {"n": 2}, True),
        (replies("Hello"), {}, False),
    ],
    ids=["cut off", "failed", "two choices", "switched off"],
)
async def test_nothing_is_told_where_nobody_knows_what_comes(script, body, expects):
    model, fake = FakeModel(script), prompts()
    fake.expects_turns = expects
    await asked(app_of(served(model, fake)), body)
    assert model.expected == []


async def test_nothing_is_rendered_while_another_request_of_the_model_is_answered():
    begun, going = asyncio.Event(), asyncio.Event()

    async def script(request):
        if b"slow" in bytes(request.prompt_tokens):
            begun.set()
            await going.wait()
        async for events in replies("Hello")(request):
            yield events

    model, fake = FakeModel(script), prompts()
    app = app_of(served(model, fake))
    slow = {"messages": [{"role": "user", "content": "slow"}]}
    running = asyncio.create_task(asked(app, slow))
    await begun.wait()
    await asked(app, {}, {})
    assert (model.expected, len(fake.rendered)) == ([], 3)
    going.set()
    await running
    assert len(model.expected) == 3
    assert b"slow" in bytes(model.expected[0].tokens), "the latest reply is first"


async def test_a_model_that_cannot_be_told_costs_nothing(caplog):
    class Gone(FakeModel):
        async def expect(self, turn):
            raise EngineStopped("no replica runs")

    app = app_of(served(Gone(), prompts()))
    await asked(app, {})
    await asked(app, {})
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_a_turn_is_its_tenants_own():
    model = FakeModel()
    keys = (ApiKey(key="one", name="one"), ApiKey(key="two", name="two"))
    app = app_of(served(model, prompts()), api_keys=keys)
    await asked(app, {}, authorization="Bearer one")
    await asked(app, {}, authorization="Bearer two")
    salts = [turn.salt for turn in model.expected]
    assert salts == [request.salt for request in model.requests]
    assert len(set(salts)) == 2


async def test_closing_forgets_what_is_expected():
    told, held = asyncio.Event(), asyncio.Event()

    class Slow(FakeModel):
        async def expect(self, turn):
            told.set()
            await held.wait()

    model = Slow()
    app = app_of(served(model, prompts()))
    async with http_client(app) as client:
        await client.post("/v1/chat/completions", json=BODY)
    await told.wait()
    await app.state.expected_turns.close()
    await app.state.expected_turns.close()
    await app.state.expected_turns.settled()
