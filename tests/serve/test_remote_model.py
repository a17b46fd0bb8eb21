"""Every call of the engine API from inside the cluster, through a Serve handle, as a Ray job makes
them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from deployments.jobs.remote_model import RemoteModel
from deployments.model.client import ModelClient
from erllama import Model
from erllama.errors import ContextOverflow, InvalidParameter, NotSupported
from erllama.events import Done, FinishReason, Tokens
from erllama.stats import ModelStatus
from tests.support.serve_process import ServeProcess

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.usefixtures("cluster")]

IDLE_WITHIN_S = 20.0


def wait_idle(model: RemoteModel) -> None:
    """Until no sequence lives. The engine is another process; its stats are all there is to wait
    for.
    """
    deadline = time.monotonic() + IDLE_WITHIN_S
    while True:
        (stats,) = model.stats()
        if stats.n_running == stats.n_queued == 0:
            assert stats.n_free_seq_ids == stats.n_parallel
            assert stats.status is ModelStatus.IDLE
            return
        assert time.monotonic() < deadline, stats
        time.sleep(0.02)


@pytest.fixture
def demo() -> Iterator[RemoteModel]:
    with closing(RemoteModel.connect("demo")) as model:
        yield model


@pytest.fixture
def tiny() -> Iterator[RemoteModel]:
    with closing(RemoteModel.connect("tiny")) as model:
        yield model


def test_complete_equals_the_same_call_in_process(demo):
    params = {"response_tokens": 24, "temperature": 0.0}
    ids = demo.apply_chat_template([{"role": "user", "content": "Tell me a short story."}])
    with Model(path="demo", n_ctx=2048, n_threads=1) as model:
        assert model.apply_chat_template([{"role": "user", "content": "Tell me a short story."}]) == ids
        expected = model.complete(ids, **params)
    remote = demo.complete(ids, **params)
    assert (remote.text, remote.tokens, remote.finish_key) == (expected.text, expected.tokens, expected.finish_key)
    assert remote.stats.completion_tokens == len(remote.tokens)


def test_infer_streams_tokens_then_done(demo):
    *tokens, done = demo.infer(demo.tokenize("Once upon a time"), response_tokens=6, temperature=0, ignore_eos=True)
    assert sum(len(event.ids) for event in tokens if isinstance(event, Tokens)) == 6
    assert isinstance(done, Done)
    assert done.stats.finish_reason is FinishReason.LENGTH


def test_closing_a_stream_frees_its_sequence(demo):
    events = demo.infer(demo.tokenize("Once upon a time"), ignore_eos=True)
    next(events)
    events.close()
    wait_idle(demo)


def test_cancel_is_idempotent_and_unknown_references_are_fine(demo):
    demo.cancel("no such request")
    demo.cancel("no such request")


def test_text_goes_to_tokens_and_back(demo):
    assert demo.detokenize(demo.tokenize("a box of 12 eggs")) == "a box of 12 eggs"


def test_errors_keep_their_type_and_parameter(demo, tiny):
    with pytest.raises(InvalidParameter) as caught:
        demo.complete("x", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(InvalidParameter) as caught:
        demo.complete("x", no_such_name=1)
    assert caught.value.param == "no_such_name"
    with pytest.raises(ContextOverflow):
        tiny.complete([5] * 300)
    with closing(RemoteModel.connect("encoder")) as encoder, pytest.raises(NotSupported):
        encoder.complete("hello")


def test_embed(demo):
    vector = demo.embed(demo.tokenize("hello"))
    assert sum(x * x for x in vector) == pytest.approx(1.0, abs=1e-3)


def test_adapters_change_new_requests_only_while_they_are_loaded(tiny, gguf_folder: Path):
    params = {"response_tokens": 12, "temperature": 0.0, "ignore_eos": True}
    plain = tiny.complete([5, 6, 7], **params).tokens
    handle = tiny.load_adapter(str(gguf_folder / "lora.gguf"))
    try:
        assert [a.handle for a in tiny.list_adapters()] == [handle]
        assert tiny.complete([5, 6, 7], **params).tokens != plain
        tiny.set_adapter_scale(handle, 0.0)
        assert tiny.complete([5, 6, 7], **params).tokens == plain
    finally:
        tiny.unload_adapter(handle)
        tiny.unload_adapter(handle)
    assert tiny.complete([5, 6, 7], **params).tokens == plain
    assert tiny.list_adapters() == ()


def test_model_info_and_status(demo):
    info = demo.model_info()
    assert (info.id, info.architecture, info.context_size, info.has_chat_template) == ("demo", "llama", 2048, True)
    assert info.fingerprint.startswith("safe:")
    wait_idle(demo)
    assert demo.status() == [ModelStatus.IDLE]


def test_the_async_client_streams_and_cancels():
    async def scenario() -> None:
        client = ModelClient.connect("demo")
        ids = await client.tokenize("Once upon a time")
        events = client.infer(ids, ignore_eos=True)
        async for event in events:
            assert isinstance(event, Tokens)
            break
        await events.aclose()
        assert (await client.complete(ids, response_tokens=2, temperature=0)).stats.completion_tokens <= 2
        assert await client.ready() is True

    asyncio.run(scenario())
    wait_idle(RemoteModel.connect("demo"))


@pytest.mark.parametrize("stream", [True, False])
def test_an_http_client_that_leaves_frees_its_sequence(server: ServeProcess, demo, stream):
    body = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    (before,) = demo.stats()
    with httpx.Client(timeout=httpx.Timeout(30, read=30 if stream else 0.1)) as http:
        if stream:
            with http.stream("POST", f"{server.url}/v1/completions", json=body) as reply:
                next(reply.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{server.url}/v1/completions", json=body)
    wait_idle(demo)
    (after,) = demo.stats()
    assert after.counts.requests_cancelled == before.counts.requests_cancelled + 1
