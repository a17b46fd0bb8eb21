"""Weights that are unloaded and come back, idle KV that is dropped, and what a model tells a memory
scheduler. On the stub.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cache_store import Store
from erllama.errors import ModelLoadError
from erllama.model import Model
from erllama.stats import EvictResult
from tests.support.engine_kit import request
from tests.support.flow_kit import ask, flushed, prompt, reply, rig_of
from tests.support.gated_stub import WAIT_S, GatedStub


@pytest.fixture
def stub() -> GatedStub:
    return GatedStub(256, 2)


@pytest.fixture
def model(stub: GatedStub, tmp_path: Path) -> Iterator[Model]:
    (tmp_path / "m.gguf").write_bytes(b"x")
    model = Model(path=str(tmp_path / "m.gguf"), n_ctx=256, n_parallel=2, make_backend=lambda _: stub)
    yield model
    stub.release()
    model.shutdown()


# --- unload ---------------------------------------------------------------------------------------


def test_an_unload_frees_context_and_weights_and_the_next_request_loads_both(store: Store):
    rig = rig_of(store)
    ask(rig, "it", prompt(600))
    evicted = rig.backend.kv_bytes
    result = rig.engine.evict(weights=True)
    assert result == EvictResult(n_tokens=603, freed_bytes=evicted + 1000, weights_unloaded=True)
    assert (rig.engine.stats.has_context, rig.engine.stats.weights_loaded, rig.engine.stats.kv_bytes) == (
        False,
        False,
        0,
    )
    ask(rig, "next", prompt(600, 1))
    assert rig.ids("next") == reply(prompt(600, 1))
    assert (rig.engine.stats.has_context, rig.engine.stats.weights_loaded) == (True, True)
    assert rig.backend.calls["load"] == 1


def test_kv_comes_back_through_the_store_after_an_unload(store: Store):
    rig = rig_of(store)
    ask(rig, "it", prompt(600))
    rig.engine.evict(weights=True)
    flushed(store)
    assert ask(rig, "again", [*prompt(600), 1]).stats.cached_tokens == 600


def test_a_second_unload_frees_nothing_and_says_that_the_weights_are_away():
    rig = rig_of(None)
    rig.engine.evict(weights=True)
    assert rig.engine.evict(weights=True) == EvictResult(weights_unloaded=True)


def test_an_unload_after_an_evict_frees_the_weights():
    rig = rig_of(None)
    rig.engine.evict()
    assert rig.engine.evict(weights=True) == EvictResult(freed_bytes=1000, weights_unloaded=True)


@pytest.mark.parametrize("steps", [0, 5], ids=["waits", "runs"])
def test_while_a_request_runs_or_waits_an_unload_is_an_evict_that_says_so(store: Store, steps: int):
    rig = rig_of(store)
    ask(rig, "ended", prompt(600))
    rig.submit(request("it", prompt(300, 1), max_tokens=40))
    rig.step(steps)
    assert rig.engine.evict(weights=True) == EvictResult(n_tokens=603, n_live=1)
    rig.run()
    assert rig.ids("it") == reply(prompt(300, 1), max_tokens=40)


def test_a_request_that_waits_without_a_context_keeps_the_weights():
    rig = rig_of(None)
    rig.engine.evict()
    rig.submit(request("it", prompt(300)))
    assert rig.engine.evict(weights=True) == EvictResult(n_live=1)
    assert rig.backend.weights_loaded


def test_weights_that_could_not_be_loaded_again_stay():
    rig = rig_of(None)
    rig.backend.load_problem = "no such file"
    result = rig.engine.evict(weights=True)
    assert not result.weights_unloaded
    assert result.freed_bytes > 0
    assert rig.engine.stats.weights_loaded


def test_a_file_that_is_gone_fails_the_request_and_a_later_one_tries_again(model: Model, stub: GatedStub):
    model.unload()
    stub.load_problem = "the file is gone"
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="the file is gone"):
            model.complete("hello", response_tokens=2)
    assert not model.stats().weights_loaded
    stub.load_problem = ""
    assert len(model.complete("hello", response_tokens=2).tokens) == 2
    assert model.stats().weights_loaded


def test_text_calls_and_info_go_on_without_weights(model: Model):
    info = model.model_info()
    model.unload()
    assert model.detokenize(model.tokenize("hello")) == "hello"
    assert model.model_info() == info
    assert not model.stats().weights_loaded


def test_embeddings_load_the_weights(model: Model):
    expected = model.embed([1, 2])
    model.unload()
    assert model.embed([1, 2]) == expected
    model._loop.call(lambda _: None).result(WAIT_S)  # the step behind it has published
    assert model.stats().weights_loaded


# --- memory ---------------------------------------------------------------------------------------


def test_memory_tells_what_the_context_and_the_weights_hold(model: Model, stub: GatedStub):
    model.complete("hello", response_tokens=3)
    memory = model.memory()
    assert (memory.kv_bytes, model.stats().idle_kv_tokens) == (stub.kv_bytes, 7)
    assert (memory.weights_bytes, memory.weights_loaded, memory.has_context) == (1000, True, True)
    model.unload()
    memory = model.memory()
    assert (memory.kv_bytes, model.stats().idle_kv_tokens, memory.weights_bytes) == (0, 0, 0)
    assert (memory.weights_loaded, memory.has_context) == (False, False)


def test_memory_counts_who_runs_and_waits_and_never_waits_for_the_engine(model: Model, stub: GatedStub):
    stub.hold(n_free=5)
    streams = [model.infer([1, 2], response_tokens=20) for _ in range(3)]
    stub.wait_until_held()
    memory = model.memory()
    assert memory.n_running + memory.n_queued == 3
    assert memory.idle_s == 0.0
    stub.release()
    for stream in streams:
        stream.result()


def test_idle_time_runs_from_the_end_of_the_last_request(model: Model):
    model._loop._used_ns -= 10**12
    assert model.memory().idle_s >= 1000
    model.complete("hello", response_tokens=1)
    assert model.memory().idle_s < 500


def test_embeddings_are_use(model: Model):
    model._loop._used_ns -= 10**12
    model.embed([1, 2])
    assert model.memory().idle_s < 500


def test_memory_can_be_asked_for_after_shutdown(model: Model):
    model.shutdown()
    assert model.memory().n_running == 0
