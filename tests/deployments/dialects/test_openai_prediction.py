"""`prediction` in chats, and what came of computing ahead: in usage and in timings."""

import pytest

from erllama.events import CacheHitKind, Done, FinishReason, RequestStats, Tokens
from tests.support.http_fakes import FakeModel, app_of, http_client, openai_client, served, sse_events

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
AHEAD = RequestStats(
    10, 9, 0, 0.0, 1.0, 8.0, CacheHitKind.COLD, FinishReason.STOP, drafted_tokens=12, accepted_tokens=7
)
COUNTS = {"accepted_prediction_tokens": 7, "rejected_prediction_tokens": 5}


def answering(stats: RequestStats) -> FakeModel:
    async def script(request):
        yield [Tokens((1,), "ok")]
        yield [Done(stats, "key")]

    return FakeModel(script)


async def test_the_official_client_sends_it_and_reads_what_it_was_good_for():
    model = answering(AHEAD)
    async with openai_client(app_of(served(model))) as client:
        reply = await client.chat.completions.create(
            model="demo", messages=BODY["messages"], prediction={"type": "content", "content": "<b>ok</b>"}
        )
    assert bytes(model.requests[0].prediction) == b"<b>ok</b>"
    details = reply.usage.completion_tokens_details
    assert (details.accepted_prediction_tokens, details.rejected_prediction_tokens) == (7, 5)


async def test_parts_are_joined_and_streams_tell_the_counts_too():
    model = answering(AHEAD)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    async with http_client(app_of(served(model))) as client:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        reply = await client.post(CHAT, json=BODY | options | {"prediction": {"type": "content", "content": parts}})
    assert bytes(model.requests[0].prediction) == b"one\ntwo"
    last = sse_events(reply.content)[-1]
    assert last["usage"]["completion_tokens_details"].items() >= COUNTS.items()
    assert (last["timings"]["draft_n"], last["timings"]["draft_n_accepted"]) == (12, 7)


async def test_nothing_is_told_where_nothing_was_computed_ahead():
    plain = RequestStats(10, 9, 0, 0.0, 1.0, 8.0, CacheHitKind.COLD, FinishReason.STOP)
    async with http_client(app_of(served(answering(plain)))) as client:
        told = (await client.post(CHAT, json=BODY)).json()
    assert not COUNTS.keys() & told["usage"].get("completion_tokens_details", {}).keys()
    assert "draft_n" not in told["timings"]


@pytest.mark.parametrize(
    ("prediction", "word"),
    [
        ("text", "prediction"),
        ({"type": "image", "content": "x"}, "prediction.type"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "content", "content": None}, "prediction.content"),
        ({"type": "content", "content": [{"type": "image_url"}]}, "prediction.content"),
    ],
)
async def test_what_is_no_prediction_is_refused_by_its_field(prediction: object, word: str):
    async with http_client(app_of(served(answering(AHEAD)))) as client:
        reply = await client.post(CHAT, json=BODY | {"prediction": prediction})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == word
