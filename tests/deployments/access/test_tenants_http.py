"""Tenants at the door: their models, limits, rights and salts, in every dialect."""

import asyncio
import json
import logging
import re
from datetime import UTC, datetime

import pytest

from deployments.access.tenant import owner_of
from deployments.http.middleware import require_admin, tenant_of
from erllama.errors import QueueFull
from erllama.events import Tokens
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, exchange, http_client, replies, served

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]
CALLS = {
    "openai": ("/v1/chat/completions", {"messages": HI}),
    "completions": ("/v1/completions", {"prompt": "hi"}),
    "anthropic": ("/v1/messages", {"messages": HI, "max_tokens": 9}),
    "count": ("/v1/messages/count_tokens", {"messages": HI}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "input_tokens": ("/v1/responses/input_tokens", {"input": "hi"}),
    "ollama": ("/api/chat", {"messages": HI, "stream": False}),
    "generate": ("/api/generate", {"prompt": "hi", "stream": False}),
    "show": ("/api/show", {}),
    "embed": ("/api/embed", {"input": "hi"}),
    "embeddings": ("/v1/embeddings", {"input": "hi"}),
    "completion": ("/completion", {"prompt": "hi"}),
    "tokenize": ("/tokenize", {"content": "hi"}),
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
}
LISTS = {
    "/v1/models": lambda body: [card["id"] for card in body["data"]],
    "/models": lambda body: [card["id"] for card in body["data"]],
    "/api/v0/models": lambda body: [card["id"] for card in body["data"]],
    "/api/tags": lambda body: [card["name"].removesuffix(":latest") for card in body["models"]],
    "/api/ps": lambda body: [card["name"].removesuffix(":latest") for card in body["models"]],
}
BOTH = {"key": "both", "name": "both", "models": ["open", "secret"]}
ONE = {"key": "one", "name": "one", "models": ["open"]}


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


def two_models(**options):
    models = [served(FakeModel(), id="open"), served(FakeModel(), id="secret", aliases=("hidden", "h-*"))]
    return app_of(*models, **{"api_keys": (BOTH, ONE), **options})


@pytest.mark.parametrize("name", CALLS)
async def test_a_model_of_others_is_one_that_does_not_exist(name):
    path, body = CALLS[name]
    async with http_client(two_models()) as client:

        async def ask(key, model):
            return await client.post(path, json=body | {"model": model}, headers=bearer(key))

        for own in ("secret", "hidden", "h-1"):
            assert (await ask("both", own)).status_code == 200, own
            refused = await ask("one", own)
            unknown = await ask("one", "q" * len(own))
            assert refused.status_code == unknown.status_code == 404
            as_unknown = unknown.text.replace("q" * len(own), own)
            assert strip_ids(refused.text) == strip_ids(as_unknown)
            assert not {"secret", "hidden"} & set(re.findall(r"\w+", refused.text.replace(own, "")))
        assert (await ask("one", "open")).status_code == 200
        assert (await ask("one", None)).status_code == 200  # the only one that it has


def strip_ids(text: str) -> str:
    return re.sub(r"req-[0-9a-f]{32}", "", text)


@pytest.mark.parametrize("path", LISTS)
async def test_a_tenant_lists_its_own_models(path):
    async with http_client(two_models()) as client:
        for key, expected in (("both", ["open", "secret"]), ("one", ["open"])):
            assert LISTS[path]((await client.get(path, headers=bearer(key))).json()) == expected
    for headers in ({"anthropic-version": "2023-06-01"}, {"x-goog-api-client": "x"}):
        async with http_client(two_models()) as client:
            told = (await client.get("/v1/models", headers=bearer("one") | headers)).text
            assert "open" in told
            assert "secret" not in told
            refused = await client.get("/v1/models/secret", headers=bearer("one") | headers)
            assert refused.status_code == 404


async def test_a_default_model_answers_only_those_who_may_use_it():
    from deployments.http.options import HttpOptions
    from deployments.ingress.http_app import make_http_app

    models = [served(FakeModel(), id="open"), served(FakeModel(), id="secret")]
    app = make_http_app(models, HttpOptions(api_keys=(BOTH, ONE)), default_model="secret")
    async with http_client(app) as client:
        told = {}
        for key in ("both", "one"):
            reply = await client.post(
                "/v1/chat/completions", json={"model": "gpt-9", "messages": HI}, headers=bearer(key)
            )
            told[key] = (reply.status_code, reply.json().get("model"))
        assert told == {"both": (200, "secret"), "one": (404, None)}


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("count", "input_tokens", "show")])
async def test_the_engine_is_told_whose_request_it_is(name):
    path, body = CALLS[name]
    model, prompts = FakeModel(), FakePrompts()
    keys = ("plain", {"key": "a", "name": "a"}, {"key": "a2", "name": "a"}, {"key": "b", "name": "b"})
    told: dict[str, str] = {}
    async with http_client(app_of(served(model, prompts), api_keys=keys)) as client:
        for key in ("plain", "a", "a2", "b"):
            assert (await client.post(path, json=body | {"model": "demo"}, headers=bearer(key))).status_code == 200
            [told[key]] = {*prompts.salts, *(request.salt for request in model.requests)}
            prompts.salts.clear()
            model.requests.clear()
    assert (told["plain"], told["a"]) == ("", told["a2"])
    assert len(set(told.values())) == 3


