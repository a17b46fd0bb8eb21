"""One replica of a model deployment: owns one `Model`, turns its events into generator responses.

A plain class: Ray Serve wraps it in `app.py`, tests use it as it is. The engine thread hands the
events of a step to the event loop in one call (`_on_events`), whatever the number of requests; each
request's generator takes what has gathered for it (`Recording`). Correct on Serve's separate user
loop and on its main loop: nothing here blocks a loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from cache_store import StoreConfig, StoreStats
from deployments.attempt_id import split_attempt
from deployments.config import ModelSpec, RoutingSpec
from deployments.http.errors import StreamNotResumable
from deployments.http.ports import RecordedReply, ReplicaState
from deployments.memory.messages import ReplicaLocation
from deployments.memory.replica import ReplicaMemory
from deployments.memory.sources import MemorySource
from deployments.model.recording import Reader, Recording, RecordingState
from deployments.model.recordings import Recordings
from deployments.model.stored_calls import StoredCalls
from deployments.noise.blame import blamed_rule
from deployments.routing.stats import RoutingStats
from erllama.cache.policy import CachePolicy
from erllama.config import EngineConfig
from erllama.errors import EngineStopped, ErllamaError, InvalidParameter
from erllama.events import Event, Failed
from erllama.model import Model
from erllama.request import GenerationRequest, build_request
from erllama.stats import AdapterInfo, EngineStats, EvictResult, ModelInfo, ModelMemory, ModelStatus

log = logging.getLogger(__name__)

MakeModel = Callable[..., Model]

# A busy engine that has not finished a step for this long is stuck, beyond what aborting a decode
# can cure: twice the budget of a decode, for the one that was aborted and the first in its new
# context, and what loading unloaded weights, saves and restores may take besides.
_STUCK_MARGIN_S = 300.0
_STUCK_WITHOUT_BUDGET_S = 600.0  # far above a 512-token prefill step of a large model on a slow CPU
_DRAIN_POLL_S = 0.1
_RANKED_AT_ONCE = 16
HEARTBEAT_S = 2.0  # well below `failover.silence_s`


def stuck_after_s(decode_budget_s: float) -> float:
    """Seconds after which a replica whose decodes have this budget (0: none) is replaced."""
    return 2 * decode_budget_s + _STUCK_MARGIN_S if decode_budget_s else _STUCK_WITHOUT_BUDGET_S


class ModelReplica(StoredCalls):
    """The rows of the engine API, asynchronous, on one replica. Request ids must be unique among
    live requests."""

    def __init__(
        self,
        spec: ModelSpec,
        *,
        n_cpus: int,
        store: StoreConfig | None = None,
        policy: CachePolicy | None = None,
        routing: RoutingSpec | None = None,
        location: ReplicaLocation | None = None,
        sources: Sequence[MemorySource] = (),
        salts: Sequence[str] = ("",),
        make_model: MakeModel = Model,
    ) -> None:
        """Load the model. Raises what the load raises: Serve shows it. `routing` None: no router wants
        to know. `salts` are those of the tenants, for what is prewarmed."""
        self._spec = spec
        self._recordings = Recordings()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining = False
        config: EngineConfig = spec.engine_config(n_threads=n_cpus)
        started = time.monotonic()
        self._model = make_model(config, sink=self._on_events, store=store, policy=policy, blame=blamed_rule)
        try:
            for adapter in spec.adapters:
                handle = self._model.load_adapter(adapter.path)
                self._model.set_adapter_scale(handle, adapter.scale)
            self._model.prepare_grammars()
            n_warm = self._model.prewarm(spec.prewarm, spec.prewarm_timeout_s, salts) if spec.prewarm else 0
        except BaseException:
            self._model.shutdown()
            raise
        told = (spec.id, spec.path, config.thread_limit, n_warm, time.monotonic() - started)
        log.info("model loaded: id=%s path=%s threads=%s warm_prefixes=%d seconds=%.1f", *told)
        self._routing = None if routing is None else RoutingStats(self._model.live_prefixes, routing)
        location = location or ReplicaLocation()
        self._replica_id = location.replica_id
        self._memory = ReplicaMemory(self._model, spec.id, location, sources)

    # --- generation -------------------------------------------------------------------------------

    async def generate(
        self, request: GenerationRequest, delivered: Sequence[Event] = ()
    ) -> AsyncGenerator[list[Event], None]:
        """The events of one request, in lists: the first token at once, then whatever has gathered
        since the last list was taken. `delivered` are what earlier attempts gave, for whoever reads
        the whole later.

        An empty list says that the request is in the engine, and then every `HEARTBEAT_S` without
        events that the engine is not stuck: a caller may take silence for a process that hangs,
        however long a prefill or a queue is.

        The last list ends with `Done` or `Failed`; errors are events, never exceptions, so that
        their type survives the way to the caller. Closing the generator cancels the request, unless
        others read it, too: who joins it, or asks for what is recorded.
        """
        self._loop = asyncio.get_running_loop()
        try:
            if self._draining:
                raise _going_away()
            recording = self._joined(request)
            if recording is None and request.grammar is not None:
                # compiling takes milliseconds, and `post` then finds it compiled
                await asyncio.to_thread(self._model.check, request)
                recording = self._joined(request)
            reader = self._recordings.open(recording) if recording is not None else None
            if recording is None or reader is None:
                recording = self._started(request, delivered)
                reader = self._recordings.open(recording, len(delivered))
        except ErllamaError as error:
            yield [Failed(error)]
            return
        async with aclosing(self._read(recording, reader)) as lists:
            async for events in lists:
                yield events

    async def attach(self, replica_id: str, request_id: str) -> AsyncGenerator[list[Event], None]:
        """The events of a request that is recorded here, from the first on; one that was cancelled
        because nobody read it goes on. `replica_id` is for the router."""
        self._loop = asyncio.get_running_loop()
        recording = self._recordings.find(request_id)
        if recording is None:
            yield [Failed(StreamNotResumable(f"nothing is recorded of request {request_id[:160]!r} (any more)"))]
            return
        async with aclosing(self._read(recording, self._recordings.open(recording))) as lists:
            async for events in lists:
                yield events

    async def recorded(self, ref: str) -> RecordedReply | None:
        """What is recorded here of a request, None for nothing. Of several attempts it is the last."""
        recording = self._recordings.find(ref)
        if recording is None:
            return None
        request = recording.request
        attempt = split_attempt(request.request_id)[1]
        return RecordedReply(
            self._replica_id, request.request_id, attempt, request.head, request.sampling.seed, request.salt
        )

    def _joined(self, request: GenerationRequest) -> Recording | None:
        recording = self._recordings.joinable(request)
        if recording is not None:
            log.info("event=joined request_id=%s other=%s", request.request_id, recording.request.request_id)
        return recording

    def _started(self, request: GenerationRequest, delivered: Sequence[Event]) -> Recording:
        """The recording of a request that the engine has accepted: no event of it can be dispatched
        before the caller yields to the loop."""
        if self._recordings.is_running(request.request_id):  # also one whose reader left and that has not ended yet
            raise InvalidParameter(f"a request with id {request.request_id!r} is in flight", param="request_id")
        self._model.post(request)
        recording = Recording(request, delivered)
        self._recordings.add(recording)
        return recording

    async def _read(self, recording: Recording, reader: Reader) -> AsyncGenerator[list[Event], None]:
        def left(_: asyncio.Task[Any] | None) -> None:
            if self._recordings.close(recording, reader):
                self._model.cancel(recording.engine_id)
            if recording.kept:
                asyncio.get_running_loop().call_later(recording.request.keep_s + 1, self._recordings.expire)

        # Serve's gRPC path drops a generator that is suspended at a yield without closing it, and
        # then only the garbage collector would tell us; the end of the task that reads is certain.
        # Hence one task must read a stream to its end.
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(left)
        try:
            yield []
            while not reader.at_end:
                if recording.state is RecordingState.STOPPED:
                    self._go_on(recording)
                yield await self._events_or_heartbeat(reader)
        except ErllamaError as error:
            yield [Failed(error)]
        finally:
            task.remove_done_callback(left)
            left(None)

    def _go_on(self, recording: Recording) -> None:
        """Have the engine compute the rest of a request that was cancelled. Raises `ErllamaError`."""
        if self._draining:
            raise _going_away()
        rest = recording.rest()
        self._model.post(rest)
        self._recordings.went_on(recording, rest)

    async def _events_or_heartbeat(self, reader: Reader) -> list[Event]:
        """What has gathered; nothing after `HEARTBEAT_S` of an engine that is not stuck."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    return await reader.take()
            except TimeoutError:
                if self._can_go_on():  # a stuck one is replaced by the health check; until then it is silent
                    return []

    async def continue_(
        self,
        session_id: str,
        suffix: Sequence[int],
        expect: Sequence[int] | int | None,
        params: Mapping[str, Any],
        request_id: str,
    ) -> AsyncGenerator[list[Event], None]:
        """The events of a request that continues a session. A session lives on one replica; another
        one answers `SessionNotFound`."""
        try:
            salt = params.get("salt") or ""
            committed = await asyncio.to_thread(self._model.transcript, session_id, expect, salt=salt)
            request = build_request(request_id, [*committed, *suffix], {**params, "session_id": session_id})
        except ErllamaError as error:
            yield [Failed(error)]
            return
        # a closed reader must close it now, not when it is collected
        async with aclosing(self.generate(request)) as stream:
            async for events in stream:
                yield events

    async def answer(
        self, ref: str, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> AsyncGenerator[list[Any], None]:
        """What another method returns, in a list of its own; before it heartbeats, as `generate`
        sends them. `ref` names the call and its attempt, for the router. Raises what that method
        raises."""
        call = asyncio.ensure_future(getattr(self, method)(*args, **kwargs))
        try:
            while not (await asyncio.wait([call], timeout=HEARTBEAT_S))[0]:
                if self._can_go_on():
                    yield []
            yield [call.result()]
        finally:
            call.cancel()

    async def end_session(self, session_id: str, salt: str = "") -> None:
        await asyncio.to_thread(self._model.end_session, session_id, salt=salt)

    async def reset_session(self, session_id: str, salt: str = "") -> None:
        await asyncio.to_thread(self._model.reset_session, session_id, salt=salt)

    async def evict(self) -> EvictResult:
        return await asyncio.to_thread(self._model.evict)

    async def unload(self) -> EvictResult:
        return await asyncio.to_thread(self._model.unload)

    async def cancel(self, ref: str) -> None:
        """Cancel a request, whichever attempt of it runs here. Idempotent; unknown references are fine."""
        for engine_id in self._recordings.cancel(ref):
            self._model.cancel(engine_id)

    # --- the rest of the engine API ---------------------------------------------------------------

    async def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return self._model.tokenize(text, add_special=add_special, parse_special=parse_special)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return self._model.detokenize(tokens)

    async def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        return await asyncio.to_thread(self._model.apply_chat_template, messages, system, tools)

    async def embed(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        return await asyncio.to_thread(self._model.embed_many, inputs)

    async def rank(self, inputs: Sequence[Sequence[int]]) -> list[float]:
        """See `Model.rank`. A caller that goes away ends it between two parts."""
        scores: list[float] = []
        for start in range(0, len(inputs), _RANKED_AT_ONCE):
            scores += await asyncio.to_thread(self._model.rank, inputs[start : start + _RANKED_AT_ONCE])
        return scores

    async def load_adapter(self, path: str) -> str:
        return await asyncio.to_thread(self._model.load_adapter, path)

    async def unload_adapter(self, handle: str) -> None:
        await asyncio.to_thread(self._model.unload_adapter, handle)

    async def set_adapter_scale(self, handle: str, scale: float) -> None:
        await asyncio.to_thread(self._model.set_adapter_scale, handle, scale)

    async def list_adapters(self) -> tuple[AdapterInfo, ...]:
        return await asyncio.to_thread(self._model.list_adapters)  # not from stats(): those are as old as the last step

    async def model_info(self) -> ModelInfo:
        return self._model.model_info()

    async def status(self) -> ModelStatus:
        return self._model.status()

    async def stats(self) -> EngineStats:
        return self._model.stats()

    async def look(self) -> tuple[str, ModelMemory]:
        return self._memory.node_id, self._model.memory()

    async def store_stats(self) -> StoreStats | None:
        return self._model.store_stats()

    async def state(self) -> ReplicaState:
        model, memory = self._model, self._memory
        return ReplicaState(
            model.status(),
            model.stats(),
            model.store_stats(),
            self._replica_id,
            memory.node_id,
            model.model_info().context_size,
            model.memory(),
        )

    # --- Serve's hooks ----------------------------------------------------------------------------

    async def check_health(self) -> None:
        """Raises when the engine thread is dead or stuck; Serve then replaces the replica. Never
        waits for the engine."""
        self._check_engine()

    def _check_engine(self) -> None:
        self._model.check_alive(stuck_after_s=stuck_after_s(self._spec.decode_budget_s))

    def _can_go_on(self) -> bool:
        try:
            self._check_engine()
        except EngineStopped:
            return False
        return True

    def drain(self, seconds: float) -> None:
        """Admit nothing more, let what runs go on for `seconds`, then save everything and end the
        rest, so that it goes on elsewhere.

        Blocks; not for an event loop. Serve stops the replica once its streams have ended.
        """
        self._draining = True
        give_up = time.monotonic() + seconds
        log.info("draining: running=%d seconds=%g", self._model.pending_len, seconds)
        while self._model.pending_len and time.monotonic() < give_up:
            time.sleep(_DRAIN_POLL_S)
        log.info("drained: unfinished=%d", self._model.pending_len)
        self._model.shutdown()

    async def leave(self, seconds: float) -> None:
        """`drain`, for whoever stops the application and waits until everything is saved."""
        await asyncio.to_thread(self.drain, seconds)

    async def record_routing_stats(self) -> dict[str, Any]:
        """What `KvRouter`s learn of this replica, twice a second by default."""
        return {} if self._routing is None else await self._routing.gather(self._model.stats())

    def close(self) -> None:
        """End what runs, save it, and free the model. Idempotent. Blocks; not for an event loop."""
        self._model.shutdown()

    # --- events -----------------------------------------------------------------------------------

    def _on_events(self, events: list[tuple[str, Event]]) -> None:
        """Engine thread: one hand-over per step."""
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._dispatch, events)
        except RuntimeError:  # the loop has closed: Serve stops this replica, nobody reads any more
            log.debug("events of %d requests have no reader", len({request_id for request_id, _ in events}))

    def _dispatch(self, events: list[tuple[str, Event]]) -> None:
        for request_id, event in events:
            self._recordings.push(request_id, event)


def _going_away() -> EngineStopped:
    return EngineStopped("this replica is going away", retry_after_s=1)
