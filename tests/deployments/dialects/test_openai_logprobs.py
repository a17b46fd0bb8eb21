"""Log probabilities: they cover the text that a client got, every token has a name of its own."""

import pytest

from deployments.dialects.openai.logprobs import legacy_logprobs
from erllama.events import CacheHitKind, Done, FinishReason, RequestStats, TokenLogprob, Tokens
from tests.support.http_fakes import FakeModel, app_of, http_client, replies, served, sse_events

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "hi"}]


def entry(piece, **more):
    return TokenLogprob(more.pop("token", 1), piece, -0.5, **more)


def samples(*items, stop=None):
    """(bytes of a token, text that became certain with it), and the end."""

    async def script(request):
        for item in items:
            piece, text = item[:2]
            ids = (7,) if piece else ()
            yield [Tokens(ids, text, (entry(piece, hidden=len(item) > 2),) if piece else ())]
        reason = FinishReason.STOP
        stats = RequestStats(1, len(items), 0, 0.0, 1.0, 1.0, CacheHitKind.COLD, reason, stop_sequence=stop)
        yield [Done(stats, "key")]

    return script


STOPPED = samples((b"ab", "ab"), (b"c#", "c"), (b"#", ""), (b"# d", ""), stop="###")
HELD = samples((b"a", ""), (b"b", "ab"), (b"\xe2", ""), (b"\x82", ""), (b"", "�"))
CONTROL = samples((b"a", "a"), (b"<|im_sep|>", "", "hidden"), (b"b", "b"), (b"<|x|>", "", "hidden"))


@pytest.mark.parametrize(
    ("script", "tokens", "offsets"),
    [
        (STOPPED, ["ab", "c#"], [0, 2]),
        (HELD, ["a", "b", "bytes:\\xe2", "bytes:\\x82"], [0, 1, 2, 2]),
        (CONTROL, ["a", "<|im_sep|>", "b", "<|x|>"], [0, 1, 1, 2]),
    ],
)
async def test_logprobs_cover_the_returned_text_streamed_or_not(script, tokens, offsets):
    async with http_client(app_of(served(FakeModel(script)))) as client:
        body = {"prompt": "p", "logprobs": 1}
        whole = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
        chunks = sse_events((await client.post("/v1/completions", json=body | {"stream": True})).content)
        body = {"messages": HI, "logprobs": True}
        chat = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["logprobs"]["content"]
        chat_chunks = sse_events((await client.post("/v1/chat/completions", json=body | {"stream": True})).content)
    blocks = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for field, wanted in (("tokens", tokens), ("text_offset", offsets)):
        assert whole[field] == wanted
        assert [one for block in blocks if block for one in block[field]] == wanted
    streamed = [one for chunk in chat_chunks for one in (chunk["choices"][0].get("logprobs") or {}).get("content", ())]
    assert streamed == chat
    names = [bytes(one["bytes"]) for one in chat]
    assert [name.decode() if name.isascii() else f"bytes:\\x{name[0]:02x}" for name in names] == tokens


async def test_no_chunk_of_a_stream_says_nothing():
    async with http_client(app_of(served(FakeModel(HELD)))) as client:
        for body in ({}, {"logprobs": True}, {"tools": [{"type": "function", "function": {"name": "f"}}]}):
            reply = await client.post("/v1/chat/completions", json={"messages": HI, "stream": True, **body})
            first, *chunks, last = [chunk["choices"][0] for chunk in sse_events(reply.content)]
            assert first["delta"] == {"role": "assistant", "content": ""}
            assert (last["delta"], last["finish_reason"]) == ({}, "stop")
            for chunk in chunks:
                assert "role" not in chunk["delta"]
                assert chunk["finish_reason"] is None
                assert any(chunk["delta"].values()) or chunk.get("logprobs", {}).get("content")


def test_tokens_that_share_a_text_are_all_in_the_legacy_map():
    top = ((1, b"a", -0.1), (2, b"\xe2\x82", -1.0), (3, b"\xe2", -2.0), (4, b"a", -3.0), (5, b"a", -4.0))
    block = legacy_logprobs([(0, entry(b"x", token=9, top=top))], 0)
    assert block["top_logprobs"] == [
        {"a": -0.1, "x": -0.5, "bytes:\\xe2\\x82": -1.0, "bytes:\\xe2": -2.0, "bytes:\\x61": -3.0, "token_id:5": -4.0}
    ]


def test_the_sampled_token_keeps_the_plain_name():
    [top] = legacy_logprobs([(0, entry(b"a", token=9, top=((1, b"a", -0.1),)))], 0)["top_logprobs"]
    assert top == {"bytes:\\x61": -0.1, "a": -0.5}


async def test_llama_cpps_name_of_log_probabilities_asks_for_the_same():
    async with http_client(app_of(served(FakeModel(replies("Hey"))))) as client:
        chat = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
        one = await client.post("/v1/chat/completions", json={**chat, "n_probs": 2})
        same = await client.post("/v1/chat/completions", json={**chat, "logprobs": True, "top_logprobs": 2})
        none = await client.post("/v1/chat/completions", json={**chat, "n_probs": 0})
        legacy = await client.post("/v1/completions", json={"model": "demo", "prompt": "hi", "n_probs": 2})
        most = await client.post("/v1/completions", json={"model": "demo", "prompt": "hi", "n_probs": 21})
    assert one.json()["choices"][0]["logprobs"] == same.json()["choices"][0]["logprobs"]
    assert len(one.json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
    assert none.json()["choices"][0]["logprobs"] is None
    assert set(legacy.json()["choices"][0]["logprobs"]["top_logprobs"][0]) == {"H", "A", "B"}  # the token, and two
    assert (most.status_code, most.json()["error"]["param"]) == (400, "n_probs")
