"""`erllama.Model` on the stub backend."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cache_store import Store, StoreConfig, TierConfig, TierError, TokenChain, open_tier
from cache_store.testing import Fault, FaultyTier
from erllama.cache.policy import CachePolicy
from erllama.config import EngineConfig
from erllama.errors import EngineStopped, InvalidParameter, ModelLoadError, SessionNotFound, TranscriptMismatch
from erllama.events import Done, Event, Failed, FinishReason, Tokens
from erllama.kv.layout import KvKind
from erllama.model import Model
from erllama.request import GenerationRequest
from erllama.stats import ModelStatus
from erllama.testing.stub_backend import StubBackend
from tests.support.bounds import NO_WAIT_S
from tests.support.gated_stub import WAIT_S, GatedStub


@pytest.fixture
def stub() -> GatedStub:
    return GatedStub(256, 2)


@pytest.fixture
def model(tmp_path: Path, stub: GatedStub) -> Iterator[Model]:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not read by the stub")
    with Model(path=str(path), n_ctx=256, n_parallel=2, fingerprint="trusted", make_backend=lambda _: stub) as model:
        yield model
        stub.release()
    assert stub.closed


def test_complete_takes_text_or_token_ids(model: Model):
    assert (
        model.complete("hello", seed=1, response_tokens=5).tokens
        == model.complete(list(b"hello"), seed=1, response_tokens=5).tokens
    )


def test_streamed_text_is_the_text_of_the_whole_reply(model: Model):
    streamed = "".join(
        e.text for e in model.infer(model.tokenize("hello"), seed=1, response_tokens=20) if isinstance(e, Tokens)
    )
    assert streamed == model.complete("hello", seed=1, response_tokens=20).text


def test_params_may_come_as_a_mapping_too(model: Model):
    assert len(model.infer([1, 2], {"response_tokens": 3}).result().tokens) == 3


def test_leaving_a_stream_cancels_its_request(model: Model, stub: GatedStub):
    stub.hold(n_free=1)
    with model.infer([1, 2]) as stream:
        next(iter(stream))
    stub.release()
    last = list(stream)[-1]
    assert isinstance(last, Done)
    assert last.stats.finish_reason is FinishReason.CANCELLED


def test_closing_a_stream_that_has_ended_is_fine(model: Model):
    stream = model.infer([1, 2], response_tokens=1)
    assert len(list(stream)) == 2
    stream.close()
    assert list(stream) == []


def test_the_result_of_a_stream_that_was_read_is_an_error(model: Model):
    stream = model.infer([1, 2], response_tokens=1)
    stream.result()
    with pytest.raises(InvalidParameter, match="read already"):
        stream.result()


def test_the_error_of_a_request_is_raised_by_its_result(model: Model):
    with pytest.raises(InvalidParameter, match="grammar"):
        model.infer([1, 2], grammar="nonsense").result()


def test_a_second_request_of_an_id_is_refused_and_the_first_keeps_its_stream(model: Model, stub: GatedStub):
    stub.hold()
    first = model.submit(GenerationRequest("same", (1, 2), max_tokens=4))
    with pytest.raises(InvalidParameter, match="in flight"):
        model.submit(GenerationRequest("same", (1, 2)))
    stub.release()
    assert len(first.result().tokens) == 4


def test_posted_requests_go_to_the_sink_and_streams_do_not(tmp_path: Path, stub: GatedStub):
    posted: list[tuple[str, Event]] = []
    ended = threading.Event()

    def sink(events: list[tuple[str, Event]]) -> None:
        posted.extend(events)
        if any(isinstance(event, Done) for _, event in events):
            ended.set()

    (tmp_path / "m.gguf").write_bytes(b"")
    with Model(path=str(tmp_path / "m.gguf"), fingerprint="trusted", sink=sink, make_backend=lambda _: stub) as model:
        model.infer([1], response_tokens=2).result()
        model.post(GenerationRequest("posted", (1, 2), max_tokens=2))
        assert ended.wait(WAIT_S)
    assert {name for name, _ in posted} == {"posted"}


def test_the_queue_is_told(model: Model, stub: GatedStub):
    assert (model.queue_depth, model.pending_len, model.status()) == (0, 0, ModelStatus.IDLE)
    stub.hold()
    streams = [model.infer([1, 2], response_tokens=1) for _ in range(5)]
    stub.wait_until_held()
    assert model.pending_len == 5
    stub.release()
    for stream in streams:
        stream.result()
    assert (model.queue_depth, model.pending_len, model.status()) == (0, 0, ModelStatus.IDLE)
    assert repr(model) == "<Model default idle running=0/2 queued=0>"


def test_an_adapter_is_checked_while_the_engine_computes(model: Model, stub: GatedStub, tmp_path: Path, monkeypatch):
    (tmp_path / "lora").write_text("x")
    checked = threading.Event()
    monkeypatch.setattr(stub, "check_adapter", lambda path: checked.set())
    stub.hold()
    stream = model.infer([1, 2], response_tokens=3)
    stub.wait_until_held()
    loading = threading.Thread(target=model.load_adapter, args=[str(tmp_path / "lora")])
    loading.start()
    assert checked.wait(WAIT_S)
    stub.release()
    loading.join(WAIT_S)
    assert len(model.list_adapters()) == 1
    stream.result()


def test_an_adapter_is_listed_as_soon_as_loading_it_returns(model: Model, tmp_path: Path):
    (tmp_path / "lora").write_text("lora")
    handle = model.load_adapter(str(tmp_path / "lora"))
    assert [a.handle for a in model.list_adapters()] == [handle]


def test_shutdown_is_idempotent_and_a_stopped_model_refuses(model: Model):
    model.shutdown()
    model.stop()
    with pytest.raises(EngineStopped):
        model.infer([1, 2])
    with pytest.raises(EngineStopped):
        model.embed([1, 2])


def test_a_model_whose_file_cannot_be_digested_is_freed_again(tmp_path: Path, stub: GatedStub):
    with pytest.raises(ModelLoadError):
        Model(path=str(tmp_path / "nowhere.gguf"), fingerprint="trusted", make_backend=lambda _: stub)
    assert stub.closed


def test_a_start_that_fails_late_leaves_no_thread_and_frees_the_backend(tmp_path, monkeypatch):
    """The fixture of all tests looks for threads."""
    stub = StubBackend(256, 2)
    (tmp_path / "m.gguf").touch()

    def fail(*_: object, **__: object) -> None:
        raise EngineStopped("no thread to be had")

    monkeypatch.setattr("erllama.model.EngineLoop", fail)
    with pytest.raises(EngineStopped, match="no thread"):
        Model(path=str(tmp_path / "m.gguf"), fingerprint="trusted", make_backend=lambda _: stub)
    assert stub.closed


@pytest.mark.parametrize("setting", ["n_context", "make_back_end"])
def test_an_unknown_setting_is_refused_and_named(setting: str):
    with pytest.raises(InvalidParameter, match=f"unknown setting '{setting}'"):
        Model(**{setting: 1})


# --- with a store ---------------------------------------------------------------------------------

POLICY = CachePolicy(
    min_tokens=16,
    cold_min_tokens=16,
    cold_step_tokens=512,
    restore_always=True,
    logits_share=0,
    share_wait_s=0,
    session_resume_wait_ms=0,
)
TEXT = random.Random(0).choices(range(256), k=1000)


def make_stub(config: EngineConfig) -> StubBackend:
    return StubBackend(config.n_ctx, config.n_parallel, reply_tokens=0)


@dataclass
class Place:
    """Where models are opened, one after the other, on the same file and the same tier."""

    path: Path

    @property
    def config(self) -> StoreConfig:
        return StoreConfig(tiers=(TierConfig(str(self.path / "kv")),), retry_s=0.01, op_timeout_s=0.2)

    def open(
        self, *, store: Store | StoreConfig | None = None, policy: CachePolicy = POLICY, **settings: object
    ) -> Model:
        if not (self.path / "model.gguf").exists():  # "trusted" looks at the time of the last change
            (self.path / "model.gguf").write_bytes(b"not read by the stub")
        return Model(
            path=str(self.path / "model.gguf"),
            fingerprint="trusted",
            store=self.config if store is None else store,
            policy=policy,
            **{"n_ctx": 2048, "n_parallel": 2, "make_backend": make_stub, **settings},
        )

    def open_faulty(self) -> tuple[Store, FaultyTier]:
        tiers: list[FaultyTier] = []

        def open(config: TierConfig) -> FaultyTier:
            tiers.append(FaultyTier(open_tier(config)))
            return tiers[-1]

        store = Store(self.config, open=open)
        assert store.wait_loaded(WAIT_S)
        return store, tiers[0]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_restart_is_warm(place: Place):
    with place.open() as model:
        first = model.complete(TEXT, seed=1, response_tokens=5)
        assert first.stats.cached_tokens == 0
    with place.open() as model:
        second = model.complete(TEXT, seed=1, response_tokens=5)
        assert (second.stats.cached_tokens, second.stats.cache_tier) == (999, "disk")
        assert second.tokens == first.tokens
        assert second.finish_key == first.finish_key


def test_another_tenant_finds_nothing(place: Place):
    with place.open() as model:
        model.complete(TEXT, response_tokens=5)
    with place.open(store=replace(place.config, salt="other")) as model:
        assert model.complete(TEXT, response_tokens=5).stats.cached_tokens == 0


def test_after_an_evict_the_next_request_is_restored(place: Place):
    with place.open() as model:
        model.complete(TEXT, response_tokens=5)
        result = model.evict()
        assert (result.n_tokens, result.n_live) == (1004, 0)
        assert result.freed_bytes > 0
        assert not model.stats().has_context
        assert model.store_stats().pending == 0
        assert model.complete(TEXT, response_tokens=5).stats.cached_tokens == 999
        assert model.stats().has_context


def test_a_model_without_a_store_evicts_too(place: Place, tmp_path: Path, stub: GatedStub):
    (tmp_path / "m.gguf").write_bytes(b"")
    with Model(
        path=str(tmp_path / "m.gguf"), fingerprint="trusted", n_ctx=256, n_parallel=2, make_backend=lambda _: stub
    ) as model:
        model.complete("hello", response_tokens=5)
        assert model.evict().n_tokens == 9
        assert len(model.complete("hello", response_tokens=5).tokens) == 5
        assert model.store_stats() is None
        assert model.list_cached_prefixes() == ()
        assert model.model_info().tier == "none"


def test_what_runs_at_shutdown_is_saved(place: Place):
    stub = GatedStub(2048, 2)
    with Store(place.config) as store:
        model = place.open(store=store, make_backend=lambda _: stub)
        stub.hold(n_free=10)
        stream = model.infer(TEXT)
        stub.wait_until_held()
        stopping = threading.Thread(target=model.shutdown)
        stopping.start()
        while not model._loop._inbox:
            time.sleep(0.001)
        stub.release()
        stopping.join(WAIT_S)
        assert isinstance(list(stream)[-1], Done | Failed)
        assert store.stats().saved["shutdown"] > 0
    with place.open() as model:
        assert model.complete([*TEXT, 1], response_tokens=1).stats.cached_tokens == 1000


def test_a_prefill_is_stored_and_its_key_names_it(place: Place):
    with place.open() as model:
        done = model.prefill_only(TEXT)
        assert done.tokens == ()
        model.evict()
        assert [prefix.n_tokens for prefix in model.list_cached_prefixes()] == [1000]
        assert model.list_cached_prefixes()[0].key == done.finish_key
    with place.open() as model:
        resumed = model.complete([*TEXT, *TEXT[:50]], parent_key=done.finish_key, response_tokens=1)
        assert resumed.stats.cached_tokens == 1000
        assert (model.stats().cache.hits, model.stats().cache.parent_hits) == ({"partial:disk": 1}, 1)


def test_the_tiers_of_the_store_are_told(place: Place):
    with place.open() as model:
        assert model.model_info().tier == "disk"
        assert model.model_info().kv_kind == "attention"


def test_a_store_of_the_callers_is_left_open(place: Place):
    with Store(place.config) as store:
        with place.open(store=store) as model:
            model.complete(TEXT, response_tokens=5)
        with place.open(store=store) as model:
            assert model.complete(TEXT, response_tokens=5).stats.cached_tokens == 999


def test_two_models_on_one_store_compute_a_prompt_once(place: Place):
    with (
        Store(place.config) as store,
        place.open(store=store, id="one") as one,
        place.open(store=store, id="two") as two,
    ):
        first = one.complete(TEXT, seed=1, response_tokens=5)
        one.live_prefixes().result()  # answered after the step that ended it, and that saves once the events have left
        second = two.complete(TEXT, seed=1, response_tokens=5)
        assert second.stats.cached_tokens == 999
        assert second.tokens == first.tokens


def test_requests_of_many_threads_share_a_prefix(place: Place):
    with place.open(n_parallel=4) as model:
        streams = [model.infer([*TEXT, i], seed=1, response_tokens=3) for i in range(12)]
        replies = [stream.result() for stream in streams]
        computed = sum(r.stats.prompt_tokens - r.stats.cached_tokens for r in replies)
        assert computed <= 1000 + 12 * 64, "the prefix once, and for each what is not worth waiting for"
        assert [r.tokens for r in replies] == [
            model.complete([*TEXT, i], seed=1, response_tokens=3).tokens for i in range(12)
        ]


@pytest.mark.parametrize("share_wait_s", [0.0, 30.0])
@pytest.mark.parametrize("fault", [Fault.HANG, Fault.FAIL, Fault.NO_SPACE])
def test_a_broken_store_keeps_no_model_from_serving_and_stopping(place: Place, fault: Fault, share_wait_s: float):
    store, tier = place.open_faulty()
    try:
        tier.inject("*", fault, times=None)
        model = place.open(
            store=store, policy=replace(POLICY, evict_save_timeout_s=0.3, read_timeout_s=0.2, share_wait_s=share_wait_s)
        )
        began = time.monotonic()
        assert len(model.complete(TEXT, response_tokens=5).tokens) == 5
        model.evict()
        assert len(model.complete(TEXT, response_tokens=5).tokens) == 5
        model.shutdown()
        assert time.monotonic() - began < NO_WAIT_S, "a few times the bound, and not the store's own time"
    finally:
        tier.heal()
        tier.release()
        store.close(WAIT_S)


def test_a_model_that_stops_waits_for_no_read_that_hangs(place: Place):
    with place.open() as model:
        model.complete(TEXT, response_tokens=5)
    store, tier = place.open_faulty()
    try:
        tier.inject("read", Fault.HANG, times=None)
        model = place.open(store=store, policy=replace(POLICY, read_timeout_s=0.5))
        stream = model.infer(TEXT, response_tokens=5)
        assert tier.wait_hanging()
        began = time.monotonic()
        model.shutdown()
        assert time.monotonic() - began < NO_WAIT_S
        assert isinstance(list(stream)[-1], Done | Failed)
    finally:
        tier.heal()
        tier.release()
        store.close(WAIT_S)


def test_a_model_that_stops_waits_for_no_other_replica(place: Place):
    with place.open() as model:
        model.complete(TEXT[:20], response_tokens=1)
        root = model.kv_root
    with Store(place.config) as other:
        assert other.claim(TokenChain(root, TEXT).block_keys(), expires_s=WAIT_S)
        model = place.open(policy=replace(POLICY, share_wait_s=WAIT_S))
        stream = model.infer(TEXT, response_tokens=5)
        while model.stats().n_prefilling == 0:
            time.sleep(0.001)
        began = time.monotonic()
        model.shutdown()
        assert time.monotonic() - began < NO_WAIT_S
        assert isinstance(list(stream)[-1], Done | Failed)


def test_a_store_that_cannot_be_opened_frees_the_model(place: Place, stub: GatedStub):
    (place.path / "file").write_bytes(b"")
    with pytest.raises(TierError):
        Model(
            path=str(place.path / "m.gguf"),
            store=StoreConfig(tiers=(TierConfig(str(place.path / "file" / "kv")),)),
            make_backend=lambda _: stub,
        )
    assert stub.closed


# --- sessions -------------------------------------------------------------------------------------


@pytest.fixture
def chat(place: Place) -> Iterator[Model]:
    """A model with a session "chat" of one turn."""
    with place.open() as model:
        model.complete(TEXT[:300], seed=1, response_tokens=5, session_id="chat")
        yield model


def test_a_session_goes_on_from_its_transcript(chat: Model):
    committed = chat.transcript("chat")
    assert (len(committed), list(committed[:300])) == (305, TEXT[:300])
    done = chat.continue_("chat", [1, 2, 3], expect_committed=305, seed=2, response_tokens=4).result()
    assert done.stats.cached_tokens == 304
    assert chat.transcript("chat") == (*committed, 1, 2, 3, *done.tokens)
    assert chat.stats().sessions == 1


def test_a_session_that_the_caller_sees_differently_is_not_continued(chat: Model):
    with pytest.raises(TranscriptMismatch) as caught:
        chat.continue_("chat", [1], expect_committed=[*TEXT[:299], 256])
    assert caught.value.diverges_at == 299
    assert chat.stats().n_running == 0


def test_an_unknown_session_is_not_continued(chat: Model):
    with pytest.raises(SessionNotFound):
        chat.continue_("other", [1])


@pytest.mark.parametrize("end", ["end_session", "reset_session"])
def test_an_ended_session_is_forgotten(chat: Model, end: str):
    getattr(chat, end)("chat")
    getattr(chat, end)("chat")
    with pytest.raises(SessionNotFound):
        chat.transcript("chat")


def test_a_session_survives_an_evict(chat: Model):
    chat.evict()
    done = chat.continue_("chat", [1, 2, 3], response_tokens=4).result()
    assert done.stats.cached_tokens == 304


def test_a_reset_drops_the_kv_and_keeps_what_is_stored(chat: Model):
    idle = chat.stats().idle_kv_tokens
    chat.reset_session("chat")
    assert (idle, chat.stats().idle_kv_tokens) == (304, 0)
    assert chat.complete(TEXT[:300], response_tokens=1).stats.cached_tokens == 299


def test_a_model_whose_state_cannot_be_stored_serves_and_stores_nothing(place: Place):
    def make_backend(config: EngineConfig) -> StubBackend:
        return StubBackend(config.n_ctx, config.n_parallel, reply_tokens=0, kind=KvKind.OPAQUE)

    with place.open(make_backend=make_backend) as model:
        assert len(model.complete(TEXT, response_tokens=5).tokens) == 5
        assert (model.model_info().tier, model.model_info().kv_kind) == ("none", "opaque")
        assert model.model_info().kv_problem
        model.evict()
        assert len(model.complete(TEXT, response_tokens=5).tokens) == 5
        assert model.store_stats().saved == {}
