"""The one thread that may touch the engine, the one that watches its decodes, and the bounded door
to it.

Other threads leave commands in an inbox; the engine thread takes them between two steps. Commands
of one caller keep their order. The inbox needs no bound of its own: requests are refused at the
door once `max_live` of them live, or `max_tenant` of one tenant, and every other command is waited
for or cheap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import NamedTuple, TypeVar

from erllama.engine.engine import Engine
from erllama.engine.reply_events import Deliver
from erllama.errors import EngineStopped, InvalidParameter, QueueFull
from erllama.events import Done, Event, Failed
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest
from erllama.stats import EngineStats
from erllama.stream import InferStream

log = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[], None]
Wake = Callable[[], None]

_COMMANDS_PER_STEP = 256  # bounded work between two decodes, however fast callers are
_RETRY_AFTER_MAX_S = 60


class _Live(NamedTuple):
    """A request that has not ended. Without a `stream` its events go to the loop's sink."""

    submitted_ns: int
    stream: InferStream | None
    tenant: str


class EngineLoop:
    """Runs an `Engine` built by `build(deliver, wake)` on its own thread. All public methods may be
    called from any thread.

    `max_tenant` bounds the requests of each tenant that has a name.
    `sink` receives, on the engine thread and once per step, the events of requests without a
    stream, and must not block. `wake` makes an engine that has nothing to decode step again; any
    thread may call it.
    """

    def __init__(
        self,
        build: Callable[[Deliver, Wake], Engine],
        sink: Deliver | None,
        *,
        max_live: int,
        max_tenant: int | None = None,
        name: str = "engine",
    ) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._inbox: deque[Command] = deque()
        self._max_live = max_live
        self._max_tenant = max_live if max_tenant is None else max_tenant
        self._live: dict[str, _Live] = {}
        self._live_of: Counter[str] = Counter()  # by tenant
        self._mean_request_s = 1.0
        self._refused = 0
        self._stopping = False
        self._death: BaseException | None = None
        self._used_ns = time.monotonic_ns()
        self._sink = sink
        self._engine = build(self._deliver, self.wake)
        self.heartbeat_ns = time.monotonic_ns()
        self._watcher = threading.Thread(target=self._engine.watchdog.watch, name=f"erllama-{name}-watch", daemon=True)
        self._thread = threading.Thread(target=self._run, name=f"erllama-{name}", daemon=True)
        self._watcher.start()
        self._thread.start()

    # --- the door ---------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest, stream: InferStream | None = None) -> None:
        """Queue a request. Raises a `RequestError` (invalid, too long, `QueueFull`) or
        `EngineStopped`; else events will follow.
        """
        self._engine.validate(request)
        with self._wake:
            self._check_running()
            if request.request_id in self._live:
                raise InvalidParameter(f"a request with id {request.request_id!r} is in flight", param="request_id")
            self._check_room(request.tenant)
            submitted_ns = time.monotonic_ns()
            self._live[request.request_id] = _Live(submitted_ns, stream, request.tenant)
            self._live_of[request.tenant] += 1
            self._inbox.append(lambda: self._engine.submit(request, submitted_ns))
            self._wake.notify()

    def _check_room(self, tenant: str) -> None:
        n_live, n_own = len(self._live), self._live_of[tenant] if tenant else 0
        if n_live >= self._max_live:
            full = f"{n_live} requests are running or waiting and the limit is {self._max_live}"
        elif n_own >= self._max_tenant:
            full = f"{n_own} requests of this tenant are running or waiting and the limit of one is {self._max_tenant}"
        else:
            return
        self._refused += 1
        retry_after_s = min(_RETRY_AFTER_MAX_S, max(1, round(self._mean_request_s)))
        raise QueueFull(f"{full}; retry after {retry_after_s} s", retry_after_s=retry_after_s)

    def cancel(self, request_id: str) -> None:
        """End a request at its next token boundary. Returns at once; unknown ids are fine."""
        self._post(lambda: self._engine.cancel(request_id))

    def expect(self, turn: NextTurn) -> None:
        """See `IdlePrefill.expect`. Returns at once; it counts as no request and no use."""
        self._post(lambda: self._engine.next_turns.expect(turn))

    def wake(self) -> None:
        """Make the thread step once more. Returns at once; a stopped engine is fine."""
        self._post(lambda: None)

    def _post(self, command: Command) -> None:
        with self._wake:
            if not self._stopping:  # else every request ends anyhow
                self._inbox.append(command)
                self._wake.notify()

    def call(self, function: Callable[[Engine], T]) -> Future[T]:
        """Run `function(engine)` between two steps. Raises `EngineStopped`."""
        future: Future[T] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._death is not None:  # the engine is broken: nothing may run on it
                    raise EngineStopped(f"the engine thread died: {self._death!r}")
                result = function(self._engine)
            except BaseException as error:  # handed to the caller, whose future it is
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._wake:
            self._check_running()
            self._inbox.append(command)
            self._wake.notify()
        return future

    @property
    def stats(self) -> EngineStats:
        """A snapshot; never waits for the engine. Requests still in the inbox count as queued."""
        stats = self._engine.stats
        with self._lock:
            n_queued = max(stats.n_queued, len(self._live) - stats.n_running)
            return replace(stats, requests_refused=self._refused, n_queued=n_queued)

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended, or since `note_use` or the start if that was later;
        0 while one runs or waits.
        """
        with self._lock:
            return 0.0 if self._live else (time.monotonic_ns() - self._used_ns) / 1e9

    def note_use(self) -> None:
        """Something other than a request uses the model now."""
        with self._lock:
            self._used_ns = time.monotonic_ns()

    def check_alive(self, stuck_after_s: float) -> None:
        """Raise `EngineStopped` when the thread is dead, or has work and has not finished a step
        for `stuck_after_s` seconds.
        """
        with self._lock:
            self._check_running()
            if not self._live:
                return
            now = time.monotonic_ns()
            age_s = (now - self.heartbeat_ns) / 1e9
            waited_s = (now - min(live.submitted_ns for live in self._live.values())) / 1e9
            if min(age_s, waited_s) > stuck_after_s:
                raise EngineStopped(f"the engine has not finished a step for {age_s:.0f} s")

    def stop(self, timeout_s: float = 30.0) -> None:
        """End every request with `EngineStopped` and join the thread. Idempotent.

        A decode that takes half of the time is aborted. `TimeoutError` if it goes on all the same.
        """
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s / 2)
            if self._thread.is_alive():
                self._engine.watchdog.cut_short()
                self._thread.join(timeout_s / 2)
            if self._thread.is_alive():
                raise TimeoutError(f"the engine thread is still busy after {timeout_s:g} s")
            self._watcher.join(timeout_s)

    def _check_running(self) -> None:
        if self._death is not None:
            raise EngineStopped(f"the engine thread died: {self._death!r}")
        if self._stopping:
            raise EngineStopped("the engine is shutting down")

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        error = EngineStopped("the engine is shutting down")
        busy = False
        commands: deque[Command] | None = None
        try:
            while (commands := self._take_commands(wait=not busy)) is not None:
                while commands:
                    commands.popleft()()
                busy = self._engine.step()
                self.heartbeat_ns = time.monotonic_ns()
        except BaseException as death:
            log.exception("engine thread died")
            self._death = death
            error = EngineStopped(f"the engine thread died: {death!r}")
        finally:
            self._end_all(error, commands or ())

    def _take_commands(self, *, wait: bool) -> deque[Command] | None:
        """Some commands; None to stop. With `wait`, sleeps until there is something to do."""
        with self._wake:
            while wait and not self._inbox and not self._stopping:
                self._wake.wait()
            if self._stopping:
                return None
            return deque(self._inbox.popleft() for _ in range(min(len(self._inbox), _COMMANDS_PER_STEP)))

    def _deliver(self, events: list[tuple[str, Event]]) -> None:
        posted: list[tuple[str, Event]] = []
        with self._lock:
            for request_id, event in events:
                live = self._live.get(request_id)
                if isinstance(event, Done | Failed):
                    self._note_end(request_id)
                if live is not None and live.stream is not None:
                    live.stream.put(event)
                else:
                    posted.append((request_id, event))
        if posted and self._sink is not None:
            self._sink(posted)

    def _note_end(self, request_id: str) -> None:
        self._used_ns = time.monotonic_ns()
        live = self._live.pop(request_id, None)
        if live is not None:
            self._live_of[live.tenant] -= 1
            self._live_of += Counter()  # tenants of whom nothing lives are forgotten
            seconds = (self._used_ns - live.submitted_ns) / 1e9
            self._mean_request_s += (seconds - self._mean_request_s) / 16

    def _end_all(self, error: EngineStopped, taken: Iterable[Command]) -> None:
        """Last act of the thread: nobody may go on waiting for a command (`taken` ones too) or a
        request that will not run.
        """
        with self._lock:
            self._stopping = True
            commands, self._inbox = [*taken, *self._inbox], deque()
        for last in (*commands, lambda: self._engine.fail_all(error), self._engine.close):
            try:
                last()
            except Exception:  # the engine may be broken already; who waits for the next ones is told all the same
                log.exception("a last command failed while the engine stopped")
        self._deliver([(request_id, Failed(error)) for request_id in self._live])
