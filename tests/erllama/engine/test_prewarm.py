"""Stored prefixes are put back before anyone asks for them, and nothing is computed or given up for
that.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_store import ChainKey, Store, StoreConfig, TierConfig
from erllama.cache.live import Ids
from erllama.errors import InvalidParameter
from erllama.kv.layout import KvKind
from erllama.model import Model
from erllama.request import GenerationRequest
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import Rig, request
from tests.support.flow_kit import (
    CHECKPOINT_KINDS,
    LOGITS,
    N_CTX,
    POLICY,
    WAIT_S,
    ask,
    flushed,
    open_store,
    problem,
    prompt,
    reply,
    rig_of,
)
from tests.support.gated_stub import GatedStub

# --- a request that only restores -----------------------------------------------------------------


def restore(rig: Rig, name: str, tokens: Sequence[int]) -> int:
    """How much of `tokens` is put back."""
    done = ask(rig, name, list(tokens), max_tokens=0, restore_only=True)
    assert (rig.ids(name), rig.text(name)) == ([], "")
    return done.stats.cached_tokens


@pytest.mark.parametrize("kind", [KvKind.ATTENTION, *CHECKPOINT_KINDS])
def test_a_restored_conversation_is_live_for_its_next_turn(store: Store, kind: KvKind):
    first = rig_of(store, kind=kind)
    ask(first, "first", prompt(700), max_tokens=9)
    whole = [*prompt(700), *first.ids("first")][:-1]
    rig = rig_of(store, kind=kind)
    assert restore(rig, "warm", whole) == len(whole)
    assert rig.backend.plans == []
    stats = ask(rig, "next", [*whole, 1, 2, 3]).stats
    assert (stats.cached_tokens, stats.cache_tier) == (len(whole), "live")
    assert rig.ids("next") == reply([*whole, 1, 2, 3])
    assert problem(rig) == ""


def test_the_logits_of_a_restored_prompt_are_live_too(store: Store):
    ask(rig_of(store, LOGITS), "first", prompt(700), max_tokens=0)
    rig = rig_of(store, LOGITS)
    restore(rig, "warm", prompt(700))
    assert ask(rig, "again", prompt(700), max_tokens=1).stats.cached_tokens == 700
    assert rig.backend.plans == []
    assert rig.ids("again") == reply(prompt(700), max_tokens=1)


def test_what_is_not_stored_is_not_computed(store: Store):
    rig = rig_of(store)
    assert restore(rig, "warm", prompt(700)) == 0
    assert (rig.backend.plans, rig.backend.kv) == ([], [[]] * 4)


def test_a_part_that_is_stored_is_put_back_and_the_rest_is_not_computed(store: Store):
    ask(rig_of(store), "first", prompt(500), max_tokens=0)
    rig = rig_of(store)
    assert restore(rig, "warm", prompt(700)) == 500
    assert rig.backend.plans == []


def test_without_a_store_nothing_is_computed():
    rig = rig_of(None)
    assert restore(rig, "warm", prompt(700)) == 0
    assert rig.backend.plans == []


def test_a_restore_alone_is_no_request_in_the_statistics_of_the_cache(store: Store, saves: list):
    ask(rig_of(store), "first", prompt(700), max_tokens=0)
    saves.clear()
    rig = rig_of(store)
    restore(rig, "warm", prompt(700))
    restore(rig, "nothing", prompt(700, 1))
    stats = rig.engine.stats
    assert (stats.cache.hits, stats.cache.misses, stats.counts.prompt_tokens, stats.counts.cached_tokens) == (
        {},
        0,
        0,
        0,
    )
    assert saves == []


def test_no_idle_kv_is_given_up_for_a_restore(store: Store):
    ask(rig_of(store), "first", prompt(700), max_tokens=0)
    rig = rig_of(store, n_parallel=2)
    for seed in (5, 6):
        ask(rig, f"idle {seed}", prompt(300, seed))
    assert restore(rig, "warm", prompt(700)) == 0
    tiers = [ask(rig, f"next {seed}", [*prompt(300, seed), 1]).stats.cache_tier for seed in (5, 6)]
    assert tiers == ["live", "live"]


def test_of_several_restores_only_those_run_that_find_an_id_which_nobody_waits_for(store: Store):
    for seed in (0, 1, 2):
        ask(rig_of(store), "first", prompt(700, seed), max_tokens=0)
    rig = rig_of(store, n_parallel=2)
    warm = [request(f"warm {seed}", prompt(700, seed), max_tokens=0, restore_only=True) for seed in (0, 1, 2)]
    rig.submit(*warm, request("it", prompt(300, 5), max_tokens=4))
    rig.run()
    assert [rig.done(one.request_id).stats.cached_tokens for one in warm] == [700, 0, 0]
    assert rig.ids("it") == reply(prompt(300, 5))


def test_a_restore_does_not_wait_for_a_neighbour_that_computes_the_same(store: Store):
    rig = rig_of(store)
    rig.submit(request("neighbour", prompt(1500), max_tokens=1))
    rig.step()
    rig.submit(request("warm", prompt(1500), max_tokens=0, restore_only=True))
    rig.step()
    assert rig.ended("warm")
    assert not rig.ended("neighbour")


def test_what_only_restores_has_no_reply():
    with pytest.raises(InvalidParameter, match="max_tokens must be 0, got 4") as refused:
        request("it", restore_only=True, max_tokens=4)
    assert refused.value.param == "restore_only"


# --- the most valuable ones -----------------------------------------------------------------------


@contextmanager
def stub_model(
    folder: Path, store: Store | StoreConfig | None, stub: StubBackend | None = None, n_parallel: int = 3
) -> Iterator[Model]:
    path = folder / "m.gguf"
    if not path.exists():  # it is told by its time, too
        path.write_bytes(b"not read by the stub")
    backend = stub or StubBackend(N_CTX, n_parallel, reply_tokens=0)
    with Model(
        path=str(path),
        n_ctx=N_CTX,
        n_parallel=n_parallel,
        fingerprint="trusted",
        store=store,
        policy=POLICY,
        make_backend=lambda _: backend,
    ) as model:
        yield model


@pytest.fixture
def config(tmp_path: Path) -> StoreConfig:
    return StoreConfig(tiers=(TierConfig(str(tmp_path / "kv")),))


@pytest.fixture
def conversations(tmp_path: Path, config: StoreConfig) -> list[list[int]]:
    """Five that an earlier model had, each asked for once more often than the one before it."""
    tokens = [prompt(600, seed) for seed in range(5)]
    with stub_model(tmp_path, config, n_parallel=1) as model:
        for times, one in enumerate(tokens, start=1):
            for _ in range(times):
                model.complete(one, response_tokens=2, seed=1)
                model.evict()
    return tokens


def test_after_a_restart_the_most_asked_for_are_live_before_anyone_asks(
    tmp_path: Path, config: StoreConfig, conversations: list
):
    with stub_model(tmp_path, config) as model:
        assert model.prewarm(2, WAIT_S) == 2
        assert model.stats().idle_kv_tokens == 2 * 601
        tiers = [model.complete(tokens, response_tokens=2).stats.cache_tier for tokens in reversed(conversations)]
        assert tiers == ["live", "live", "disk", "disk", "disk"]


def test_no_more_are_warmed_than_there_are_sequences_and_the_best_is_given_up_last(
    tmp_path: Path, config: StoreConfig, conversations: list
):
    with stub_model(tmp_path, config) as model:
        assert model.prewarm(5, WAIT_S) == 3
        for seed in (10, 11):
            model.complete(prompt(600, seed), response_tokens=2)
        assert model.complete(conversations[4], response_tokens=2).stats.cache_tier == "live"
        assert model.complete(conversations[3], response_tokens=2).stats.cache_tier == "disk"


def test_each_salt_gets_its_turn_and_its_own(tmp_path: Path, config: StoreConfig):
    with stub_model(tmp_path, config) as model:
        for number, salt in enumerate(["a", "a", "a", "b", "stranger"]):
            model.submit(request(f"first {number}", prompt(300, number), max_tokens=0, salt=salt)).result()
    with stub_model(tmp_path, config) as model:
        assert model.prewarm(2, WAIT_S, salts=("a", "b", "nobody")) == 2
        tiers = {
            (number, salt): model.submit(request(f"{number} {salt}", prompt(300, number), max_tokens=0, salt=salt))
            .result()
            .stats.cache_tier
            for number, salt in [(3, "b"), (3, "a"), (4, "stranger")]
        }
        assert list(tiers.values()) == ["live", None, "disk"]


def test_what_is_live_already_is_kept_and_counted(tmp_path: Path, config: StoreConfig, conversations: list):
    with stub_model(tmp_path, config) as model:
        others = [prompt(600, seed) for seed in (10, 11)]
        for tokens in [*others, conversations[4]]:
            model.complete(tokens, response_tokens=2)
        assert model.prewarm(2, WAIT_S) == 1
        assert [model.complete(tokens, response_tokens=2).stats.cache_tier for tokens in others] == ["live", "live"]


def test_without_a_store_or_a_number_nothing_is_warmed(tmp_path: Path, config: StoreConfig, conversations: list):
    with stub_model(tmp_path, None) as model:
        assert model.prewarm(2, WAIT_S) == 0
    with stub_model(tmp_path, config) as model:
        assert model.prewarm(0, WAIT_S) == 0


def test_a_stored_prefix_longer_than_the_context_is_warmed_as_far_as_it_fits(
    tmp_path: Path, config: StoreConfig, conversations: list
):
    with stub_model(tmp_path, config, StubBackend(400, 3, reply_tokens=0)) as model:
        assert model.prewarm(1, WAIT_S) == 1
        assert model.complete(conversations[4][:390], response_tokens=1).stats.cache_tier == "live"


def test_files_that_are_gone_cost_only_the_warming(
    tmp_path: Path, config: StoreConfig, conversations: list, monkeypatch: pytest.MonkeyPatch
):
    with open_store(tmp_path / "kv") as store, stub_model(tmp_path, store) as model:
        hottest = store.hottest
        gone: list[Path] = []

        def then_gone(root: ChainKey, limit: int, deadline_s: float | None = None) -> list[Ids]:
            found = hottest(root, limit, deadline_s)
            gone.extend(path for path in (tmp_path / "kv").rglob("*") if path.is_file() and path.suffix == ".arrow")
            for path in gone:
                path.unlink()
            return found

        monkeypatch.setattr(store, "hottest", then_gone)
        assert model.prewarm(2, WAIT_S) == 0
        assert gone
        assert model.complete(conversations[4], response_tokens=2, seed=1).tokens == tuple(
            reply(conversations[4], max_tokens=2)
        )


class SlowIndex:
    """A store whose index is not known in time."""

    def wait_loaded(self, timeout_s: float) -> bool:
        return False

    def hottest(self, root: ChainKey, limit: int, deadline_s: float | None = None) -> list[Ids]:
        raise AssertionError("asked before it is loaded")


def test_an_index_that_is_not_loaded_in_time_is_not_waited_for(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
):
    slow = SlowIndex()
    monkeypatch.setattr(store, "wait_loaded", slow.wait_loaded)
    monkeypatch.setattr(store, "hottest", slow.hottest)
    with stub_model(tmp_path, store) as model:
        assert model.prewarm(2, 0.05) == 0


def test_an_engine_that_is_too_busy_to_answer_is_not_waited_for(tmp_path: Path, store: Store):
    stub = GatedStub(N_CTX, 2)
    with stub_model(tmp_path, store, stub, n_parallel=2) as model:
        flushed(store)
        stub.hold()
        stream = model.infer([1, 2], response_tokens=1)
        stub.wait_until_held()
        assert model.prewarm(2, 0.05) == 0
        stub.release()
        assert len(stream.result().tokens) == 1


def test_the_result_of_a_request_is_waited_for_no_longer_than_asked(tmp_path: Path):
    stub = GatedStub(N_CTX, 2)
    with stub_model(tmp_path, None, stub, n_parallel=2) as model:
        stub.hold()
        stream = model.submit(GenerationRequest("it", (1, 2), max_tokens=4))
        stub.wait_until_held()
        with pytest.raises(TimeoutError, match="did not end in time"):
            stream.result(0.05)
        stub.release()
        assert stream.result(WAIT_S).stats.cancelled
