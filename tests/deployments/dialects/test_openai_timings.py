"""`timings`, `timings_per_token` and `return_progress` in replies of OpenAI's shape."""

import pytest

from deployments.generation.timings import RunningTimings, timings
from erllama.events import CacheHitKind, Done, FinishReason, Progress, RequestStats, Tokens
from tests.support.http_fakes import FakeModel, app_of, http_client, openai_client, served, sse_events

pytestmark = pytest.mark.anyio

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED = {CHAT: {"messages": [{"role": "user", "content": "hi"}]}, COMPLETIONS: {"prompt": "hi"}}
MEASURED = RequestStats(100, 5, 60, 1.0, 20.0, 8.0, CacheHitKind.PARTIAL, FinishReason.STOP, cache_tier="disk")
TOLD = {
    "cache_n": 60, "prompt_n": 40, "prompt_ms": 20.0, "prompt_per_token_ms": 0.5, "prompt_per_second": 2000.0,
    "predicted_n": 5, "predicted_ms": 8.0, "predicted_per_token_ms": 2.0, "predicted_per_second": 500.0,
}  # fmt: skip


async def script(request):
    if request.report_progress:
        yield [Progress(100, 60, 60, "disk", 0.6)]
        yield [Progress(100, 60, 100, "disk", 19.0)]
    yield [Tokens((1, 2), "ab")]
    yield [Tokens((3, 4, 5), "cde")]
    yield [Done(MEASURED, "key")]


async def post(path, model=None, **fields):
    async with http_client(app_of(served(model or FakeModel(script)))) as client:
        reply = await client.post(path, json=ASKED[path] | fields)
    assert reply.status_code == 200, reply.text
    return reply


def test_what_was_measured_becomes_paces():
    assert timings(MEASURED) == TOLD


@pytest.mark.parametrize(("prompt", "completion"), [(60, 0), (60, 1), (100, 0)])
def test_no_pace_is_told_of_nothing(prompt, completion):
    stats = RequestStats(prompt, completion, 60, 0.0, 0.0, 0.0, CacheHitKind.EXACT, FinishReason.LENGTH)
    told = timings(stats)
    assert (told["prompt_n"], told["predicted_n"]) == (prompt - 60, completion)
    assert told["prompt_per_second"] == told["predicted_per_second"] == told["predicted_per_token_ms"] == 0.0


def test_running_timings_follow_what_arrives():
    now = [0]
    running = RunningTimings(lambda: now[0])
    assert running.now()["prompt_n"] == running.now()["predicted_n"] == 0
    running.push(Progress(10, 4, 7, "live", 3.0))
    assert (running.now()["cache_n"], running.now()["prompt_n"], running.now()["prompt_ms"]) == (4, 3, 3.0)
    for ms, ids in ((5, (1,)), (7, (2, 3)), (9, ())):
        now[0] = ms * 1_000_000
        running.push(Tokens(ids, "x"))
    assert (running.now()["predicted_n"], running.now()["predicted_ms"]) == (3, 2.0)
    assert running.now()["predicted_per_token_ms"] == 1.0


@pytest.mark.parametrize("path", ASKED)
async def test_whole_bodies_and_last_chunks_always_have_them(path):
    assert (await post(path)).json()["timings"] == TOLD
    *chunks, last = sse_events((await post(path, stream=True)).content)
    assert last["timings"] == TOLD
    assert last["choices"][0]["finish_reason"] == "stop"
    assert not any("timings" in chunk or "prompt_progress" in chunk for chunk in chunks)


@pytest.mark.parametrize("path", ASKED)
async def test_with_usage_the_chunk_that_has_it_tells_them_once(path):
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = sse_events((await post(path, **usage)).content)
    assert (last["timings"], last["choices"]) == (TOLD, [])
    assert not any("timings" in chunk for chunk in chunks)
    *chunks, last = sse_events((await post(path, n=2, **usage)).content)
    assert "timings" not in last
    assert [chunk["timings"] for chunk in chunks if "timings" in chunk] == [TOLD, TOLD]


async def test_tokens_of_a_chat_are_counted_without_a_reply():
    model = FakeModel(script)
    async with http_client(app_of(served(model))) as client:
        for path in (CHAT, "/chat/completions"):
            reply = await client.post(f"{path}/input_tokens", json=ASKED[CHAT])
            assert reply.json() == {"object": "response.input_tokens", "input_tokens": len(b"user: hi\nassistant: ")}
        wrong = await client.post(f"{CHAT}/input_tokens", json={"messages": []})
    assert (wrong.status_code, wrong.json()["error"]["param"], model.requests) == (400, "messages", [])


