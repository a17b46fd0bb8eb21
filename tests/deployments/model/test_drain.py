"""A replica that is told to go: nothing new, time for what runs, then everything saved, to fail
over.
"""

import asyncio
import inspect
import threading
from functools import partial
from pathlib import Path

import pytest
from ray._private import worker
from ray.serve._private import replica as serve_replica_module

from deployments.config import ModelSpec
from deployments.model.drain import serve_is_stopping, watch_drain
from deployments.model.replica import ModelReplica
from erllama.errors import EngineStopped
from erllama.events import Done, Event, Failed, Tokens
from erllama.model import Model
from erllama.request import GenerationRequest, SamplingParams
from tests.support.gated_stub import WAIT_S, GatedStub


@pytest.fixture
def stub() -> GatedStub:
    return GatedStub(256, 2)


@pytest.fixture
def replica(tmp_path: Path, stub: GatedStub):
    (tmp_path / "model.gguf").write_bytes(b"not read by the stub")
    spec = ModelSpec(id="stub", path=str(tmp_path / "model.gguf"), fingerprint="trusted", n_ctx=256, n_parallel=2)
    replica = ModelReplica(spec, n_cpus=1, make_model=partial(Model, make_backend=lambda config: stub))
    yield replica
    stub.release()
    replica.close()


def request(name: str, max_tokens: int | None) -> GenerationRequest:
    return GenerationRequest(name, (5, 6, 7), SamplingParams(seed=1), max_tokens=max_tokens, ignore_eos=True)


async def turn() -> None:
    await asyncio.sleep(0)


async def events_of(replica: ModelReplica, one: GenerationRequest) -> list[Event]:
    return [event async for events in replica.generate(one) for event in events]


def test_a_draining_replica_sends_newcomers_elsewhere_and_lets_others_finish(replica, stub):
    async def story() -> None:
        stub.hold(n_free=1)
        running = asyncio.create_task(events_of(replica, request("a", 8)))
        await asyncio.to_thread(stub.wait_until_held)
        drain = asyncio.create_task(asyncio.to_thread(replica.drain, WAIT_S))
        while not replica._draining:
            await turn()
        (late,) = await events_of(replica, request("b", 8))
        assert isinstance(late, Failed)
        assert late.error.resumable
        assert not drain.done()
        stub.release()
        assert isinstance((await running)[-1], Done)
        await drain

    asyncio.run(asyncio.wait_for(story(), WAIT_S))


def test_what_runs_on_beyond_the_time_ends_with_an_error_that_lets_it_fail_over(replica, stub):
    async def story() -> None:
        stub.hold(n_free=3)
        running = asyncio.create_task(events_of(replica, request("a", None)))
        await asyncio.to_thread(stub.wait_until_held)
        drain = asyncio.create_task(asyncio.to_thread(replica.drain, 0.0))
        while not replica._draining:
            await turn()
        stub.release()
        *tokens, last = await running
        assert any(isinstance(event, Tokens) for event in tokens)
        assert isinstance(last, Failed)
        assert isinstance(last.error, EngineStopped)
        assert last.error.resumable
        await drain

    asyncio.run(asyncio.wait_for(story(), WAIT_S))


def test_every_attempt_of_a_request_is_cancelled_by_the_requests_own_id(replica, stub):
    async def story() -> None:
        stub.hold(n_free=1)
        running = [asyncio.create_task(events_of(replica, request(name, None))) for name in ("a~r3", "a")]
        await asyncio.to_thread(stub.wait_until_held)
        while replica._model.pending_len < 2:
            await turn()
        await replica.cancel("a")
        stub.release()
        for task in running:
            last = (await task)[-1]
            assert isinstance(last, Done)
            assert last.stats.cancelled

    asyncio.run(asyncio.wait_for(story(), WAIT_S))


def test_the_watch_tells_once_that_a_stop_has_begun(monkeypatch):
    monkeypatch.setattr("deployments.model.drain.PERIOD_S", 0.001)
    asked, told = threading.Event(), threading.Event()
    stopping = False

    def is_stopping() -> bool:
        asked.set()
        return stopping

    watch = watch_drain(told.set, is_stopping)
    assert asked.wait(WAIT_S)
    assert not told.is_set()
    stopping = True
    assert told.wait(WAIT_S)
    watch.join(WAIT_S)
    assert not watch.is_alive()


def test_outside_of_serve_nothing_is_being_stopped():
    assert not serve_is_stopping()


def test_rays_private_names_are_where_the_drain_looks_for_them():
    """When this fails, Ray has moved them: replicas then drain without an early save
    (tests/serve/test_failover.py says so as well).
    """
    assert hasattr(worker.global_worker, "actors")
    assert "self._shutting_down = True" in inspect.getsource(serve_replica_module.Replica._perform_graceful_shutdown)
    assert "self._replica_impl" in inspect.getsource(serve_replica_module.ReplicaActor)
