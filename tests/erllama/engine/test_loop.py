"""The engine thread and its door. Where the order of threads matters, the stub's decode waits for
the test (`GatedStub`).
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from erllama.config import EngineConfig
from erllama.engine.engine import Engine
from erllama.engine.loop import EngineLoop, Wake
from erllama.engine.reply_events import Deliver
from erllama.errors import ContextOverflow, EngineStopped, InvalidParameter, QueueFull
from erllama.events import Done, Event, Failed, FinishReason, Tokens
from tests.support.engine_kit import request
from tests.support.gated_stub import WAIT_S, GatedStub


class Inbox:
    """What the loop delivers; `wait` blocks until a condition over it holds."""

    def __init__(self) -> None:
        self.events: dict[str, list[Event]] = defaultdict(list)
        self.condition = threading.Condition()

    def __call__(self, events: list[tuple[str, Event]]) -> None:
        with self.condition:
            for name, event in events:
                self.events[name].append(event)
            self.condition.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.condition:
            assert self.condition.wait_for(condition, WAIT_S), dict(self.events)

    def end(self, name: str) -> Done | Failed:
        """Wait for the last event of a request."""
        self.wait(lambda: bool(self.events[name]) and isinstance(self.events[name][-1], Done | Failed))
        end = self.events[name][-1]
        assert isinstance(end, Done | Failed)
        return end

    def ids(self, name: str) -> list[int]:
        with self.condition:
            return [token for e in self.events[name] if isinstance(e, Tokens) for token in e.ids]


class Harness:
    def __init__(self, *, n_parallel: int = 2, max_queue: int = 4, max_tenant: int | None = None) -> None:
        config = EngineConfig(path="stub", n_ctx=256, n_parallel=n_parallel, max_queue=max_queue, id="test")
        self.backend = GatedStub(256, n_parallel)
        self.inbox = Inbox()

        def build(deliver: Deliver, _: Wake) -> Engine:
            return Engine(self.backend, config, deliver)

        max_live = n_parallel + max_queue
        self.loop = EngineLoop(build, self.inbox, max_live=max_live, max_tenant=max_tenant, name=config.id)

    def hold(self) -> None:
        """Submit a request and hold the engine inside its first decode."""
        self.backend.hold()
        self.loop.submit(request("held"))
        self.backend.wait_until_held()

    def release(self) -> None:
        self.backend.release()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.release()
    harness.loop.stop(WAIT_S)


def in_threads(n: int, function: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def run(i: int) -> None:
        try:
            function(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


# --- waking ---------------------------------------------------------------------------------------


def test_an_idle_engine_steps_when_it_is_woken(harness: Harness, monkeypatch: pytest.MonkeyPatch):
    stepped = threading.Event()
    engine = harness.loop.call(lambda engine: engine).result(WAIT_S)

    def step() -> bool:
        stepped.set()
        return False

    monkeypatch.setattr(engine, "step", step)
    harness.loop.call(lambda _: None).result(WAIT_S)
    assert stepped.wait(WAIT_S)  # the step after that call: from here on the engine sleeps
    stepped.clear()
    harness.loop.wake()
    assert stepped.wait(WAIT_S)


def test_waking_a_stopped_engine_is_fine():
    harness = Harness()
    harness.loop.stop(WAIT_S)
    harness.loop.wake()


# --- requests -------------------------------------------------------------------------------------


def test_requests_of_many_threads_all_end_and_get_their_own_tokens():
    harness = Harness(n_parallel=4, max_queue=100)
    try:
        in_threads(
            16,
            lambda i: [harness.loop.submit(request(f"{i}.{j}", f"prompt {i}", max_tokens=5, seed=i)) for j in range(3)],
        )
        for i in range(16):
            for j in range(3):
                assert isinstance(harness.inbox.end(f"{i}.{j}"), Done)
            assert harness.inbox.ids(f"{i}.0") == harness.inbox.ids(f"{i}.1") == harness.inbox.ids(f"{i}.2")
    finally:
        harness.loop.stop(WAIT_S)


def test_a_full_queue_refuses_and_says_when_to_come_back(harness: Harness):
    harness.hold()
    for i in range(5):
        harness.loop.submit(request(str(i), max_tokens=1))
    with pytest.raises(QueueFull, match="the limit is 6") as caught:
        harness.loop.submit(request("one too many"))
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 60
    assert harness.loop.stats.requests_refused == 1


def test_one_tenant_cannot_fill_the_queue_and_is_told_its_limit():
    harness = Harness(max_tenant=3)
    try:
        harness.hold()
        for i in range(3):
            harness.loop.submit(request(f"a{i}", max_tokens=1, tenant="a"))
        with pytest.raises(QueueFull, match=r"3 requests of this tenant .* the limit of one is 3"):
            harness.loop.submit(request("a3", tenant="a"))
        harness.loop.submit(request("b", max_tokens=1, tenant="b"))
        harness.loop.submit(request("nobody's", max_tokens=1))
        with pytest.raises(QueueFull, match="the limit is 6"):
            harness.loop.submit(request("b2", tenant="b"))
        harness.loop.cancel("held")
        harness.release()
        harness.inbox.end("a2")
        harness.loop.submit(request("a4", max_tokens=1, tenant="a"))
        assert isinstance(harness.inbox.end("a4"), Done)
    finally:
        harness.release()
        harness.loop.stop(WAIT_S)


def test_a_request_that_ends_makes_room_in_the_queue(harness: Harness):
    harness.hold()
    for i in range(5):
        harness.loop.submit(request(str(i), max_tokens=1))
    harness.loop.cancel("held")
    harness.release()
    harness.inbox.end("held")
    harness.loop.submit(request("next", max_tokens=1))
    assert isinstance(harness.inbox.end("next"), Done)


def test_a_refused_request_leaves_no_trace(harness: Harness):
    with pytest.raises(ContextOverflow):
        harness.loop.submit(request("it", "x" * 999))
    harness.loop.submit(request("it", max_tokens=1))
    assert isinstance(harness.inbox.end("it"), Done)


def test_an_id_in_flight_is_refused_at_the_door_and_the_first_request_goes_on(harness: Harness):
    harness.hold()
    with pytest.raises(InvalidParameter, match="in flight"):
        harness.loop.submit(request("held"))
    harness.loop.cancel("held")
    harness.release()
    end = harness.inbox.end("held")
    assert isinstance(end, Done)


def test_requests_in_the_inbox_count_as_queued(harness: Harness):
    harness.hold()
    for i in range(3):
        harness.loop.submit(request(str(i), max_tokens=1))
    assert harness.loop.stats.n_queued + harness.loop.stats.n_running == 4


def test_cancel_from_another_thread_ends_a_request_before_its_next_token(harness: Harness):
    harness.hold()
    in_threads(1, lambda _: harness.loop.cancel("held"))
    harness.release()
    end = harness.inbox.end("held")
    assert isinstance(end, Done)
    assert end.stats.finish_reason is FinishReason.CANCELLED
    assert len(harness.inbox.ids("held")) == 1, "the token of the decode that was running; none after it"


def test_a_cancel_that_follows_its_submit_at_once_is_not_lost(harness: Harness):
    harness.hold()
    harness.loop.submit(request("it"))
    harness.loop.cancel("it")
    harness.release()
    end = harness.inbox.end("it")
    assert isinstance(end, Done)
    assert end.stats.cancelled
    assert harness.inbox.ids("it") == []


def test_cancelling_what_nobody_knows_is_fine(harness: Harness):
    harness.loop.cancel("nobody")
    harness.loop.submit(request("it", max_tokens=1))
    assert isinstance(harness.inbox.end("it"), Done)


# --- calls ----------------------------------------------------------------------------------------


def test_a_call_runs_on_the_engine_thread_between_two_steps(harness: Harness):
    harness.hold()
    future = harness.loop.call(lambda engine: (threading.current_thread().name, engine.check_integrity()))
    assert not future.done()
    harness.release()
    assert future.result(WAIT_S) == ("erllama-test", None)


def test_a_call_runs_while_the_engine_is_idle(harness: Harness):
    assert harness.loop.call(lambda engine: engine.idle).result(WAIT_S)


def test_commands_of_one_caller_keep_their_order(harness: Harness):
    harness.hold()
    seen: list[int] = []
    futures = [harness.loop.call(lambda _, i=i: seen.append(i)) for i in range(1000)]
    harness.release()
    futures[-1].result(WAIT_S)
    assert seen == list(range(1000))


def test_however_many_commands_wait_running_requests_get_their_steps(harness: Harness):
    harness.hold()
    steps = [harness.loop.call(lambda engine: engine.stats.counts.steps) for _ in range(600)]
    harness.release()
    counts = [future.result(WAIT_S) for future in steps]
    assert counts[-1] >= counts[0] + 2


def test_the_exception_of_a_call_goes_to_its_future_and_the_engine_goes_on(harness: Harness):
    future: Future = harness.loop.call(lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        future.result(WAIT_S)
    harness.loop.submit(request("it", max_tokens=1))
    assert isinstance(harness.inbox.end("it"), Done)


def test_even_an_exit_in_a_call_reaches_its_caller_and_stops_nothing(harness: Harness):
    def leave(_: Engine) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        harness.loop.call(leave).result(WAIT_S)
    assert harness.loop.call(lambda engine: engine.idle).result(WAIT_S)


def test_a_call_that_was_cancelled_does_not_run(harness: Harness):
    harness.hold()
    ran: list[int] = []
    future = harness.loop.call(lambda _: ran.append(1))
    assert future.cancel()
    harness.release()
    harness.loop.call(lambda _: None).result(WAIT_S)
    assert ran == []


# --- the end --------------------------------------------------------------------------------------


def test_stop_ends_running_and_waiting_requests(harness: Harness):
    harness.hold()
    for i in range(4):
        harness.loop.submit(request(str(i)))
    harness.release()
    harness.loop.stop(WAIT_S)
    for name in ("held", "0", "1", "2", "3"):
        end = harness.inbox.end(name)
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineStopped)
        assert sum(isinstance(e, Done | Failed) for e in harness.inbox.events[name]) == 1


def test_stop_is_idempotent_and_cancel_after_it_is_fine(harness: Harness):
    harness.loop.stop(WAIT_S)
    harness.loop.stop(WAIT_S)
    harness.loop.cancel("it")
    assert not harness.loop._thread.is_alive()


def test_stop_may_be_called_by_many_threads_at_once(harness: Harness):
    in_threads(4, lambda _: harness.loop.stop(WAIT_S))


def test_a_stopped_engine_takes_nothing_more(harness: Harness):
    harness.loop.stop(WAIT_S)
    with pytest.raises(EngineStopped, match="shutting down"):
        harness.loop.submit(request("it"))
    with pytest.raises(EngineStopped, match="shutting down"):
        harness.loop.call(lambda _: None)
    with pytest.raises(EngineStopped, match="shutting down"):
        harness.loop.check_alive(stuck_after_s=1)


def test_stop_says_so_when_a_decode_outlasts_the_timeout(harness: Harness):
    harness.hold()
    with pytest.raises(TimeoutError, match="still busy"):
        harness.loop.stop(timeout_s=0.01)


def test_a_call_that_waits_while_the_engine_stops_gets_an_answer(harness: Harness):
    harness.hold()
    future = harness.loop.call(lambda engine: engine.idle)
    stopper = threading.Thread(target=harness.loop.stop)
    stopper.start()
    harness.release()
    stopper.join(WAIT_S)
    assert future.result(WAIT_S) in (True, False)


def crash(harness: Harness, *names: str) -> None:
    harness.hold()
    for name in names:
        harness.loop.submit(request(name))
    harness.backend.crash = RuntimeError("a bug")
    harness.release()


def test_when_the_engine_thread_dies_every_request_is_told_why(harness: Harness):
    crash(harness, "0", "1", "2")
    for name in ("held", "0", "1", "2"):
        end = harness.inbox.end(name)
        assert isinstance(end, Failed)
        assert isinstance(end.error, EngineStopped)
        assert "RuntimeError('a bug')" in str(end.error)


def test_when_the_engine_thread_is_dead_later_requests_and_calls_are_refused_with_the_reason(harness: Harness):
    crash(harness)
    harness.inbox.end("held")
    harness.loop._thread.join(WAIT_S)
    for attempt in (
        lambda: harness.loop.submit(request("it")),
        lambda: harness.loop.call(lambda _: None),
        lambda: harness.loop.check_alive(stuck_after_s=60),
    ):
        with pytest.raises(EngineStopped, match="a bug"):
            attempt()


def test_a_call_that_waits_while_the_engine_dies_is_told_and_does_not_run(harness: Harness):
    harness.hold()
    ran: list[int] = []
    future = harness.loop.call(lambda _: ran.append(1))
    harness.backend.crash = RuntimeError("a bug")
    harness.release()
    with pytest.raises(EngineStopped, match="a bug"):
        future.result(WAIT_S)
    assert ran == []


def test_commands_behind_one_that_kills_the_engine_are_answered_all_the_same(harness: Harness):
    harness.hold()

    def deadly(*_: object) -> None:
        raise RuntimeError("a bug")

    harness.backend.grammars.matcher = deadly  # type: ignore[assignment,method-assign]
    harness.loop.submit(request("deadly", grammar='root ::= "x"'))
    future = harness.loop.call(lambda _: None)
    harness.loop.submit(request("behind"))
    harness.release()
    with pytest.raises(EngineStopped):
        future.result(WAIT_S)
    for name in ("held", "deadly", "behind"):
        assert isinstance(harness.inbox.end(name), Failed)


def test_requests_end_even_when_the_broken_engine_cannot_end_them(harness: Harness):
    harness.backend.drop = None  # type: ignore[assignment,method-assign]
    crash(harness, "0")
    for name in ("held", "0"):
        assert isinstance(harness.inbox.end(name), Failed)
    harness.loop._thread.join(WAIT_S)


def test_the_thread_bears_the_name_of_the_model_and_does_not_outlive_stop(harness: Harness):
    assert harness.loop._thread.name == "erllama-test"
    harness.loop.stop(WAIT_S)
    assert harness.loop._thread not in threading.enumerate()


def test_a_build_that_fails_starts_no_thread():
    def build(_: Deliver, __: Wake) -> Engine:
        raise InvalidParameter("no")

    before = threading.active_count()
    with pytest.raises(InvalidParameter):
        EngineLoop(build, lambda _: None, max_live=1)
    assert threading.active_count() == before


# --- alive or stuck -------------------------------------------------------------------------------


def test_an_idle_engine_is_alive_however_long_ago_its_last_step_was(harness: Harness):
    harness.loop.call(lambda _: None).result(WAIT_S)
    harness.loop.heartbeat_ns = 0
    harness.loop.check_alive(stuck_after_s=0.001)


def test_an_engine_that_holds_a_request_and_takes_no_step_is_stuck(harness: Harness):
    harness.hold()
    harness.loop.heartbeat_ns = 0
    harness.loop._live["held"] = harness.loop._live["held"]._replace(submitted_ns=0)
    with pytest.raises(EngineStopped, match="not finished a step"):
        harness.loop.check_alive(stuck_after_s=60)


def test_a_request_that_has_just_come_to_a_long_idle_engine_does_not_make_it_stuck(harness: Harness):
    harness.hold()
    harness.loop.heartbeat_ns = 0
    harness.loop.check_alive(stuck_after_s=60)
