"""The names by which clients group their requests (C0, row H11): each reaches the router as an
affinity, the key of a prompt cache before a session, a session before a user.
"""

import json

import pytest

from tests.support.http_fakes import FakeModel, app_of, http_client, served

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
CHAT = ("/v1/chat/completions", {"messages": HI})
COMPLETION = ("/v1/completions", {"prompt": "hi"})
RESPONSE = ("/v1/responses", {"input": "hi"})
MESSAGE = ("/v1/messages", {"max_tokens": 5, "messages": HI})
OLLAMA = ("/api/chat", {"messages": HI})
SESSION_HEADERS = (
    "X-Claude-Code-Session-Id", "Session-Id", "session_id", "X-Session-Id", "X-Session-Affinity", "Thread-Id",
    "X-DeepSeek-Harness-Session-Id", "X-Hermes-Session-Id", "X-LiteLLM-Session-Id",
)  # fmt: skip


def metadata(**user):
    return {"metadata": {"user_id": json.dumps(user)}}


async def affinity(route, body=None, headers=None, *, stream=False):
    model = FakeModel()
    path, base = route
    async with http_client(app_of(served(model)), **headers or {}) as client:
        reply = await client.post(path, json={"model": "demo", "stream": stream, **base, **(body or {})})
    assert reply.status_code == 200, reply.text
    [request] = model.requests
    return request.affinity


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("header", SESSION_HEADERS)
@pytest.mark.parametrize("route", [CHAT, COMPLETION, RESPONSE, MESSAGE, OLLAMA], ids=lambda route: route[0])
async def test_a_session_in_any_header_is_an_affinity(route, header, stream):
    assert await affinity(route, headers={header: "s" * 300}, stream=stream) == "s" * 256


@pytest.mark.parametrize(
    ("route", "body", "headers", "expected"),
    [
        (CHAT, {}, {}, None),
        (CHAT, {"user": "u"}, {}, "u"),
        (CHAT, {"safety_identifier": "i", "user": "u"}, {}, "i"),
        (CHAT, {"user": "u"}, {"session-id": "s"}, "s"),
        (CHAT, {"user": "u", "prompt_cache_key": "k"}, {"session-id": "s"}, "k"),
        (CHAT, {"user": ""}, {}, None),
        (CHAT, {"user": 7}, {}, None),  # changes no reply, so any type will do
        (CHAT, {"user": "u" * 999}, {}, "u" * 256),
        (COMPLETION, {"user": "u"}, {}, "u"),
        (COMPLETION, {"user": "u", "prompt_cache_key": "k"}, {"x-session-id": "s"}, "k"),
        (RESPONSE, {"user": "u"}, {}, "u"),
        (RESPONSE, {"safety_identifier": "i", "user": "u"}, {}, "i"),
        (RESPONSE, {"user": "u"}, {"thread-id": "t"}, "t"),
        (RESPONSE, {"user": "u", "prompt_cache_key": "k"}, {"thread-id": "t"}, "k"),
        (MESSAGE, metadata(device_id="d", account_uuid="a", session_id="s1"), {}, "s1"),
        (MESSAGE, {"metadata": {"user_id": "user_00ff_account_1-2_session_3-4"}}, {}, "3-4"),
        (MESSAGE, {"metadata": {"user_id": "someone"}}, {}, "someone"),
        (MESSAGE, metadata(session_id="s1"), {"x-claude-code-session-id": "s2"}, "s2"),
        (MESSAGE, metadata(session_id="s1"), {"x-litellm-session-id": "s2"}, "s2"),
        (OLLAMA, {}, {}, None),
    ],
)
async def test_what_names_a_session_or_a_user_in_each_dialect(route, body, headers, expected):
    assert await affinity(route, body, headers) == expected
