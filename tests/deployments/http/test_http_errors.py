"""Every error has OpenAI's shape, the right status and the name of what is wrong; nothing of our
insides leaks.
"""

import asyncio
import logging

import openai
import pytest

from deployments.http.errors import as_erllama_error
from deployments.ingress.http_app import make_http_app
from erllama import errors
from erllama.events import FinishReason
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, openai_client, replies, served

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


def fault(reply):
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    return reply.status_code, error["type"], error["param"], error["code"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"repeat_penalty": 0}, "repeat_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repeat_penalty"),
        ({"stop": 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "bad"}}}}, "response_format"),
        ({"response_format": {"type": "json_object"}, "grammar": "root ::= x"}, "grammar"),
        ({"grammar": "nothing"}, "grammar"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": "required",
                "grammar": "root ::= x",
            },
            "tool_choice",
        ),
        ({"temprature": 1}, "temprature"),
        ({"mirostat": 2}, "mirostat"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"model": 5}, "model"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_a_bad_field_is_named(fields, param):
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        reply = await client.post(CHAT, json={"messages": HI} | fields)
    status, kind, named, _ = fault(reply)
    assert (status, kind, named) == (400, "invalid_request_error", param), reply.text
    assert model.requests == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff", b'{"messages": NaN', b"null"])
async def test_a_body_that_is_no_json_object_is_400(body):
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post(CHAT, content=body)
    assert fault(reply)[:3] == (400, "invalid_request_error", None)


async def test_the_content_type_does_not_matter():
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post(
            CHAT,
            content=b'{"messages":[{"role":"user","content":"x"}]}',
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
    assert reply.status_code == 200


async def test_unknown_routes_and_methods():
    async with http_client(app_of(served(FakeModel()))) as client:
        assert fault(await client.post("/v1/nope"))[:2] == (404, "not_found_error")
        reply = await client.get(CHAT)
    assert fault(reply)[0] == 405
    assert reply.headers["allow"] == "POST"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413(chunked):
    async def parts():
        for _ in range(20):
            yield b" " * 10

    async with http_client(app_of(served(FakeModel()), max_body_bytes=100)) as client:
        reply = await client.post(CHAT, content=parts() if chunked else b" " * 101)
    assert fault(reply)[0] == 413


async def test_the_model_is_chosen_by_id_or_alias_and_may_be_left_out_when_there_is_one():
    one, two = FakeModel(replies("one")), FakeModel(replies("two"))
    async with http_client(app_of(served(one, id="one", aliases=("uno",)), served(two, id="two"))) as client:
        for name, text in (("one", "one"), ("uno", "one"), ("two", "two")):
            reply = (await client.post(CHAT, json={"model": name, "messages": HI})).json()
            assert (reply["choices"][0]["message"]["content"], reply["model"]) == (text, text)
        assert fault(await client.post(CHAT, json={"messages": HI}))[::2] == (400, "model")
        assert fault(await client.post(CHAT, json={"model": "three", "messages": HI})) == (
            404, "not_found_error", "model", "model_not_found",
        )  # fmt: skip
    async with http_client(app_of(served(one))) as client:
        assert (await client.post(CHAT, json={"messages": HI})).status_code == 200


async def test_two_models_may_not_share_an_alias():
    with pytest.raises(errors.InvalidParameter, match="names two models"):
        app_of(served(FakeModel(), id="a", aliases=("x",)), served(FakeModel(), id="b", aliases=("x",)))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.QueueFull("full", retry_after_s=7), (429, "rate_limit_error", None, "queue_full")),
        (
            errors.ContextOverflow("too long", param="messages"),
            (400, "invalid_request_error", "messages", "context_length_exceeded"),
        ),
        (errors.NotSupported("cannot"), (400, "invalid_request_error", None, "not_supported")),
        (errors.EngineStopped("bye", retry_after_s=7), (503, "server_error", None, "engine_stopped")),
        (errors.DecodeFailed("lost"), (500, "server_error", None, "decode_failed")),
    ],
)
async def test_an_error_before_the_first_token_is_a_status_streamed_or_not(stream, error, expected):
    model = FakeModel(replies("", error=error))
    async with http_client(app_of(served(model))) as client:
        reply = await client.post(CHAT, json={"messages": HI, "stream": stream})
    assert fault(reply) == expected
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers.get("retry-after") == ("7" if error.retry_after_s else None)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_raised_error_of_the_client_is_a_status_too(stream):
    async def script(request):
        raise errors.QueueFull("full")
        yield

    async with openai_client(app_of(served(FakeModel(script)))) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model="demo", messages=HI, stream=stream)
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bug_is_500_without_its_words_but_with_the_request_id(stream, caplog):
    async def script(request):
        raise RuntimeError("secret detail")
        yield

    async with http_client(app_of(served(FakeModel(script)))) as client:
        reply = await client.post(CHAT, json={"messages": HI, "stream": stream}, headers={"x-request-id": "abc-1"})
    assert fault(reply) == (500, "server_error", None, "internal_error")
    assert "secret" not in reply.text
    assert "abc-1" in reply.json()["error"]["message"]
    assert "secret detail" in caplog.text
    assert "request_id=abc-1" in caplog.text


