"""`/infill` of llama.cpp's server, with what editors send."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.dialects.llama_server.infill import MAX_FILES
from erllama.testing.stub_backend import StubVocab
from tests.support.http_fakes import FakeModel, FakePrompts, app_of, http_client, served

pytestmark = pytest.mark.anyio

FIM = StubVocab.specials.fim
GAP = {"input_prefix": "a", "input_suffix": "z"}
MARKS = [FIM.repository, *b"myproject\n", FIM.file, *b"filename\n"]


class Prompts(FakePrompts):
    """Takes the marks of the stub's vocabulary."""

    def check_tokens(self, ids, param="prompt"):
        assert all(0 <= token < 256 for token in ids)

    def token_text(self, token):
        return b"<fim>" if token > 0xF7 else bytes([token])


async def post(body, model=None, prompts=None, app=None):
    app = app or app_of(served(model or FakeModel(), prompts or Prompts()))
    async with http_client(app) as client:
        return await client.post("/infill", content=json.dumps(body))


@pytest.fixture(scope="module")
def app():
    return app_of(served(FakeModel(), Prompts()))


async def test_the_reply_fills_the_gap_and_has_the_form_of_a_completion():
    model = FakeModel()
    extra = [{"filename": "u.py", "text": "U", "time": 5}, {"text": "V"}]
    for more in ({}, {"stream": True}, {"input_extra": extra, "prompt": "be"}):
        reply = await post(GAP | {"n_predict": 5} | more, model)
        assert reply.status_code == 200, reply.text
        if "stream" in more:
            pieces = [json.loads(line.removeprefix("data: ")) for line in reply.text.split("\n\n") if line]
            assert "".join(piece["content"] for piece in pieces) == "Hello"
            assert pieces[-1]["stop"] is True
        else:
            assert reply.json()["content"] == "Hello"
            assert reply.json()["prompt"].endswith("<fim>z<fim>")
    files = [FIM.repository, *b"myproject\n", FIM.file, *b"u.py\nU", FIM.file, *b"tmp\nV", FIM.file, *b"filename\n"]
    assert [list(request.prompt_tokens) for request in model.requests] == [
        [*MARKS, FIM.prefix, *b"a", FIM.suffix, *b"z", FIM.middle],
        [*MARKS, FIM.prefix, *b"a", FIM.suffix, *b"z", FIM.middle],
        [*files, FIM.prefix, *b"abe", FIM.suffix, *b"z", FIM.middle],
    ]
    assert all(request.max_tokens == 5 for request in model.requests)


async def test_what_llama_vim_sends_is_answered():
    model = FakeModel()
    body = GAP | {
        "id_slot": 0, "input_extra": [{"text": "x", "time": 1.5, "filename": "f"}], "prompt": "", "n_predict": 128,
        "stop": [], "n_indent": 4, "top_k": 40, "top_p": 0.90, "stream": False, "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True, "t_max_prompt_ms": 500, "t_max_predict_ms": 1000,
        "response_fields": ["content", "tokens_cached", "timings/prompt_n", "truncated"],
    }  # fmt: skip
    reply = await post(body, model)
    assert reply.status_code == 200, reply.text
    assert reply.json()["content"] == "Hello, world!"
    assert (model.requests[0].sampling.top_k, model.requests[0].sampling.top_p) == (40, 0.9)
    warm = await post(body | {"n_predict": 0, "samplers": [], "t_max_predict_ms": 1}, model)
    assert (warm.status_code, model.requests[1].max_tokens) == (200, 0)
    assert (await post(body | {"t_max_predict_ms": -1}, model)).status_code == 200
    assert [request.line_time_ms for request in model.requests] == [1000, 1, None]
    told = (await post(GAP | {"t_max_predict_ms": 500.0}, model)).json()["generation_settings"]
    assert (told["t_max_predict_ms"], model.requests[-1].line_time_ms) == (500, 500)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"input_prefix": None}, "input_prefix"),
        ({"input_suffix": 5}, "input_suffix"),
        ({"input_extra": {}}, "input_extra"),
        ({"input_extra": [{"filename": "x"}]}, "input_extra[0].text"),
        ({"input_extra": [{"text": "x", "filename": 5}]}, "input_extra[0].filename"),
        ({"input_extra": [{"text": ""}] * (MAX_FILES + 1)}, "input_extra"),
        ({"prompt": ["x"]}, "prompt"),
        ({"prompt": "x" * 5000}, "context"),
        ({"n_predict": -2}, "n_predict"),
        ({"temperature": "hot"}, "temperature"),
        ({"mirostat": 2}, "mirostat"),
        ({"grammar": "bad"}, "grammar"),
        ({"stream": 1}, "stream"),
        ({"t_max_predict_ms": "soon"}, "t_max_predict_ms"),
        ({"t_max_predict_ms": 2**31}, "t_max_predict_ms"),
    ],
)
async def test_what_is_wrong_with_a_body_is_named(fields, words):
    reply = await post(GAP | fields)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


async def test_a_vocabulary_that_cannot_is_told_as_llama_cpp_tells_it():
    prompts = Prompts()
    prompts.fills_gaps = False
    reply = await post(GAP, prompts=prompts)
    assert (reply.status_code, reply.json()["error"]["type"]) == (501, "not_supported_error")


@pytest.mark.parametrize("n_ctx", [4096, None])
async def test_long_texts_are_cut_to_leave_room_for_the_reply(n_ctx):
    model = FakeModel()
    body = {"input_prefix": "x" * 100_000, "input_suffix": "y" * 100_000, "n_predict": 64}
    reply = await post(body | {"input_extra": [{"text": "u" * 10**6}] * 3}, model, Prompts(n_ctx))
    assert reply.status_code == 200, reply.text
    assert 3000 < len(model.requests[0].prompt_tokens) <= 4096 - 64


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(), max_size=2)
NAMES = ["input_prefix", "input_suffix", "input_extra", "prompt", "n_predict", "n_indent", "top_k", "stop", "samplers"]


@given(fields=st.dictionaries(st.sampled_from(NAMES), VALUES))
def test_no_body_is_an_error_of_the_server(app, fields):
    assert asyncio.run(post(GAP | fields, app=app)).status_code < 500