async def test_streams_and_several_choices_have_the_salt_too():
    model = FakeModel()
    async with http_client(app_of(served(model), api_keys=({"key": "a", "name": "a", "salt": "s"},))) as client:
        body = {"messages": HI, "stream": True, "n": 2}
        await client.post("/v1/chat/completions", json=body, headers=bearer("a"))
    assert [request.salt for request in model.requests] == ["s", "s"]


async def test_a_stored_response_exists_for_its_tenant_alone():
    keys = ({"key": "a", "name": "a"}, {"key": "a2", "name": "a"}, {"key": "b", "name": "b"}, "plain")
    async with http_client(app_of(served(FakeModel()), api_keys=keys)) as client:

        async def call(method, path, key, **body):
            return await client.request(method, f"/v1/responses{path}", headers=bearer(key), json=body or None)

        made = (await call("POST", "", "a", input="hi")).json()
        id, [item] = made["id"], made["output"]
        unknown = "resp_" + "0" * 32
        reference = {"type": "item_reference", "id": item["id"]}
        for key in ("b", "plain"):
            for method, path in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
                told = await call(method, f"/{id}{path}", key)
                as_unknown = await call(method, f"/{unknown}{path}", key)
                assert told.status_code == as_unknown.status_code == 404
                assert strip_ids(told.text) == strip_ids(as_unknown.text.replace(unknown, id))
            for body in ({"input": "x", "previous_response_id": id}, {"input": [reference]}):
                refused = [await call("POST", path, key, **body) for path in ("", "/input_tokens")]
                assert [reply.status_code for reply in refused] == [400, 400]
        assert (await call("POST", "", "a2", input="x", previous_response_id=id)).status_code == 200
        assert (await call("POST", "", "a2", input=[reference])).status_code == 200
        assert (await call("DELETE", f"/{id}", "a2")).status_code == 200
        assert (await call("GET", f"/{id}", "a")).status_code == 404


# --- limits ---------------------------------------------------------------------------------------

LIMITED = {"key": "k", "requests_per_minute": 2, "tokens_per_minute": 1000}


async def test_openai_limits_have_its_headers_and_its_error():
    async with http_client(app_of(served(FakeModel()), api_keys=(LIMITED, "free"))) as client:
        path, body = CALLS["openai"]
        first = await client.post(path, json=body, headers=bearer("k"))
        assert first.status_code == 200
        assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == (
            "2",
            "1",
        )
        assert first.headers["x-ratelimit-limit-tokens"] == "1000"
        n_used = first.json()["usage"]["total_tokens"]
        second = await client.post(path, json=body, headers=bearer("k"))
        left = int(second.headers["x-ratelimit-remaining-tokens"])
        assert 1000 - 2 * n_used <= left <= 1000 - 2 * n_used + 5  # some flows in meanwhile
        refused = await client.post(path, json=body, headers=bearer("k"))
        assert refused.status_code == 429
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert re.search(r"try again in (\d+\.\d)s", error["message"])
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert re.fullmatch(r"(\d+m)?[\d.]+m?s", refused.headers["x-ratelimit-reset-requests"])
        assert (await client.get("/v1/models", headers=bearer("k"))).status_code == 200  # costs nothing
        free = await client.post(path, json=body, headers=bearer("free"))
        assert free.status_code == 200
        assert not [name for name in free.headers if "ratelimit" in name]


