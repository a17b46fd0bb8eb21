"""Whatever a body says, the answer is a reply or an error of the client's that has the shape of
llama.cpp's server.
"""

import asyncio

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.dialects.llama_server.knobs import NEUTRAL
from deployments.dialects.llama_server.wire import CompletionBody
from tests.support.http_fakes import FakeModel, app_of, served

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = {
    "/completion": sorted({*CompletionBody.model_fields, *NEUTRAL, "logprobs", "max_tokens", "image_data", "typ_p"} - {"prompt"}),
    "/tokenize": ["content", "prompt", "messages", "add_special", "parse_special", "with_pieces", "tools", "model"],
    "/detokenize": ["tokens", "model"],
    "/apply-template": ["messages", "tools", "tool_choice", "chat_template_kwargs", "reasoning_effort", "functions"],
    "/embedding": ["content", "input", "embd_normalize"],
}  # fmt: skip
VALID = {"/completion": {"prompt": "x"}}


async def answer(path, body):
    transport = httpx.ASGITransport(app_of(served(FakeModel())))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return (
            await client.post(path, json=body) if not isinstance(body, bytes) else await client.post(path, content=body)
        )


@pytest.mark.parametrize("path", FIELDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_body_is_a_fault_of_ours(path, data):
    names = data.draw(st.lists(st.sampled_from(FIELDS[path]), max_size=3, unique=True))
    given_fields = {name: data.draw(JSON) for name in names}
    body = VALID.get(path, {}) | given_fields
    try:
        reply = asyncio.run(answer(path, body))
    except ValueError:  # NaN and the like: the client's own encoder refuses them
        return
    assert reply.status_code in (200, 400, 404), reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert (error["code"], bool(error["message"])) == (reply.status_code, True)


@pytest.mark.parametrize("path", FIELDS)
@pytest.mark.parametrize(
    "raw",
    [b"", b"null", b"[]", b"5", b'"x"', b"{", b'{"prompt": "\\ud800"}', b"\xff"],
)
def test_what_is_no_body_is_named_as_such(path, raw):
    reply = asyncio.run(answer(path, raw))
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_a_number_without_end_is_refused():
    reply = asyncio.run(answer("/completion", b'{"seed": 1e999, "prompt": "x"}'))
    assert (reply.status_code, "seed" in reply.json()["error"]["message"]) == (400, True)