async def test_a_bug_after_the_first_token_is_an_event_without_its_words():
    async def script(request):
        async for item in replies("abcd")(request):
            yield item
            raise RuntimeError("secret detail")

    async with http_client(app_of(served(FakeModel(script)))) as client:
        reply = await client.post(CHAT, json={"messages": HI, "stream": True})
    assert reply.status_code == 200
    assert '"code": "internal_error"' in reply.text
    assert "secret" not in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ending", ["cancelled", "nothing"])
async def test_a_reply_that_was_cut_short_by_the_server_is_an_error_not_a_reply(stream, ending):
    async def nothing(request):
        return
        yield

    script = nothing if ending == "nothing" else replies("", reason=FinishReason.CANCELLED)
    async with http_client(app_of(served(FakeModel(script)))) as client:
        reply = await client.post(CHAT, json={"messages": HI, "stream": stream})
    assert fault(reply)[0] == 503


@pytest.mark.parametrize("stream", [False, True])
async def test_one_failed_choice_cancels_the_others(stream):
    async def script(request):
        if request.request_id.endswith(".1"):
            raise errors.QueueFull("full")
        await asyncio.Event().wait()
        yield

    model = FakeModel(script)
    async with http_client(app_of(served(model))) as client:
        reply = await client.post(CHAT, json={"messages": HI, "n": 3, "stream": stream})
    assert reply.status_code == 429
    assert len(model.cancelled) == 3


async def test_a_prompt_that_cannot_fit_is_refused_with_both_numbers():
    async with http_client(app_of(served(FakeModel(), FakePrompts(n_ctx=20)))) as client:
        reply = await client.post(CHAT, json={"messages": HI})
    assert fault(reply) == (400, "invalid_request_error", "messages", "context_length_exceeded")
    assert "20 tokens" in reply.json()["error"]["message"]


async def test_a_model_without_a_template_refuses_chat():
    async with http_client(app_of(served(FakeModel(), FakePrompts(template=False)))) as client:
        assert fault(await client.post(CHAT, json={"messages": HI}))[3] == "not_supported"


async def test_request_ids_are_echoed_if_sane_and_always_logged(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        reply = await client.post(CHAT, json={"messages": HI}, headers={"x-request-id": "my-id"})
        assert reply.headers["x-request-id"] == "my-id"
        assert model.requests[0].request_id.startswith("my-id~")  # a client may repeat its ids; the engine's are unique
        assert "request_id=my-id method=POST path=/v1/chat/completions status=200" in caplog.text
        for insane in ("", "a b", "x" * 200, "-a"):
            assert (
                (await client.get("/health", headers={"x-request-id": insane}))
                .headers["x-request-id"]
                .startswith("req-")
            )
        generated = (await client.post(CHAT, json={"messages": HI})).headers["x-request-id"]
    assert model.requests[1].request_id == generated


@pytest.mark.parametrize("stream", [False, True])
async def test_the_log_tells_the_tokens_of_all_choices(stream, caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    model = FakeModel(replies("Hello"))
    async with http_client(app_of(served(model))) as client:
        await client.post(CHAT, json={"messages": HI, "n": 2, "stream": stream})
        await client.get("/v1/models")
    n = 2 * len(model.requests[0].prompt_tokens)
    chat, listed = (record.getMessage() for record in caplog.records if "event=request" in record.getMessage())
    assert chat.endswith(f" prompt_tokens={n} cached_tokens=6 completion_tokens=10")
    assert "tokens" not in listed


async def test_under_serve_the_id_is_logged_but_the_header_is_left_to_serve(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    app = make_http_app([served(FakeModel())], echo_request_id=False)
    async with http_client(app) as client:
        assert "x-request-id" not in (await client.get("/health", headers={"x-request-id": "my-id"})).headers
    assert "request_id=my-id" in caplog.text


async def test_keys_guard_everything_but_health():
    app = app_of(served(FakeModel()), api_keys=("k1", "k2"))
    async with http_client(app) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer k"},
            {"authorization": "Basic k1"},
            {"authorization": "k1"},
            {"authorization": ""},
        ):
            reply = await client.get("/v1/models", headers=headers)
            assert fault(reply) == (401, "authentication_error", None, "invalid_api_key")
            assert reply.headers["www-authenticate"] == "Bearer"
    for key in ("k1", "k2"):
        async with openai_client(app, api_key=key) as client:
            assert [model.id async for model in client.models.list()] == ["demo"]
    async with openai_client(app, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_cors_is_off_by_default_and_covers_refusals_when_on():
    origin = {"origin": "https://a.example"}
    preflight = origin | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    async with http_client(app_of(served(FakeModel()))) as client:
        assert "access-control-allow-origin" not in (await client.get("/v1/models", headers=origin)).headers
    async with http_client(app_of(served(FakeModel()), cors_origins=("https://a.example",), api_keys=("k",))) as client:
        assert (await client.options(CHAT, headers=preflight)).status_code == 200
        refused = await client.get("/v1/models", headers=origin)
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://a.example")
        other = await client.get("/v1/models", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_every_error_class_of_the_engine_has_a_status_and_a_type():
    from deployments.http.openai_error import error_type

    def tree(cls):
        return [cls, *(leaf for sub in cls.__subclasses__() for leaf in tree(sub))]

    for cls in tree(errors.ErllamaError):
        assert 400 <= cls.http_status < 600, cls
        assert error_type(cls.http_status), cls
        error = cls("x")
        assert as_erllama_error(error, "r") is error