async def test_anthropic_limits_have_its_headers_and_its_error():
    async with http_client(app_of(served(FakeModel()), api_keys=(LIMITED,))) as client:
        path, body = CALLS["anthropic"]
        answers = [await client.post(path, json=body, headers={"x-api-key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["type"] == "rate_limit_error"
    assert answers[2].json()["request_id"] == answers[2].headers["request-id"]
    for answer, remaining in zip(answers, "100", strict=True):
        assert answer.headers["anthropic-ratelimit-requests-limit"] == "2"
        assert answer.headers["anthropic-ratelimit-requests-remaining"] == remaining
        assert answer.headers["anthropic-ratelimit-tokens-limit"] == "1000"
        reset = datetime.fromisoformat(answer.headers["anthropic-ratelimit-requests-reset"])
        assert reset.tzinfo == UTC
    assert "retry-after" in answers[2].headers


@pytest.mark.parametrize("name", ["responses", "ollama"])
async def test_other_dialects_refuse_in_their_own_shape(name):
    path, body = CALLS[name]
    async with http_client(app_of(served(FakeModel()), api_keys=(LIMITED | {"requests_per_minute": 1},))) as client:
        await client.post(path, json=body | {"model": "demo"}, headers=bearer("k"))
        refused = await client.post(path, json=body | {"model": "demo"}, headers=bearer("k"))
    error = refused.json()["error"]
    assert refused.status_code == 429
    assert re.search(r"try again in \d+\.\ds", error if name == "ollama" else error["message"])  # CX-8
    assert name == "ollama" or error["code"] == "rate_limit_exceeded"


async def test_a_full_queue_is_still_ollamas_503():
    model = FakeModel(replies("", error=QueueFull("full", retry_after_s=3)))
    async with http_client(app_of(served(model))) as client:
        path, body = CALLS["ollama"]
        assert (await client.post(path, json=body | {"model": "demo"})).status_code == 503


async def test_tokens_of_a_reply_that_is_cut_short_are_charged_and_of_embeddings_too():
    async def script(request):
        yield [Tokens(tuple(b"abcde"), "abcde")]
        await asyncio.Event().wait()

    app = app_of(served(FakeModel(script)), api_keys=(LIMITED,))
    headers = [(b"authorization", b"Bearer k")]
    async with exchange(app, "/v1/completions", {"prompt": "x" * 100, "stream": True, "n": 2}, headers) as client:
        await client.start()
        await client.chunk()
        await client.chunk()
        client.disconnect()
        await client.task
    async with http_client(app) as client:
        reply = await client.post("/v1/embeddings", json={"input": ["x" * 50, "y" * 50]}, headers=bearer("k"))
    left = int(reply.headers["x-ratelimit-remaining-tokens"])
    assert 1000 - 100 - 2 * 5 - 100 <= left <= 1000 - 210 + 20  # a prompt of two choices counts once


async def test_a_request_that_the_engine_refuses_costs_no_tokens():
    model = FakeModel(replies("", error=QueueFull("full", retry_after_s=3)))
    async with http_client(app_of(served(model), api_keys=(LIMITED | {"requests_per_minute": 99},))) as client:
        for _ in range(3):
            reply = await client.post("/v1/completions", json={"prompt": "x" * 500, "n": 2}, headers=bearer("k"))
            assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    assert len(model.requests) == 6
    assert int(reply.headers["x-ratelimit-remaining-tokens"]) == 1000


# --- rights, and what is told ---------------------------------------------------------------------


async def test_admin_routes_want_an_admin_key():
    def app(*keys):
        made = app_of(served(FakeModel()), api_keys=keys)

        @made.get("/v1/admin")
        async def admin(request: __import__("fastapi").Request):
            require_admin(request)
            return {"tenant": tenant_of(request).name}

        return made

    async with http_client(app("plain", {"key": "root", "name": "ops", "admin": True})) as client:
        refused = await client.get("/v1/admin", headers=bearer("plain"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_key_required")
        assert (await client.get("/v1/admin", headers=bearer("root"))).json() == {"tenant": "ops"}
        assert (await client.get("/v1/admin")).status_code == 401
        assert (await client.get("/health")).status_code == 200
    async with http_client(app()) as client:
        assert (await client.get("/v1/admin")).json() == {"tenant": "anonymous"}


async def test_where_files_are_and_what_all_do_is_told_to_admins():
    async def told(client, key):
        headers = {} if key is None else bearer(key)
        props, slots = [await client.get(path, headers=headers) for path in ("/props", "/slots")]
        return props.json()["model_path"], props.json()["endpoint_slots"], slots.status_code

    async with http_client(app_of(served(FakeModel()), api_keys=("plain", {"key": "ops", "admin": True}))) as client:
        assert await told(client, "plain") == ("demo.gguf", False, 403)
        assert await told(client, "ops") == ("/models/secret/demo.gguf", True, 200)
    async with http_client(app_of(served(FakeModel()))) as client:
        assert await told(client, None) == ("/models/secret/demo.gguf", True, 200)


async def test_the_pins_of_requests_have_their_tenant_as_owner():
    model = FakeModel()
    body = {
        "max_tokens": 1,
        "messages": HI,
        "system": [{"type": "text", "text": "x" * 99, "cache_control": {"type": "ephemeral"}}],
    }
    keys = ({"key": "a", "name": "a"}, {"key": "a2", "name": "a", "salt": "other"}, {"key": "b", "name": "b"}, "plain")
    async with http_client(app_of(served(model), api_keys=keys)) as client:
        for key in ("a", "a2", "b", "plain"):
            await client.post("/v1/messages", json=body, headers=bearer(key))
    assert [request.pin.owner for request in model.requests] == [owner_of("a"), owner_of("a"), owner_of("b"), ""]


async def test_the_log_names_the_tenant_and_never_the_key(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    app = app_of(served(FakeModel()), api_keys=({"key": "erl-secret", "name": "alice"},))
    async with http_client(app) as client:
        for key in ("erl-secret", "erl-wrong"):
            await client.post("/v1/chat/completions", json={"messages": HI}, headers=bearer(key))
    assert "status=200" in caplog.text
    lines = [line for line in caplog.text.splitlines() if "event=request" in line]
    assert [re.search(r"tenant=(\S+)", line)[1] for line in lines] == ["alice", "-"]
    assert "erl-" not in caplog.text


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_anthropic_answers_carry_a_request_id_under_its_own_name(path):
    """CC-40."""
    async with http_client(app_of(served(FakeModel()))) as client:
        for body in ({"messages": HI, "max_tokens": 9}, {"messages": "no"}):
            answer = await client.post(path, json=body, headers={"x-request-id": "mine"})
            assert answer.headers["x-request-id"] == "mine"
            assert answer.headers.get("request-id") == ("mine" if path == "/v1/messages" else None)


async def test_a_fault_of_ours_tells_nothing_of_itself(caplog):
    async def script(request):
        raise RuntimeError("/srv/models/secret.gguf broke at line 7")
        yield

    async with http_client(app_of(served(FakeModel(script)))) as client:
        for path, body in CALLS.values():
            answer = await client.post(path, json=body | {"model": "demo"})
            assert "secret" not in answer.text
            assert "RuntimeError" not in answer.text
    assert "secret.gguf" in caplog.text


# --- caps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", {"messages": HI * 10_001}, "messages"),
        ("/v1/messages", {"messages": HI * 10_001, "max_tokens": 1}, "messages"),
        ("/v1/responses", {"input": HI * 10_001}, "input"),
        ("/api/chat", {"model": "demo", "messages": HI * 10_001}, "messages"),
        ("/v1/chat/completions", {"messages": HI, "tools": 513}, "tools"),
        ("/v1/messages", {"messages": HI, "max_tokens": 1, "tools": 513}, "tools"),
        ("/v1/responses", {"input": "x", "tools": 513}, "tools"),
        ("/api/chat", {"model": "demo", "messages": HI, "tools": 513}, "tools"),
    ],
)
async def test_too_many_messages_or_tools_are_refused_with_their_field_and_limit(path, body, field):
    if body.get("tools"):
        body = body | {"tools": [tool(path, i) for i in range(body["tools"])]}
    async with http_client(app_of(served(FakeModel()))) as client:
        refused = await client.post(path, json=body)
    assert refused.status_code == 400
    limit = 512 if field == "tools" else 10_000
    assert f"{field} has {limit + 1} entries, at most {limit} are accepted" in json.dumps(refused.json())


def tool(path: str, number: int) -> dict:
    named = {"name": f"f{number}", "description": "d"}
    if path == "/v1/messages":
        return named | {"input_schema": {"type": "object"}}
    if path == "/v1/responses":
        return {"type": "function"} | named | {"parameters": {"type": "object"}}
    return {"type": "function", "function": named | {"parameters": {"type": "object"}}}
