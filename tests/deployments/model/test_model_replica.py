"""ModelReplica as a plain class over the real `Model`, engine and engine thread, on the stub
backend; no Ray.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest

from cache_store import StoreConfig, TierConfig
from deployments.config import ModelSpec
from deployments.model.replica import ModelReplica
from erllama.config import EngineConfig
from erllama.errors import ContextOverflow, EngineStopped, ErllamaError, InvalidParameter, ModelLoadError, QueueFull
from erllama.events import Completion, Done, Event, Failed, FinishReason, Tokens
from erllama.grammar.matcher import GrammarCompiler
from erllama.model import Model
from erllama.stats import ModelStatus
from erllama.testing.stub_backend import StubBackend
from tests.support.replica_kit import Fixture, complete, events_of, first_events, ids, request


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., None]:
    """Run a coroutine function with a replica that is shut down afterwards."""
    return lambda story, **settings: Fixture(tmp_path, **settings).run(story)


# --- generate -------------------------------------------------------------------------------------


def test_generate_yields_lists_that_end_in_done(serve):
    async def story(it: Fixture) -> None:
        lists = [events async for events in it.replica.generate(request(max_tokens=20))]
        assert isinstance(lists[-1][-1], Done)
        assert [isinstance(e, Done | Failed) for events in lists for e in events].count(True) == 1
        assert len(ids([e for events in lists for e in events])) == 20

    serve(story)


def test_the_first_token_leaves_alone_and_what_gathers_meanwhile_leaves_together(serve):
    async def story(it: Fixture) -> None:
        sizes: list[int] = []
        async for events in it.replica.generate(request(max_tokens=8)):
            assert sum(isinstance(e, Tokens) for e in events) <= 1, "neighbouring tokens travel as one event"
            sizes.append(len(ids(events)))
            while not (await it.idle_now())[0]:  # the reader is slow: everything else is there before it looks again
                pass
        assert sum(sizes) == 8
        assert len(sizes) <= 2

    serve(story)


def test_a_silent_engine_sends_heartbeats_until_it_is_stuck(serve, monkeypatch):
    monkeypatch.setattr("deployments.model.replica.HEARTBEAT_S", 0.01)

    async def story(it: Fixture) -> None:
        it.backend.hold(n_free=1)
        stream = it.replica.generate(request(max_tokens=2))
        assert ids(await first_events(stream)) != []
        await asyncio.to_thread(it.backend.wait_until_held)
        assert [await anext(stream) for _ in range(3)] == [[], [], []]

        monkeypatch.setattr("deployments.model.replica.stuck_after_s", lambda budget_s: 0.0)
        silent = asyncio.create_task(anext(stream))
        await asyncio.wait([silent], timeout=0.1)
        assert not silent.done()
        it.backend.release()
        rest = [*await silent, *[event async for events in stream for event in events]]
        assert isinstance(rest[-1], Done)

    serve(story)


def test_a_call_for_one_answer_sends_heartbeats_until_it_comes_or_the_engine_is_stuck(serve, monkeypatch):
    monkeypatch.setattr("deployments.model.replica.HEARTBEAT_S", 0.01)

    async def story(it: Fixture) -> None:
        expected = await it.replica.embed([[1, 2]])
        it.backend.hold()
        stream = it.replica.generate(request(max_tokens=2))
        assert await anext(stream) == []
        await it.held()
        answer = it.replica.answer("call", "embed", [[[1, 2]]], {})
        assert [await anext(answer) for _ in range(3)] == [[], [], []]

        with monkeypatch.context() as patched:
            patched.setattr("deployments.model.replica.stuck_after_s", lambda budget_s: 0.0)
            silent = asyncio.create_task(anext(answer))
            await asyncio.wait([silent], timeout=0.1)
            assert not silent.done()
        it.backend.release()
        lists = [await silent, *[items async for items in answer]]
        assert [items for items in lists if items] == [[expected]]
        await stream.aclose()

    serve(story)


def test_a_call_for_one_answer_raises_what_its_method_raises(serve):
    async def story(it: Fixture) -> None:
        with pytest.raises(InvalidParameter, match="no adapter"):
            await anext(it.replica.answer("call", "set_adapter_scale", ["lora-none", 1.0], {}))

    serve(story)


def test_concurrent_generators_get_their_own_events(serve):
    async def story(it: Fixture) -> None:
        alone = [
            ids(await events_of(it.replica, request(f"alone{i}", "prompt", seed=i, max_tokens=12))) for i in range(4)
        ]
        together = await asyncio.gather(
            *(events_of(it.replica, request(f"together{i}", "prompt", seed=i, max_tokens=12)) for i in range(4))
        )
        assert [ids(events) for events in together] == alone
        assert all(isinstance(events[-1], Done) for events in together)

    serve(story)


def test_closing_a_generator_cancels_its_request_before_the_next_step(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold(n_free=1)
        stream = it.replica.generate(request(max_tokens=None))
        await first_events(stream)
        await it.held()
        await stream.aclose()
        it.backend.release()
        assert await it.idle_now() == (True, 2), "the decode that ran when the client left was the last"

    serve(story)


def test_closing_a_continued_session_cancels_as_well(serve):
    async def story(it: Fixture) -> None:
        await events_of(it.replica, request("first", session_id="s"))
        _, n_steps = await it.idle_now()
        it.backend.hold(n_free=1)
        stream = it.replica.continue_("s", [1, 2, 3], None, {"seed": 1}, "req")
        await first_events(stream)
        await it.held()
        await stream.aclose()
        it.backend.release()
        assert await it.idle_now() == (True, n_steps + 2)

    serve(story)


def test_a_reader_whose_task_ends_without_closing_the_generator_cancels_as_well(serve):
    async def story(it: Fixture) -> None:
        stream = it.replica.generate(request(max_tokens=None))

        async def read_one() -> None:
            await first_events(stream)
            await it.held()

        it.backend.hold(n_free=1)
        await asyncio.create_task(read_one())
        # one turn of the loop: whoever waits for a task is woken before the callbacks that it got
        # while it ran
        await asyncio.sleep(0)
        it.backend.release()
        assert await it.idle_now() == (True, 2)
        await stream.aclose()

    serve(story)


def test_a_cancelled_task_cancels_the_request_that_it_waits_for(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold()
        task = asyncio.create_task(events_of(it.replica, request(max_tokens=None)))
        await it.held()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        it.backend.release()
        assert await it.idle_now() == (True, 1)

    serve(story)


def test_a_generator_that_is_never_started_submits_nothing(serve):
    async def story(it: Fixture) -> None:
        await it.replica.generate(request()).aclose()
        assert await it.idle_now() == (True, 0)

    serve(story)


def test_a_closed_generator_leaves_nothing_behind(serve):
    async def story(it: Fixture) -> None:
        for i in range(3):
            stream = it.replica.generate(request(str(i), max_tokens=None))
            await first_events(stream)
            await stream.aclose()
        await events_of(it.replica, request("last"))  # hand-overs keep their order: theirs are done when its own is
        assert (it.replica._recordings.n_running, len(it.replica._recordings)) == (0, 0)

    serve(story)


def test_cancel_by_id_ends_the_generator_with_done(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold(n_free=1)
        async with aclosing(it.replica.generate(request(max_tokens=None))) as stream:
            await first_events(stream)
            await it.replica.cancel("req")
            it.backend.release()
            last = [events async for events in stream][-1][-1]
        assert isinstance(last, Done)
        assert last.stats.finish_reason is FinishReason.CANCELLED

    serve(story)


def test_cancelling_an_unknown_request_is_fine(serve):
    async def story(it: Fixture) -> None:
        await it.replica.cancel("unknown")

    serve(story)


# --- errors are events ----------------------------------------------------------------------------


def error_of(events: list[Event]) -> Exception:
    (event,) = events
    assert isinstance(event, Failed)
    return event.error


def test_grammars_are_compiled_neither_on_the_event_loop_nor_on_the_engine_thread(serve):
    async def story(it: Fixture) -> None:
        (backend,) = it.backends
        compiling: list[threading.Thread] = []
        read = backend.vocab.token_table
        backend.grammars = GrammarCompiler(lambda: compiling.append(threading.current_thread()) or read())
        events = await events_of(it.replica, request(grammar='root ::= "abc"'))
        assert isinstance(events[-1], Done)
        (thread,) = compiling
        assert thread is not threading.current_thread()
        assert thread.name.startswith("asyncio")

    serve(story)


def test_the_table_of_the_vocabulary_is_built_before_the_first_request(serve, monkeypatch):
    built: list[GrammarCompiler] = []
    monkeypatch.setattr(GrammarCompiler, "prepare", lambda compiler: built.append(compiler))

    async def story(it: Fixture) -> None:
        assert built == [it.backends[0].grammars]

    serve(story)


def test_a_request_that_cannot_be_served_fails_as_an_event(serve):
    async def story(it: Fixture) -> None:
        assert isinstance(error_of(await events_of(it.replica, request(prompt="x" * 999))), ContextOverflow)
        assert isinstance(error_of(await events_of(it.replica, request(grammar="nonsense"))), InvalidParameter)
        assert isinstance(
            error_of(await events_of(it.replica, request(grammar="root ::= <no such token>"))), InvalidParameter
        )
        await events_of(it.replica, request(session_id="s"))
        for session, params, expected in (
            ("s", {"temperature": -1}, "temperature"),
            ("s", {"temprature": 1}, "temprature"),
            ("t", {}, "session_id"),
        ):
            error = error_of(
                [e async for events in it.replica.continue_(session, [1], None, params, "req") for e in events]
            )
            assert isinstance(error, ErllamaError)
            assert error.param == expected

    serve(story)


def test_a_full_queue_fails_as_an_event_that_says_when_to_come_back(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold()
        tasks = [asyncio.create_task(events_of(it.replica, request(str(i)))) for i in range(4)]
        await it.held()
        error = error_of(await events_of(it.replica, request("one too many")))
        assert isinstance(error, QueueFull)
        assert error.retry_after_s
        it.backend.release()
        assert all(isinstance(events[-1], Done) for events in await asyncio.gather(*tasks))

    serve(story)


def test_an_id_in_flight_is_refused_and_the_first_request_keeps_its_events(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold()
        first = asyncio.create_task(events_of(it.replica, request("same", max_tokens=9)))
        await it.held()
        assert "in flight" in str(error_of(await events_of(it.replica, request("same"))))
        it.backend.release()
        assert len(ids(await first)) == 9

    serve(story)


def test_an_id_whose_reader_left_is_in_flight_until_its_last_event_has_come(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold(n_free=1)
        stream = it.replica.generate(request("same", max_tokens=None))
        await first_events(stream)
        await it.held()
        await stream.aclose()
        it.backend.release()
        for _ in range(
            2
            # the second one runs after the step that ended the request: its last event waits for
            # this loop, which is busy here
        ):
            it.replica._model._call(lambda engine: engine.idle)
        assert "in flight" in str(error_of(await events_of(it.replica, request("same"))))
        await asyncio.sleep(0)  # now it comes
        assert len(ids(await events_of(it.replica, request("same")))) == 5

    serve(story)


def test_when_the_engine_dies_its_requests_fail_as_events_and_the_replica_is_unhealthy(serve):
    async def story(it: Fixture) -> None:
        await it.replica.check_health()
        it.backend.crash = RuntimeError("a bug")
        assert isinstance(error_of(await events_of(it.replica, request())), EngineStopped)
        with pytest.raises(EngineStopped, match="a bug"):
            await it.replica.check_health()
        assert isinstance(error_of(await events_of(it.replica, request())), EngineStopped)

    serve(story)


def test_shutdown_ends_running_requests_with_an_event_and_is_idempotent(serve):
    async def story(it: Fixture) -> None:
        it.backend.hold(n_free=1)
        stream = it.replica.generate(request(max_tokens=None))
        await first_events(stream)
        await it.held()
        with pytest.raises(TimeoutError):  # told to stop, inside a decode
            it.replica._model.shutdown(timeout_s=0.01)
        it.backend.release()
        await asyncio.to_thread(it.replica.close)
        last = [event async for events in stream for event in events][-1]
        assert isinstance(last, Failed)
        assert isinstance(last.error, EngineStopped)
        await asyncio.to_thread(it.replica.close)
        assert it.backend.closed

    serve(story)


# --- the rest of the engine API -------------------------------------------------------------------


def test_text_and_logprobs_of_a_reply_belong_to_its_tokens(serve):
    async def story(it: Fixture) -> None:
        reply = await complete(it.replica, b"hello", seed=3, response_tokens=7, logprobs=1)
        assert reply.text == bytes(reply.tokens).decode()
        assert reply.logprobs is not None
        assert len(reply.tokens) == len(reply.logprobs) == 7

    serve(story)


def test_tokenize_and_detokenize_are_inverse(serve):
    async def story(it: Fixture) -> None:
        assert await it.replica.detokenize(await it.replica.tokenize("h\u00e9llo")) == "h\u00e9llo"

    serve(story)


def test_a_chat_is_rendered_by_the_models_template(serve):
    async def story(it: Fixture) -> None:
        tokens = await it.replica.apply_chat_template([{"role": "user", "content": "hi"}], "be brief")
        assert await it.replica.detokenize(tokens) == "<|system|>be brief\n<|user|>hi\n<|assistant|>"

    serve(story)


def test_embeddings_are_one_unit_vector_per_input_also_beside_running_requests(serve):
    async def story(it: Fixture) -> None:
        async with aclosing(it.replica.generate(request(max_tokens=None))) as stream:
            await first_events(stream)
            vectors = await it.replica.embed([[i + 1] for i in range(40)])
        assert len(vectors) == 40
        assert all(sum(x * x for x in vector) == pytest.approx(1.0) for vector in vectors)

    serve(story)


def test_pairs_are_ranked_in_parts_which_end_when_the_caller_goes(serve, monkeypatch):
    monkeypatch.setattr("deployments.model.replica.HEARTBEAT_S", 0.01)

    async def story(it: Fixture) -> None:
        scores = await it.replica.rank([[ord("e")] * (i % 3) + [0] for i in range(40)])
        assert scores[:3] == pytest.approx([0, 1 / 2, 2 / 3])
        assert scores == scores[:3] * 13 + scores[:1]
        assert it.backend.calls["rank"] == 3

        it.backend.hold()
        stream = it.replica.generate(request(max_tokens=2))
        assert await anext(stream) == []
        await it.held()
        answer = it.replica.answer("call", "rank", [[[1]] * 40], {})
        assert await anext(answer) == [], "it waits for the engine, and says that it lives"
        await answer.aclose()
        it.backend.release()
        assert [event async for events in stream for event in events]
        await it.replica.rank([[1]] * 40)
        assert it.backend.calls["rank"] <= 3 + 1 + 3

    serve(story)


def test_adapters_are_loaded_scaled_listed_and_unloaded(serve, tmp_path: Path):
    (tmp_path / "lora.gguf").write_text("lora")

    async def story(it: Fixture) -> None:
        handle = await it.replica.load_adapter(str(tmp_path / "lora.gguf"))
        assert [(a.handle, a.scale) for a in await it.replica.list_adapters()] == [(handle, 1.0)]
        await it.replica.set_adapter_scale(handle, 0.5)
        assert [a.scale for a in await it.replica.list_adapters()] == [0.5]
        await it.replica.unload_adapter(handle)
        await it.replica.unload_adapter(handle)
        assert await it.replica.list_adapters() == ()
        assert it.backend.adapters == {}

    serve(story)


def test_adapters_of_the_config_are_there_from_the_start(serve, tmp_path: Path):
    (tmp_path / "lora.gguf").write_text("lora")

    async def story(it: Fixture) -> None:
        assert [a.scale for a in await it.replica.list_adapters()] == [0.25]

    serve(story, adapters=[{"path": str(tmp_path / "lora.gguf"), "scale": 0.25}])


def test_a_model_that_cannot_be_loaded_says_why_and_leaves_no_thread(tmp_path: Path):
    spec = ModelSpec(id="gone", path=str(tmp_path / "gone.gguf"), fingerprint="trusted")
    with pytest.raises(ModelLoadError, match=r"gone\.gguf"):
        ModelReplica(spec, n_cpus=1)


def test_an_adapter_of_the_config_that_cannot_be_loaded_says_why_and_leaves_no_thread_and_no_model(tmp_path: Path):
    fixture = Fixture.__new__(Fixture)
    with pytest.raises(ModelLoadError, match="nowhere"):
        fixture.__init__(tmp_path, adapters=[{"path": str(tmp_path / "nowhere.gguf")}])  # type: ignore[misc]
    assert [backend.closed for backend in fixture.backends] == [True]


def test_status_and_info_and_stats_never_wait_for_the_engine(serve):
    async def story(it: Fixture) -> None:
        assert await it.replica.status() is ModelStatus.IDLE
        it.backend.hold()
        task = asyncio.create_task(events_of(it.replica, request()))
        await it.held()
        info, stats = await it.replica.model_info(), await it.replica.stats()
        await it.replica.check_health()
        assert (info.id, info.context_size, info.n_parallel) == ("stub", 256, 2)
        assert stats.n_queued + stats.n_running == 1
        it.backend.release()
        await task

    serve(story)


def test_the_threads_are_the_cpus_that_ray_gave_unless_the_config_names_a_number(tmp_path: Path):
    configs: list[EngineConfig] = []

    class Loaded(Exception):
        pass

    def make_model(config: EngineConfig, **_: object) -> Model:
        configs.append(config)
        raise Loaded

    for n_threads in ("auto", 3):
        with pytest.raises(Loaded):
            ModelReplica(ModelSpec(id="m", path="x.gguf", n_threads=n_threads), n_cpus=7, make_model=make_model)
    assert [(config.n_threads, config.thread_limit) for config in configs] == [("auto", 7), (3, 3)]


def test_a_new_replica_has_the_hottest_prefixes_live_before_it_answers(tmp_path):
    """The second replica stands for one after a restart, on the same store."""
    (tmp_path / "model.gguf").write_bytes(b"not read by the stub")
    spec = ModelSpec(
        id="stub", path=str(tmp_path / "model.gguf"), fingerprint="trusted", n_ctx=1024, n_parallel=2, prewarm=1
    )
    store = StoreConfig(tiers=(TierConfig(str(tmp_path / "kv")),))

    def replica() -> ModelReplica:
        return ModelReplica(
            spec, n_cpus=1, store=store, make_model=partial(Model, make_backend=StubBackend.from_config)
        )

    async def asked(one: ModelReplica) -> Completion:
        return await complete(one, [1 + i * 7 % 250 for i in range(600)], response_tokens=2, temperature=0)

    async def run() -> None:
        first = replica()
        assert first._model.stats().idle_kv_tokens == 0
        try:
            cold = await asked(first)
        finally:
            await asyncio.to_thread(first.close)
        second = replica()
        try:
            assert second._model.stats().idle_kv_tokens >= 600
            warm = await asked(second)
        finally:
            await asyncio.to_thread(second.close)
        assert (warm.tokens, warm.stats.cache_tier) == (cold.tokens, "live")

    asyncio.run(run())
