"""Embeddings: four shapes of input, two encodings."""

import base64
import struct

import openai
import pytest

from tests.support.http_fakes import FakeModel, app_of, http_client, openai_client, served

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("given", "lengths"), [("abc", [3]), (["a", "bc"], [1, 2]), ([1, 2], [2]), ([[1], [1, 2, 3]], [1, 3])]
)
@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_inputs_and_encodings(given, lengths, encoding):
    params = {} if encoding is None else {"encoding_format": encoding}
    async with openai_client(app_of(served(FakeModel()))) as client:
        reply = await client.embeddings.create(model="demo", input=given, **params)
    vectors = [
        list(struct.unpack("<4f", base64.b64decode(item.embedding)))
        if isinstance(item.embedding, str)
        else item.embedding
        for item in reply.data
    ]
    assert vectors == [[float(n), 0.5, 0.5, 0.5] for n in lengths]
    assert [item.index for item in reply.data] == list(range(len(lengths)))
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(lengths)


async def test_dimensions_must_be_the_models_own():
    async with openai_client(app_of(served(FakeModel(dimension=4)))) as client:
        assert (await client.embeddings.create(model="demo", input="a", dimensions=4)).data
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model="demo", input="a", dimensions=2)
    assert caught.value.param == "dimensions"


async def test_too_many_or_empty_inputs_are_refused():
    async with http_client(app_of(served(FakeModel()))) as client:
        for given in (["a"] * 2049, [], [""], ""):
            reply = await client.post("/v1/embeddings", json={"input": given})
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")
