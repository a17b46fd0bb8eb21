"""The rules in front of every dialect: what reaches the template, what the answer tells, how a client
opts out, and what is counted.
"""

import logging

import pytest

from deployments.http.options import HttpOptions
from deployments.ingress.http_app import make_http_app
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, exchange, http_client, served

pytestmark = pytest.mark.anyio

HEADER = "x-erllama-noise"
BILLED = "x-anthropic-billing-header: cc_version=2.1.257.{}; cc_entrypoint=cli;\nBe brief."
SHOWN = "x-anthropic-billing-header: -\nBe brief."
HI = {"role": "user", "content": "hi"}


def told(system):
    return [{"role": "system", "content": system}, HI]


def gemini(system):
    return {
        "systemInstruction": {"parts": [{"text": system}]},
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    }


ROUTES = [
    ("/v1/messages", lambda system: {"max_tokens": 5, "system": system, "messages": [HI]}),
    ("/v1/messages/count_tokens", lambda system: {"system": system, "messages": [HI]}),
    ("/v1/chat/completions", lambda system: {"messages": told(system)}),
    ("/chat/completions", lambda system: {"messages": told(system)}),
    ("/v1/responses", lambda system: {"instructions": system, "input": "hi"}),
    ("/v1/responses/input_tokens", lambda system: {"instructions": system, "input": "hi"}),
    ("/api/chat", lambda system: {"messages": told(system), "stream": False}),
    ("/v1beta/models/demo:generateContent", lambda system: gemini(system)),
    ("/v1beta/models/demo:streamGenerateContent", lambda system: gemini(system)),
    ("/v1beta/models/demo:countTokens", lambda system: {"generateContentRequest": gemini(system)}),
    ("/api/generate", lambda system: {"system": system, "prompt": "hi", "stream": False}),
]


async def asked(path, body, options=None, **headers):
    prompts = FakePrompts()
    async with http_client(app_of(served(FakeModel(), prompts), noise=options or {}), **headers) as client:
        reply = await client.post(path, json={"model": "demo", **body})
    return reply, prompts.rendered[0][0][0]["content"] if prompts.rendered else None


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_every_dialect_shows_the_template_no_noise_and_tells_it(path, body):
    for version in ("1f2", "99a"):
        reply, system = await asked(path, body(BILLED.format(version)))
        assert (reply.status_code, system, reply.headers[HEADER]) == (200, SHOWN, "billing-header=1")
    clean, system = await asked(path, body("Be brief."))
    assert (clean.status_code, system, HEADER in clean.headers) == (200, "Be brief.", False)


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_a_request_may_want_its_prompt_as_it_stands(path, body):
    billed = BILLED.format("1f2")
    reply, system = await asked(path, body(billed), **{HEADER: "off"})
    assert (reply.status_code, system, HEADER in reply.headers) == (200, billed, False)


@pytest.mark.parametrize(("path", "body"), ROUTES, ids=[path for path, _ in ROUTES])
async def test_a_header_that_says_neither_is_refused_by_name(path, body):
    reply, _ = await asked(path, body("Be brief."), **{HEADER: "maybe"})
    assert reply.status_code == 400
    assert f"{HEADER} must be on or off" in reply.text
    assert (await asked(path, body("Be brief."), **{HEADER: " On "}))[0].status_code == 200


@pytest.mark.parametrize(
    "options", [{"enabled": False}, {"disabled": ["billing-header"]}], ids=["no rules", "without this one"]
)
async def test_rules_can_be_switched_off_by_config(options):
    billed = BILLED.format("1f2")
    reply, system = await asked("/v1/chat/completions", {"messages": told(billed)}, options)
    assert (system, HEADER in reply.headers) == (billed, False)


async def test_the_tokens_that_are_counted_are_those_of_the_message():
    body = {"system": BILLED.format("1f2"), "messages": [HI]}
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        counted = (await client.post("/v1/messages/count_tokens", json=body)).json()["input_tokens"]
        await client.post("/v1/messages", json={"max_tokens": 5, **body})
    assert counted == len(model.requests[0].prompt_tokens)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": told(BILLED)}),
        ("/v1/messages", {"max_tokens": 5, "system": BILLED, "messages": [HI]}),
        ("/v1/responses", {"instructions": BILLED, "input": "hi"}),
        ("/api/chat", {"messages": told(BILLED)}),
    ],
)
async def test_a_stream_tells_it_before_its_first_byte(path, body):
    async with exchange(app_of(served(FakeModel())), path, {"model": "demo", "stream": True, **body}) as stream:
        status, headers = await stream.start()
    assert (status, headers[HEADER]) == (200, "billing-header=1")


async def test_rules_may_be_for_some_dialects_and_clients_alone():
    rule = {"name": "mine", "action": "drop", "role": "system", "position": "first", "pattern": " brief"}
    messages = {"messages": told("Be brief.")}
    for limits, agent, system in (
        ({"dialects": ["openai"]}, "x", "Be."),
        ({"dialects": ["anthropic"]}, "x", "Be brief."),
        ({"user_agent": "^goose"}, "goose/1", "Be."),
        ({"user_agent": "^goose"}, "x", "Be brief."),
    ):
        options = {"rules": [rule | limits]}
        assert (await asked("/v1/chat/completions", messages, options, **{"user-agent": agent}))[1] == system


async def test_tools_can_be_shown_in_the_order_of_their_names():
    prompts, model = FakePrompts(), FakeModel()
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "cab"]
    async with http_client(app_of(served(model, prompts), noise={"opt_in": ["sort-tools"]})) as client:
        reply = await client.post("/v1/chat/completions", json={"messages": [HI], "tools": tools})
    assert [tool["function"]["name"] for tool in prompts.rendered[0][1]] == ["a", "b", "c"]
    assert reply.headers[HEADER] == "sort-tools=1"


async def test_web_pages_may_read_the_header():
    options = HttpOptions(cors_origins=("*",))
    async with http_client(make_http_app([served(FakeModel())], options), origin="http://a") as client:
        reply = await client.get("/health")
    assert HEADER in reply.headers["access-control-expose-headers"]


async def test_what_rules_did_is_logged_when_the_server_ends(caplog):
    app = app_of(served(FakeModel()))
    async with http_client(app) as client:
        for _ in range(3):
            await client.post("/v1/chat/completions", json={"messages": told(BILLED)})
    inbox, sent = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}], []

    async def receive():
        return inbox.pop(0)

    async def send(message):
        sent.append(message["type"])

    with caplog.at_level(logging.INFO, "deployments.http"):
        await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "event=noise_total billing-header=3" in caplog.text
