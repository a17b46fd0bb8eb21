"""Legacy completions: prompts of four shapes, echo, and the parallel lists of logprobs."""

import pytest

from erllama.testing.stub_backend import StubVocab
from tests.support.http_fakes import (
    FakeModel,
    FakePrompts,
    app_of,
    http_client,
    openai_client,
    replies,
    served,
    sse_events,
)

pytestmark = pytest.mark.anyio

FIM = StubVocab.specials.fim


async def test_a_completion_defaults_to_sixteen_tokens():
    model = FakeModel(replies("0123456789abcdefghij"))
    async with openai_client(app_of(served(model))) as client:
        reply = await client.completions.create(model="demo", prompt="Once")
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("0123456789abcdef", "length")
    assert model.requests[0].prompt_tokens == tuple(b"Once")


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [("ab", [b"ab"]), (["ab", "c"], [b"ab", b"c"]), ([97, 98], [b"ab"]), ([[97], [98, 99]], [b"a", b"bc"])],
)
async def test_prompts_come_in_four_shapes(prompt, tokens):
    model = FakeModel()
    async with openai_client(app_of(served(model))) as client:
        reply = await client.completions.create(model="demo", prompt=prompt, n=2)
    assert [request.prompt_tokens for request in model.requests] == [tuple(t) for t in tokens for _ in range(2)]
    assert [choice.index for choice in reply.choices] == list(range(2 * len(tokens)))
    assert reply.usage.prompt_tokens == sum(map(len, tokens))
    assert reply.usage.prompt_tokens_details.cached_tokens == 3 * len(tokens)
    assert len({request.request_id for request in model.requests}) == 2 * len(tokens)


async def test_more_prompts_than_may_run_at_once_all_get_done():
    model = FakeModel(replies("ok"))
    async with openai_client(app_of(served(model))) as client:
        reply = await client.completions.create(model="demo", prompt=["p"] * 64, n=2)
    assert [choice.text for choice in reply.choices] == ["ok"] * 128


async def test_streamed_text_and_usage_equal_the_whole_reply():
    async with openai_client(app_of(served(FakeModel()))) as client:
        stream = await client.completions.create(
            model="demo", prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
        )
        texts, usage = ["", ""], None
        async for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
            usage = chunk.usage or usage
    assert texts == ["Hello, world!"] * 2
    assert usage.total_tokens == 28


@pytest.mark.parametrize("prompt", ["né", [110, 0xC3, 0xA9]])
async def test_echo_repeats_the_prompt_first(prompt):
    async with http_client(app_of(served(FakeModel(replies("xy"))))) as client:
        whole = await client.post("/v1/completions", json={"prompt": prompt, "echo": True})
        assert whole.json()["choices"][0]["text"] == "néxy"
        stream = await client.post("/v1/completions", json={"prompt": prompt, "echo": True, "stream": True})
    assert "".join(event["choices"][0]["text"] for event in sse_events(stream.content)) == "néxy"


async def test_logprobs_are_four_parallel_lists_with_offsets_in_characters():
    async with openai_client(app_of(served(FakeModel(replies("aé!", per_item=1))))) as client:
        reply = await client.completions.create(model="demo", prompt="p", logprobs=1)
        stream = await client.completions.create(model="demo", prompt="p", logprobs=0, stream=True)
        streamed = [chunk.choices[0].logprobs async for chunk in stream]
    logprobs = reply.choices[0].logprobs
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert logprobs.text_offset == [0, 1, 1, 2]
    assert logprobs.token_logprobs == [-0.5] * 4
    assert logprobs.top_logprobs == [{"A": -0.5, token: -0.5} for token in logprobs.tokens]  # the sampled one is there
    assert [offset for block in streamed if block for offset in block.text_offset] == [0, 1, 1, 2]


@pytest.mark.parametrize("prompt", ["a", [97]])
async def test_a_suffix_makes_the_reply_fill_the_gap(prompt):
    model = FakeModel()
    async with http_client(app_of(served(model))) as client:
        for body in ({"suffix": "z"}, {"suffix": "z", "stream": True}, {"suffix": ""}):
            reply = await client.post("/v1/completions", json={"prompt": prompt} | body)
            assert reply.status_code == 200, reply.text
    gap = (FIM.prefix, *b"a", FIM.suffix, *b"z", FIM.middle)
    assert [request.prompt_tokens for request in model.requests] == [gap, gap, tuple(b"a")]


async def test_a_suffix_is_refused_where_the_gap_cannot_be_filled():
    prompts = FakePrompts(n_ctx=64)
    async with http_client(app_of(served(FakeModel(), prompts))) as client:
        for body, param in (({"suffix": "z" * 64}, "prompt"), ({"suffix": "z", "prompt": [300]}, "prompt")):
            reply = await client.post("/v1/completions", json={"prompt": "a"} | body)
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        prompts.fills_gaps = False
        error = (await client.post("/v1/completions", json={"prompt": "a", "suffix": "z"})).json()["error"]
    assert (error["param"], error["code"]) == ("suffix", "not_supported")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"best_of": 2}, "best_of", "not_supported"),
        ({"echo": True, "logprobs": 0}, "logprobs", "not_supported"),
        ({"prompt": []}, "prompt", "invalid_parameter"),
        ({"prompt": [[]]}, "prompt", "invalid_parameter"),
        ({"prompt": ["a", [1]]}, "prompt", "invalid_parameter"),
        ({"prompt": ""}, "prompt", "invalid_parameter"),
        ({"prompt": [300]}, "prompt", "invalid_parameter"),
        ({"prompt": ["x"] * 65}, "prompt", "invalid_parameter"),
        ({"prompt": "x" * 4096}, "prompt", "context_length_exceeded"),
        ({"logprobs": 21}, "logprobs", "invalid_parameter"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(fields, param, code):
    async with http_client(app_of(served(FakeModel()))) as client:
        reply = await client.post("/v1/completions", json={"prompt": "a"} | fields)
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"], reply.json()["error"]["code"]) == (param, code)


async def test_best_of_that_equals_n_is_fine():
    async with openai_client(app_of(served(FakeModel()))) as client:
        assert len((await client.completions.create(model="demo", prompt="a", n=2, best_of=2)).choices) == 2
