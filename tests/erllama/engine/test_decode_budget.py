"""A decode that hangs is aborted: who ends how, what is saved, and when the engine gives itself up.
The stub hangs until it is aborted.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cache_store import Store
from erllama.config import EngineConfig
from erllama.engine.engine import Engine
from erllama.engine.loop import EngineLoop, Wake
from erllama.engine.reply_events import Deliver
from erllama.engine.watchdog import Watchdog
from erllama.errors import ContextLost, DecodeAborted, DecodeFailed, EngineStopped, ModelLoadError
from erllama.events import Done, Event, Failed, Tokens
from erllama.request import GenerationRequest
from erllama.testing.stub_backend import StubBackend
from tests.support.engine_kit import Rig, make_rig, request
from tests.support.flow_kit import N_CTX, flushed, prompt, reply, rig_of

BUDGET_S = 0.05
WAIT_S = 20


@contextmanager
def watched(rig: Rig) -> Iterator[None]:
    """The thread that `EngineLoop` would run."""
    thread = threading.Thread(target=rig.engine.watchdog.watch)
    thread.start()
    try:
        yield
    finally:
        rig.engine.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def tight(store: Store | None = None, **more: object) -> Rig:
    return rig_of(store, decode_budget_s=BUDGET_S, **more)


def hang(rig: Rig, n: int = 1) -> None:
    rig.backend.hangs = n
    rig.step()


# --- who ends how ---------------------------------------------------------------------------------


def busy(rig: Rig) -> None:
    """Idle KV, a sequence that generates, one that prefills, and one that waits."""
    rig.submit(request("ended", prompt(300), max_tokens=4))
    rig.run()
    rig.submit(request("generates", prompt(300, 1), max_tokens=100))
    rig.prefill()
    rig.submit(request("prefills", prompt(900, 2), max_tokens=4))
    rig.step()
    rig.submit(request("waits", prompt(300, 3), max_tokens=4))
    while rig.backend.plans[-1][0][2] == 1 or rig.engine.stats.n_prefilling != 1:  # up to a slice of the prompt
        rig.step()
    rig.step()  # and to the tokens between two slices: the next decode is a slice again
    assert rig.backend.plans[-1][0][2] == 1


@pytest.mark.parametrize(
    ("name", "ends"), [("generates", ContextLost), ("prefills", DecodeAborted), ("waits", Done), ("ended", Done)]
)
def test_running_requests_end_aborted_and_waiting_ones_run_in_the_new_context(name: str, ends: type):
    rig = tight(n_parallel=2)
    with watched(rig):
        busy(rig)
        hang(rig)
        assert rig.backend.hangs == 0
        rig.run()
    assert isinstance(rig.done(name) if ends is Done else rig.error(name), ends)
    assert sum(isinstance(event, Done | Failed) for event in rig.events[name]) == 1


def test_the_context_is_made_anew_and_the_abort_is_counted():
    rig = tight(n_parallel=2)
    with watched(rig):
        busy(rig)
        hang(rig)
        assert (rig.backend.calls["release_context"], rig.backend.calls["ensure_context"]) == (1, 1)
        stats = rig.engine.stats
        assert (stats.n_running, stats.n_queued, stats.idle_kv_tokens) == (0, 1, 0)
        rig.run()
    assert rig.engine.stats.counts.decode_aborts == 1


def test_after_an_abort_the_model_answers_as_it_did_before():
    rig = tight()
    with watched(rig):
        rig.submit(request("it", prompt(300), max_tokens=4))
        hang(rig)
        rig.submit(request("again", prompt(300), max_tokens=4))
        rig.run()
    assert isinstance(rig.error("it"), DecodeAborted)
    assert rig.ids("again") == reply(prompt(300))


def test_what_was_delivered_before_the_abort_is_delivered_with_it():
    rig = make_rig(decode_budget_s=BUDGET_S, stream_interval_ms=1e9)
    with watched(rig):
        rig.submit(request("it", max_tokens=100))
        rig.step(5)
        hang(rig)
    kinds = [type(event) for event in rig.events["it"]]
    assert kinds == [*[Tokens] * 5, Failed]


def test_the_kv_that_the_hanging_decode_did_not_touch_is_saved(store: Store):
    rig = tight(store, n_parallel=2)
    with watched(rig):
        busy(rig)
        held = rig.engine.stats.kv_tokens
        hang(rig)
        flushed(store)
        generated = len(rig.ids("generates"))
        assert held > 300 + generated
        rig.submit(request("resumed", [*prompt(300, 1), *rig.ids("generates"), 1], max_tokens=4))
        rig.run()
        # the newest token was never in the context
        assert rig.done("resumed").stats.cached_tokens == 300 + generated - 1
        rig.submit(request("ended again", [*prompt(300), *rig.ids("ended"), 1], max_tokens=4))
        rig.run()
        assert rig.done("ended again").stats.cached_tokens == 303


def test_the_kv_that_the_hanging_decode_was_writing_is_not_saved(
    store: Store, saves: list[tuple[str, list[tuple[int, int]]]]
):
    rig = tight(store)
    with watched(rig):
        rig.submit(request("it", prompt(600), max_tokens=4))
        rig.step()
        saves.clear()
        hang(rig)
        assert saves == []


# --- when the engine gives itself up --------------------------------------------------------------


def test_the_third_abort_in_a_row_ends_the_engine():
    rig = tight()
    with watched(rig):
        for i in range(2):
            rig.submit(request(str(i), prompt(100)))
            hang(rig)
        rig.submit(request("last", prompt(100)))
        with pytest.raises(EngineStopped, match=r"3 decodes in a row took longer than 0\.05 s"):
            hang(rig)
    assert isinstance(rig.error("last"), DecodeAborted)


def test_a_decode_that_completes_forgives_the_aborts_before_it():
    rig = tight()
    with watched(rig):
        for i in range(5):
            rig.submit(request(str(i), prompt(100, i), max_tokens=4))
            hang(rig)
            rig.submit(request(f"{i} again", prompt(100, i), max_tokens=4))
            rig.run()
            assert rig.ended(f"{i} again")
    assert rig.engine.stats.counts.decode_aborts == 5


def test_a_context_that_cannot_be_made_anew_ends_the_engine(monkeypatch: pytest.MonkeyPatch):
    rig = tight()

    def fail() -> bool:
        raise ModelLoadError("no memory")

    monkeypatch.setattr(rig.backend, "ensure_context", lambda: rig.backend.has_context or fail())
    with watched(rig):
        rig.submit(request("it", prompt(100)))
        with pytest.raises(EngineStopped, match="no memory"):
            hang(rig)
    assert isinstance(rig.error("it"), DecodeAborted)


def test_a_decode_that_fails_by_itself_is_no_abort():
    rig = tight(fail_tokens=frozenset({7}))
    with watched(rig):
        rig.submit(request("it", [1, 7]))
        rig.run()
    assert isinstance(rig.error("it"), DecodeFailed)
    assert rig.engine.stats.counts.decode_aborts == 0
    assert rig.backend.calls["release_context"] == 0


class LoopRig:
    """A loop on the stub, whose events come to `ends`."""

    def __init__(self, budget_s: float = BUDGET_S) -> None:
        self.backend = StubBackend(N_CTX, 1, reply_tokens=0)
        self.ends: dict[str, Done | Failed] = {}
        self._changed = threading.Condition()
        config = EngineConfig(path="stub", n_ctx=N_CTX, n_parallel=1, decode_budget_s=budget_s)

        def build(deliver: Deliver, _: Wake) -> Engine:
            return Engine(self.backend, config, deliver)

        self.loop = EngineLoop(build, self._take, max_live=8, name="it")

    def _take(self, events: list[tuple[str, Event]]) -> None:
        with self._changed:
            for name, event in events:
                if isinstance(event, Done | Failed):
                    assert name not in self.ends, "two ends"
                    self.ends[name] = event
            self._changed.notify_all()

    def submit(self, *requests: GenerationRequest) -> None:
        for one in requests:
            self.loop.submit(one)

    def end(self, name: str) -> Done | Failed:
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.ends, WAIT_S)
        return self.ends[name]


@pytest.fixture
def loop_rig() -> Iterator[LoopRig]:
    rig = LoopRig()
    yield rig
    rig.loop.stop(WAIT_S)


def test_the_loop_watches_its_engine_and_lives_on(loop_rig: LoopRig):
    loop_rig.backend.hangs = 1
    loop_rig.submit(request("hangs", max_tokens=2), request("waits", max_tokens=2))
    end = loop_rig.end("hangs")
    assert isinstance(end, Failed)
    assert isinstance(end.error, DecodeAborted)
    assert end.error.resumable
    assert isinstance(loop_rig.end("waits"), Done)
    loop_rig.loop.check_alive(60)


def test_a_loop_whose_engine_gave_itself_up_is_not_alive_and_everyone_was_told(loop_rig: LoopRig):
    loop_rig.backend.hangs = 3
    loop_rig.submit(*(request(str(i), max_tokens=2) for i in range(5)))
    errors = []
    for i in range(5):
        end = loop_rig.end(str(i))
        assert isinstance(end, Failed)
        errors.append(type(end.error))
    assert errors == [DecodeAborted] * 3 + [EngineStopped] * 2
    loop_rig.loop._thread.join(WAIT_S)
    with pytest.raises(EngineStopped, match="3 decodes in a row"):
        loop_rig.loop.check_alive(60)


def test_a_stop_does_not_wait_for_a_decode_that_hangs(monkeypatch: pytest.MonkeyPatch):
    rig = LoopRig(budget_s=1000.0)
    hanging = threading.Event()
    decode = rig.backend.decode
    monkeypatch.setattr(rig.backend, "decode", lambda plan: (hanging.set(), decode(plan))[1])
    rig.backend.hangs = 1
    rig.submit(request("hangs", max_tokens=2))
    assert hanging.wait(WAIT_S)
    rig.loop.stop(1.0)
    end = rig.end("hangs")
    assert isinstance(end, Failed)
    assert end.error.resumable


# --- the watchdog ---------------------------------------------------------------------------------


class Watched:
    """A watchdog under a clock of its own."""

    def __init__(self, budget_s: float = 10.0) -> None:
        self.now_s = 0.0
        self.aborts = 0
        self.dog = Watchdog(budget_s, self._abort, clock=lambda: int(self.now_s * 1e9))

    def _abort(self) -> None:
        self.aborts += 1

    def look(self, now_s: float) -> float:
        """The moment of the next look, in seconds."""
        self.now_s = now_s
        return now_s + self.dog.check() / 1e9


def test_a_call_within_its_budget_is_left_alone():
    it = Watched()
    with it.dog.armed():
        assert it.look(9.9) == pytest.approx(10)
    it.look(10)
    assert it.aborts == 0


def test_a_call_beyond_its_budget_is_aborted_and_once_more_after_another_one():
    it = Watched()
    with it.dog.armed():
        assert it.look(10) == pytest.approx(20)
        assert it.aborts == 1
        it.look(19)
        assert it.aborts == 1
        it.look(20)
        assert it.aborts == 2


def test_a_call_that_has_ended_is_not_aborted():
    it = Watched()
    with pytest.raises(DecodeFailed), it.dog.armed():
        raise DecodeFailed("by itself")
    it.look(1000)
    assert it.aborts == 0


def test_a_call_armed_while_the_watcher_sleeps_is_not_due_before_it_wakes():
    it = Watched()
    wakes_s = it.look(0)
    it.now_s = 0.001
    with it.dog.armed():
        assert it.look(wakes_s) == pytest.approx(10.001)


def test_without_a_budget_nothing_is_watched():
    it = Watched(0.0)
    with it.dog.armed(), it.dog.armed():
        it.dog.watch()
    assert it.aborts == 0


def test_a_budget_longer_than_any_sleep_is_watched():
    dog = Watchdog(1e12, lambda: None)
    thread = threading.Thread(target=dog.watch)
    thread.start()
    dog.close()
    thread.join(WAIT_S)
    assert not thread.is_alive()
