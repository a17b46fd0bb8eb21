"""Whatever goes wrong beside a request, it is served: by computing what cannot be restored."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache_store import Block, Store
from cache_store.testing import Fault
from erllama.events import FinishReason
from tests.support.engine_kit import OnCall, Rig, request
from tests.support.flow_kit import POLICY, WAIT_S, Faulty, ask, open_store, problem, prompt, reply, rig_of

# --- whatever goes wrong --------------------------------------------------------------------------


def restoring_rig(store: Store) -> tuple[Rig, OnCall]:
    """A rig whose request "it" waits for a read that is under way."""
    ask(rig_of(store), "first", prompt(1000))
    executor = OnCall()
    rig = rig_of(store, executor=executor)
    rig.submit(request("it", prompt(1000), max_tokens=4))
    rig.step()
    assert "<Sequence it restoring " in repr(rig.engine)
    assert rig.engine.stats.n_prefilling == 1
    return rig, executor


def test_a_request_goes_on_when_its_read_is_there(store: Store):
    rig, executor = restoring_rig(store)
    assert not rig.step()
    executor.run()
    rig.run()
    assert rig.done("it").stats.cached_tokens == 999


@pytest.mark.parametrize("read_first", [False, True], ids=["before it is read", "after it was read"])
def test_a_request_cancelled_while_it_is_restored_leaves_nothing_behind(store: Store, read_first: bool):
    rig, executor = restoring_rig(store)
    if read_first:
        executor.run()
    rig.engine.cancel("it")
    executor.run()
    assert not rig.step()
    assert rig.reason("it") is FinishReason.CANCELLED
    assert "free=[0, 1, 2, 3]" in repr(rig.engine)
    assert rig.backend.kv == [[], [], [], []]
    assert bool(rig.backend.images) == read_first  # nobody reads for a request that is gone
    assert all(image.closed for image in rig.backend.images)


def test_others_run_while_one_is_restored(store: Store):
    rig, executor = restoring_rig(store)
    rig.submit(request("other", prompt(20, 5), max_tokens=4))
    rig.run()
    assert rig.ids("other") == reply(prompt(20, 5))
    executor.run()
    rig.run()
    assert rig.ids("it") == reply(prompt(1000))


def test_a_restoring_sequence_may_change_its_id(store: Store):
    rig, executor = restoring_rig(store)
    for name in ("x", "y"):
        rig.submit(request(name, prompt(20, ord(name)), max_tokens=50))
    rig.step(3)
    rig.engine.cancel("x")
    rig.step()
    executor.run()
    rig.run()
    assert rig.ids("it") == reply(prompt(1000))
    assert rig.ids("y") == reply(prompt(20, ord("y")), max_tokens=50)


def test_closing_the_engine_closes_what_was_read_for_nobody(store: Store):
    rig, executor = restoring_rig(store)
    executor.run()
    rig.engine.close()
    assert all(image.closed for image in rig.backend.images)


def test_a_restore_that_the_backend_refuses_is_computed_instead(store: Store):
    ask(rig_of(store), "first", prompt(1000))
    rig = rig_of(store)
    rig.backend.fail_restores = 1
    assert ask(rig, "second", prompt(1000)).stats.cached_tokens == 0
    assert rig.ids("second") == reply(prompt(1000))
    assert rig.engine.stats.cache.failed_reads == 1
    assert "told to fail" in problem(rig)
    assert all(image.closed for image in rig.backend.images)


@pytest.mark.parametrize("operation", ["read", "publish", "*"])
@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.HANG, Fault.TEAR, Fault.NO_SPACE, Fault.READ_ONLY])
def test_a_broken_store_never_fails_a_request(faulty: Faulty, operation: str, fault: Fault):
    policy = replace(POLICY, read_timeout_s=0.3)
    ask(rig_of(faulty.store, policy), "first", prompt(600))
    assert faulty.store.flush(WAIT_S)
    faulty.tier.inject(operation, fault, times=None, n_bytes=100)
    rig = rig_of(faulty.store, policy)
    for name in ("same", "other"):
        tokens = prompt(600, seed=name == "other")
        ask(rig, name, tokens)
        assert rig.ids(name) == reply(tokens)


@pytest.mark.parametrize("method", ["lookup", "read"])
def test_a_store_that_raises_on_reading_is_a_miss(store: Store, method: str, monkeypatch: pytest.MonkeyPatch):
    ask(rig_of(store), "first", prompt(600))

    def fail(*args: object, **more: object) -> object:
        raise RuntimeError("a bug of the store's")

    monkeypatch.setattr(store, method, fail)
    rig = rig_of(store)
    ask(rig, "second", prompt(600))
    assert rig.ids("second") == reply(prompt(600))
    assert "a bug of the store's" in problem(rig)
    assert all(image.closed for image in rig.backend.images)


@pytest.mark.parametrize("error", [OSError("disk"), MemoryError("staging")], ids=lambda e: type(e).__name__)
def test_a_store_that_raises_on_saving_loses_the_save_alone(
    store: Store, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    def fail(blocks: list[Block], *, wait_s: float = 0.0) -> int:
        raise error

    monkeypatch.setattr(store, "save", fail)
    rig = rig_of(store)
    ask(rig, "it", prompt(600))
    assert rig.ids("it") == reply(prompt(600))
    assert rig.engine.stats.cache.failed_saves > 0


def test_a_corrupt_block_shortens_the_prefix_and_the_request_is_served(tmp_path: Path):
    with open_store(tmp_path) as store:
        ask(rig_of(store), "first", prompt(1000))
    victim = next(path for path in tmp_path.rglob("*-200-100.*.rows.arrow"))  # tokens 512 to 767
    victim.write_bytes(victim.read_bytes()[:-200] + bytes(200))
    with open_store(tmp_path) as store:
        rig = rig_of(store)
        assert ask(rig, "second", prompt(1000)).stats.cached_tokens == 512
        assert rig.ids("second") == reply(prompt(1000))
        assert sum(store.stats().corrupt.values()) == 1
