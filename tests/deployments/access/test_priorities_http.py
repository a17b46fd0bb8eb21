"""`priority` in the body of every dialect: what reaches the engine, what a key allows, and how each
dialect says no.
"""

from typing import Any

import pytest

from tests.support.http_fakes import FakeModel, app_of, http_client, served

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
CALLS = {
    "openai": ("/v1/chat/completions", {"messages": HI}),
    "completions": ("/v1/completions", {"prompt": "hi"}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "anthropic": ("/v1/messages", {"messages": HI, "max_tokens": 9}),
    "gemini": ("/v1beta/models/demo:generateContent", {"contents": [{"parts": [{"text": "hi"}]}]}),
    "ollama": ("/api/chat", {"messages": HI, "stream": False}),
    "generate": ("/api/generate", {"prompt": "hi", "stream": False}),
    "raw": ("/api/generate", {"prompt": "hi", "stream": False, "raw": True}),
    "completion": ("/completion", {"prompt": "hi"}),
}
KEYS = (
    {"key": "batch", "name": "batch", "priority": 5},
    {"key": "plain", "name": "plain"},
    {"key": "ops", "priority": -9},
)
SHAPES = {
    "gemini": lambda body: body["error"]["message"],
    "anthropic": lambda body: body["error"]["message"],
    "ollama": lambda body: body["error"],
    "generate": lambda body: body["error"],
    "raw": lambda body: body["error"],
}


def message_of(name: str, body: dict[str, Any]) -> str:
    """The words of an error, where the dialect has them."""
    return SHAPES.get(name, lambda body: body["error"]["message"])(body)


async def ask(model: FakeModel, name: str, priority: object = None, key: str | None = None, **options: object):
    path, body = CALLS[name]
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    given = {} if priority is None else {"priority": priority}
    async with http_client(app_of(served(model), **options)) as client:
        return await client.post(path, json={"model": "demo", **body, **given}, headers=headers)


@pytest.mark.parametrize("name", CALLS)
async def test_the_priority_of_a_body_reaches_the_engine_and_null_is_none(name: str):
    model = FakeModel()
    for given in (-7, 3.0, None):
        assert (await ask(model, name, given)).status_code == 200
    assert [(request.priority, request.tenant) for request in model.requests] == [(-7, ""), (3, ""), (None, "")]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(("wrong", "words"), [(1001, "1000"), (-1001, "-1000"), ("high", "integer"), (0.5, "integer")])
async def test_a_wrong_priority_is_refused_by_field_and_limit_in_the_dialects_own_shape(name, wrong, words):
    model = FakeModel()
    refused = await ask(model, name, wrong)
    assert refused.status_code == 400
    assert "priority" in message_of(name, refused.json())
    assert words in message_of(name, refused.json())
    assert model.requests == []


@pytest.mark.parametrize("name", CALLS)
async def test_a_key_may_not_exceed_its_own_priority(name: str):
    model = FakeModel()
    refused = await ask(model, name, 4, key="batch", api_keys=KEYS)
    assert refused.status_code == 400
    assert "priority must be at least 5" in message_of(name, refused.json())
    assert model.requests == []


@pytest.mark.parametrize(
    ("key", "asked", "given"),
    [("batch", None, 5), ("batch", 5, 5), ("batch", 9, 9), ("plain", None, 0), ("plain", 1, 1), ("ops", -9, -9)],
)
async def test_the_priority_of_a_key_stands_for_what_a_body_does_not_say(key: str, asked: int | None, given: int):
    model = FakeModel()
    assert (await ask(model, "openai", asked, key=key, api_keys=KEYS)).status_code == 200
    (request,) = model.requests
    assert (request.priority, request.tenant) == (given, "default" if key == "ops" else key)


async def test_a_priority_that_is_too_high_ends_no_stream_that_has_begun():
    path, body = CALLS["openai"]
    async with http_client(app_of(served(FakeModel()), api_keys=KEYS)) as client:
        headers = {"authorization": "Bearer plain"}
        refused = await client.post(
            path, json={**body, "model": "demo", "stream": True, "priority": -1}, headers=headers
        )
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "priority"


async def test_several_choices_have_the_priority_of_their_request():
    model = FakeModel()
    path, body = CALLS["openai"]
    async with http_client(app_of(served(model))) as client:
        assert (await client.post(path, json={**body, "model": "demo", "n": 3, "priority": 2})).status_code == 200
    assert [request.priority for request in model.requests] == [2, 2, 2]
