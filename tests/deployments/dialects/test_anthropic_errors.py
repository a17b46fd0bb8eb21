"""Errors in Anthropic's shape (CC-40 to CC-42), keys, and the paths that it shares with OpenAI's."""

import pickle

import anthropic
import pytest

from erllama import errors
from tests.support.http_fakes import FakeModel, FakePrompts, anthropic_client, app_of, http_client, replies, served

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
VERSION = {"anthropic-version": "2023-06-01"}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def fault(reply):
    body = reply.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == reply.headers["x-request-id"]
    return reply.status_code, body["error"]["type"], body["error"]["message"]


def said(*blocks, role="user"):
    return {"messages": [*HI, {"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (said({"type": "image", "source": {}}), "messages[1].content[0].type': content blocks of type 'image'"),
        (said({"type": "document", "source": {}}), "messages[1].content[0]': a document must carry its text"),
        (
            said({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}}),
            "messages[1].content[0]': a document must carry its text: source is of type 'base64' (application/pdf)",
        ),
        (
            said({"type": "document", "source": {"type": "content", "content": [{"type": "image"}]}}),
            "this server reads text only",
        ),
        (said({"type": "search_result", "title": "t", "content": 5}), "the content of a search_result"),
        (
            said({"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}),
            "messages[1].content[0].content[0].type': content blocks of type 'image'",
        ),
        (said({"type": ["text"]}), "messages[1].content[0].type"),
        (said({"type": "text"}), "a block of type text must have 'text'"),
        (said({"type": "tool_result"}), "messages[1].content[0]"),
        (said("text"), "messages[1].content[0]"),
        (said({"type": "tool_use", "id": "t", "name": "f", "input": {}}), "messages[1]"),
        (said({"type": "tool_use", "name": "f", "input": []}, role="assistant"), "messages[1].content[0].input"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"system": 5}, "system"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": 0.5}, "top_k"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences: stop has 65 strings, at most 64"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"thinking": {"type": "deep"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"tools": [{"name": "f"}]}, "tools[0]': a tool must have 'input_schema'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice names 'g'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        (
            {
                "tools": [TOOL],
                "tool_choice": {"type": "any"},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
            "output_config.format",
        ),
        (
            {"tools": [TOOL | {"strict": True, "input_schema": {"properties": {"a": {"uniqueItems": True}}}}]},
            "tools[0].input_schema",
        ),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"stream": "yes"}, "stream"),
        ({"metadata": {"user_id": 5}}, "metadata.user_id"),
    ],
)
async def test_a_bad_field_is_a_400_that_names_it(fields, named):
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        reply = await client.post(PATH, json={"messages": HI} | fields)
    status, kind, message = fault(reply)
    assert (status, kind) == (400, "invalid_request_error")
    assert named in message
    assert model.requests == []


@pytest.mark.parametrize("path", [PATH, f"{PATH}/count_tokens"])
@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b"\xff", b"null", b'{"messages":[{"role":"user","content":"\\ud800"}]}']
)
async def test_a_body_that_cannot_be_read_is_400(body, path):
    async with http_client(app_of(served(FakeModel()))) as client:
        assert fault(await client.post(path, content=body))[:2] == (400, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.QueueFull("full", retry_after_s=7), 429, "rate_limit_error"),
        (errors.EngineStopped("bye", retry_after_s=7), 529, "overloaded_error"),
        (errors.DecodeFailed("lost"), 500, "api_error"),
        (errors.NotSupported("cannot"), 400, "invalid_request_error"),
        (RuntimeError("secret"), 500, "api_error"),
    ],
)
async def test_cc_40_an_error_before_the_first_token(stream, error, status, kind):
    async def script(request):
        raise error
        yield

    async with http_client(app_of(served(FakeModel(script)))) as client:
        reply = await client.post(PATH, json={"messages": HI, "stream": stream})
    assert fault(reply)[:2] == (status, kind)
    assert "secret" not in reply.text
    assert reply.headers.get("retry-after") == ("7" if status in (429, 529) else None)


async def test_cc_40_paths_models_and_bodies_that_are_none():
    async with http_client(app_of(served(FakeModel()), max_body_bytes=100)) as client:
        assert fault(await client.post(PATH, content=b" " * 101))[:2] == (413, "request_too_large")
        unknown = await client.post(PATH, json={"model": "three", "messages": HI})
        assert fault(unknown)[:2] == (404, "not_found_error")
        assert "three" in fault(unknown)[2]
        assert fault(await client.post(f"{PATH}/batches"))[:2] == (404, "not_found_error")
        wrong = await client.get(PATH)
        assert fault(wrong)[:2] == (405, "invalid_request_error")
        assert wrong.headers["allow"] == "POST"


async def test_cc_42_a_prompt_that_is_too_long_says_both_numbers():
    n = len("user: hi\nassistant: ")
    words = f"prompt is too long: {n} tokens > 9 maximum"
    async with http_client(app_of(served(FakeModel(), FakePrompts(n_ctx=10)))) as client:
        assert fault(await client.post(PATH, json={"messages": HI})) == (400, "invalid_request_error", words)
    late = errors.ContextOverflow("too long", param="prompt", n_prompt=n, n_most=9)
    late = pickle.loads(pickle.dumps(late))  # it comes from a replica
    async with http_client(app_of(served(FakeModel(replies("", error=late)), FakePrompts(n_ctx=None)))) as client:
        assert fault(await client.post(PATH, json={"messages": HI}))[2] == words


async def test_cc_7_keys_stand_in_either_header():
    app = app_of(served(FakeModel()), api_keys=("k1",))
    async with http_client(app) as client:
        for headers in ({"x-api-key": "k1"}, {"authorization": "Bearer k1"}):
            assert (await client.post(PATH, json={"messages": HI}, headers=headers)).status_code == 200
            assert (await client.get("/v1/models", headers=headers | VERSION)).status_code == 200
        for headers in ({}, {"x-api-key": "k"}):
            assert fault(await client.post(PATH, json={"messages": HI}, headers=headers))[:2] == (
                401, "authentication_error",
            )  # fmt: skip
    async with anthropic_client(app, api_key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.models.list()


async def test_the_version_header_tells_whose_models_are_asked_for():
    async with http_client(app_of(served(FakeModel()))) as client:
        assert (await client.get("/v1/models")).json()["object"] == "list"
        assert (await client.get("/v1/models/demo")).json()["object"] == "model"
        theirs = (await client.get("/v1/models", headers=VERSION)).json()
        assert {key: theirs[key] for key in ("first_id", "last_id", "has_more")} == {
            "first_id": "demo", "last_id": "demo", "has_more": False,
        }  # fmt: skip
        assert (await client.get("/v1/models/demo", headers=VERSION)).json()["type"] == "model"
        assert fault(await client.get("/v1/models/none", headers=VERSION))[1] == "not_found_error"
        chat = await client.post("/v1/chat/completions", json={"messages": HI}, headers=VERSION)
        assert chat.json()["object"] == "chat.completion"


async def test_cc_4_probes_get_an_answer_without_a_trace(caplog):
    async with http_client(app_of(served(FakeModel()))) as client:
        for path in ("/", "/api/hello"):
            assert (await client.head(path)).status_code in (200, 404)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