async def test_llama_cpps_name_of_the_limit():
    model = FakeModel(script)
    for path in ASKED:
        await post(path, model, n_predict=3)
    assert [request.max_tokens for request in model.requests] == [3, 3]


@pytest.mark.parametrize("path", ASKED)
async def test_each_of_several_choices_has_its_own(path):
    body = (await post(path, n=2)).json()
    assert "timings" not in body
    assert [choice["timings"] for choice in body["choices"]] == [TOLD, TOLD]
    ends = [chunk for chunk in sse_events((await post(path, n=2, stream=True)).content) if "timings" in chunk]
    assert [chunk["timings"] for chunk in ends] == [TOLD, TOLD]


@pytest.mark.parametrize("path", ASKED)
async def test_every_chunk_has_them_when_asked(path):
    model = FakeModel(script)
    chunks = sse_events((await post(path, model, stream=True, timings_per_token=True)).content)
    timed = [chunk["timings"] for chunk in chunks if "timings" in chunk]
    assert [one["predicted_n"] for one in timed] == [2, 5, 5]
    assert [one["prompt_ms"] for one in timed] == [19.0, 19.0, 20.0]
    assert [one["cache_n"] for one in timed] == [60, 60, 60]
    assert not any("prompt_progress" in chunk for chunk in chunks)
    assert model.requests[0].report_progress


@pytest.mark.parametrize("path", ASKED)
async def test_progress_comes_in_chunks_of_its_own(path):
    model = FakeModel(script)
    chunks = sse_events((await post(path, model, stream=True, return_progress=True)).content)
    told = [chunk for chunk in chunks if "prompt_progress" in chunk]
    assert [chunk["prompt_progress"] for chunk in told] == [
        {"total": 100, "cache": 60, "processed": 60, "time_ms": 1, "cache_tier": "disk"},
        {"total": 100, "cache": 60, "processed": 100, "time_ms": 19, "cache_tier": "disk"},
    ]
    for chunk in told:
        [choice] = chunk["choices"]
        assert choice["finish_reason"] is None
        assert choice.get("delta", {}) == {}
        assert choice.get("text", "") == ""
        assert {"id", "object", "created", "model"} <= chunk.keys()
    if path == CHAT:
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize("path", ASKED)
async def test_a_reply_that_is_not_streamed_asks_for_no_progress(path):
    model = FakeModel(script)
    body = (await post(path, model, return_progress=True, timings_per_token=True)).json()
    assert body["timings"] == TOLD
    assert not model.requests[0].report_progress


@pytest.mark.parametrize("name", ["timings_per_token", "return_progress"])
async def test_both_are_switches(name):
    async with http_client(app_of(served(FakeModel(script)))) as client:
        reply = await client.post(CHAT, json=ASKED[CHAT] | {name: "yes"})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, name)


async def test_the_official_client_reads_streams_with_them():
    async with openai_client(app_of(served(FakeModel(script)))) as client:
        stream = await client.chat.completions.create(
            model="demo", messages=ASKED[CHAT]["messages"], stream=True,
            extra_body={"timings_per_token": True, "return_progress": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "abcde"
    assert chunks[-1].timings == TOLD
    assert [chunk.prompt_progress["processed"] for chunk in chunks if hasattr(chunk, "prompt_progress")] == [60, 100]


@pytest.mark.parametrize(
    ("path", "body", "n_first"),
    [
        ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}, 0),
        ("/v1/responses", {"input": "hi", "stream": True}, 0),
        ("/api/chat", {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}, 1),
    ],
)
async def test_writers_of_other_dialects_pass_over_progress(path, body, n_first):
    """But for a line of Ollama's that says nothing: with it the stream begins."""

    async def reported(request):
        yield [Progress(1000, 60, 60, "disk", 0.6)]
        async for events in script(request):
            yield events

    async with http_client(app_of(served(FakeModel(reported)))) as client:
        told = (await client.post(path, json=body)).text
    async with http_client(app_of(served(FakeModel(script)))) as client:
        plain = (await client.post(path, json=body)).text
    assert "progress" not in told.replace("in_progress", "")
    assert "cde" in told
    assert told.count("\n") == plain.count("\n") + n_first
