"""Typed access to a model deployment for asyncio, wherever in the cluster. `RemoteModel` of
`deployments.jobs` is the same client for plain code.

The names are those of `erllama.Model`.

A call whose replica is gone, or hangs, goes on from another one, see `FailoverCall`: generation
without a lost or repeated token, calls that change nothing by asking again. Not so calls about a
session (it went with the replica) and calls to all replicas.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.attempt_id import attempt_id, split_attempt
from deployments.config import FailoverPolicy, deployment_name
from deployments.http.answers import Answer
from deployments.http.errors import StreamNotResumable
from deployments.http.ports import RecordedReply
from deployments.model.calls import StreamCalls, explained_errors
from deployments.model.failover import Attempts, FailoverCall
from deployments.model.handles import ASK_EVERY_S, FixedPlace, ModelHandles, ModelPlace
from deployments.model.prefixes import PrefixCalls
from deployments.model.ray_errors import ModelUnavailable, mapped_errors, unanswered
from deployments.model.replica import ModelReplica
from deployments.model.states import LoadState, Phase, load_state
from erllama.errors import EngineStopped, ErllamaError
from erllama.events import Completion, CompletionParts, Done, Event, Failed
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest, build_request

log = logging.getLogger(__name__)

APP_NAME = "erllama"
FIND_S = 3.0  # what a replica that hangs costs who looks for a recording
EXPECT_S = 2.0  # for what is worth nothing later
_MAX_ELSEWHERE = 16  # where no router of ours brings a call to the replica that it names, chance has to

P = ParamSpec("P")
T = TypeVar("T")


def _of_one(
    method: Callable[Concatenate[ModelReplica, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[ModelClient, P], Coroutine[Any, Any, T]]:
    """What some replica answers: a call that changes nothing, hence may be made again."""

    @wraps(method)
    async def call(self: ModelClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: T = await self._call(method.__name__, *args, **kwargs)
        return answer

    return call


def _of_all(
    method: Callable[Concatenate[ModelReplica, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[ModelClient, P], Coroutine[Any, Any, list[T]]]:
    """What every running replica answers, in a list."""

    @wraps(method)
    async def call(self: ModelClient, /, *args: P.args, **kwargs: P.kwargs) -> list[T]:
        return await self._broadcast(method.__name__, *args, **kwargs)

    return call


class ModelClient(PrefixCalls):
    """Async client of one model. Use it on one event loop.

    While no replica runs, because the model is scaled to zero or starts, Serve holds a call back; a
    model of the hub is waited for likewise. `timeout_s` bounds how long a call waits for its first
    answer, that and a full queue included; then it ends with `ModelUnavailable`. None waits as long as
    it takes. Calls to all replicas never wait for one to start. `sleeps`: that no replica runs is no
    failure, and asking must not wake the model.
    """

    def __init__(
        self,
        place: ModelPlace,
        *,
        sleeps: bool = False,
        failover: FailoverPolicy | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._place = place
        self._sleeps = sleeps
        self._failover = failover or FailoverPolicy()
        self._timeout_s = timeout_s
        self._calls = StreamCalls(place, self._failover.silence_s)

    @classmethod
    def of(
        cls,
        handle: DeploymentHandle[Any],
        *,
        sleeps: bool = False,
        failover: FailoverPolicy | None = None,
        timeout_s: float | None = None,
        load_state: Callable[[], LoadState] | None = None,
    ) -> ModelClient:
        """The client of a deployment. `load_state`, which may block, tells why there is no replica."""
        failover = failover or FailoverPolicy()
        handles = ModelHandles(handle, load_state, min(ASK_EVERY_S, failover.silence_s))
        return cls(FixedPlace(handles), sleeps=sleeps, failover=failover, timeout_s=timeout_s)

    @classmethod
    def connect(
        cls,
        model_id: str,
        app_name: str = APP_NAME,
        *,
        failover: FailoverPolicy | None = None,
        timeout_s: float | None = None,
        get_handle: Callable[[str, str], DeploymentHandle[Any]] = serve.get_deployment_handle,
    ) -> ModelClient:
        """The client of a configured model of a running application. `get_handle` is asked for that of its
        deployment."""
        name = deployment_name(model_id)
        handle = get_handle(name, app_name)
        return cls.of(handle, failover=failover, timeout_s=timeout_s, load_state=partial(load_state, app_name, name))

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Events in lists of one or more; the last one is `Done` or `Failed`. Closing the generator
        cancels the request."""
        return self._generated(request)

    def resume(self, recorded: RecordedReply, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """As `generate`, for a request of which `find` has found what is recorded: all its events,
        from the first on. When its replica dies it goes on elsewhere as any other."""
        request = replace(
            request,
            request_id=split_attempt(recorded.request_id)[0],
            sampling=replace(request.sampling, seed=recorded.seed),
        )
        return self._generated(request, recorded)

    async def find(self, request_id: str) -> RecordedReply | None:
        """What the replicas keep of a request: its last attempt. One that hangs is not waited for."""
        try:
            answers: list[Answer[RecordedReply | None]] = await self._each(FIND_S, "recorded", request_id)
        except EngineStopped:  # no replica runs, so none keeps anything
            return None
        found = [answer.value for answer in answers if answer.value is not None]
        return max(found, key=lambda one: one.attempt, default=None)

    async def _generated(
        self, request: GenerationRequest, recorded: RecordedReply | None = None
    ) -> AsyncGenerator[list[Event], None]:
        run = FailoverCall(request, self._attempts(1 if recorded is None else recorded.attempt))
        call: tuple[Any, ...] = ("generate", run.request)
        if recorded is not None:
            call = ("attach", recorded.replica_id, recorded.request_id)
        n_elsewhere = 0
        error: ErllamaError | None = None
        while True:
            try:
                async with aclosing(self._calls.events(run.attempts, *call)) as lists:
                    async for arrived in lists:
                        events, error = run.take(arrived)
                        if events:
                            yield events
                        if error is not None:
                            break
                        if isinstance(events[-1], Done):
                            return
            except ErllamaError as gone:
                error = gone
            except TimeoutError:
                error = error or unanswered()
            assert error is not None
            if isinstance(error, StreamNotResumable) and n_elsewhere < _MAX_ELSEWHERE:
                n_elsewhere += 1
                continue
            if self._calls.closing is not None or not await _goes_on(run.attempts, request.request_id, error):
                yield [Failed(self._calls.closing or error)]
                return
            call = ("generate", run.request, *([run.delivered] if run.delivered else []))

    def infer(self, /, tokens: Sequence[int], **params: Any) -> AsyncGenerator[Event, None]:
        """The events of a request given by token ids and parameters. Closing the generator cancels
        the request."""
        return self._singly(self.generate(build_request(uuid.uuid4().hex, tokens, params)))

    async def complete(self, /, prompt: str | Sequence[int], **params: Any) -> Completion:
        """A whole reply. Raises the error that ended it."""
        tokens = await self.tokenize(prompt) if isinstance(prompt, str) else prompt
        parts = CompletionParts()
        async with aclosing(self.infer(tokens, **params)) as events:
            async for event in events:
                whole = parts.add(event)
                if isinstance(whole, Failed):
                    raise whole.error
                if whole is not None:
                    return whole
        raise AssertionError("a request ended without Done or Failed")

    async def prefill_only(
        self, tokens: Sequence[int], parent_key: str | None = None, session_id: str | None = None, salt: str = ""
    ) -> Completion:
        """Compute and save the KV of `tokens` without generating."""
        return await self.complete(
            list(tokens), response_tokens=0, parent_key=parent_key, session_id=session_id, salt=salt
        )

    def continue_(
        self,
        /,
        session_id: str,
        suffix: Sequence[int] = (),
        expect_committed: Sequence[int] | int | None = None,
        **params: Any,
    ) -> AsyncGenerator[Event, None]:
        """The events of a request that continues a session of the replica that serves it, of requests
        with the `salt` among `params`. It ends with that replica."""
        return self._singly(self._session_events(session_id, list(suffix), expect_committed, params, uuid.uuid4().hex))

    cancel = _of_all(ModelReplica.cancel)
    end_session = _of_all(ModelReplica.end_session)
    reset_session = _of_all(ModelReplica.reset_session)
    evict = _of_all(ModelReplica.evict)
    status = _of_all(ModelReplica.status)
    stats = _of_all(ModelReplica.stats)
    store_stats = _of_all(ModelReplica.store_stats)
    unload_adapter = _of_all(ModelReplica.unload_adapter)
    set_adapter_scale = _of_all(ModelReplica.set_adapter_scale)

    tokenize = _of_one(ModelReplica.tokenize)
    detokenize = _of_one(ModelReplica.detokenize)
    apply_chat_template = _of_one(ModelReplica.apply_chat_template)
    embed = _of_one(ModelReplica.embed)
    rank = _of_one(ModelReplica.rank)
    model_info = _of_one(ModelReplica.model_info)
    list_cached_prefixes = _of_one(ModelReplica.list_cached_prefixes)
    list_adapters = _of_one(ModelReplica.list_adapters)

    async def load_adapter(self, path: str) -> str:
        """Load on every running replica; returns the handle, which is the same everywhere."""
        handles: list[str] = await self._broadcast("load_adapter", path)
        return handles[0]

    async def expect(self, turn: NextTurn) -> None:
        """See `ModelPort.expect`. Raises an `ErllamaError` when no replica takes it in time."""
        response: Any = self._place.current().stream.answer.remote(turn.request_id, "expect", (turn,), {})
        ended = False
        try:
            async with asyncio.timeout(EXPECT_S):
                with mapped_errors():
                    async for _ in response:
                        ended = True
        except TimeoutError:
            raise unanswered() from None
        finally:
            if not ended:
                response.cancel()

    async def ready(self) -> bool | None:
        """Whether a replica answers. None: none runs, and asking must not wake a model that is
        scaled to zero. Raises `ModelUnavailable` with the reason when Serve has stopped trying to
        load it, or still tries after a failure."""
        try:
            await self._place.current().all("status")
        except EngineStopped:
            state = await self._state()
            if state.reason and state.phase is not Phase.ENDED:
                raise ModelUnavailable(state.reason, retry_after_s=1) from None
            return None if self._sleeps else False
        return True

    def end_all(self, error: ErllamaError) -> None:
        """End what runs with `error` and refuse what comes, calls that change nothing included: the
        process of this client is going away. Any thread; returns at once."""
        self._calls.end_all(error)

    async def _singly(self, stream: AsyncGenerator[list[Event], None]) -> AsyncGenerator[Event, None]:
        async with aclosing(stream) as lists:
            async for events in lists:
                for event in events:
                    yield event

    def _attempts(self, first: int = 1) -> Attempts:
        return Attempts(self._failover, timeout_s=self._timeout_s, first=first)

    async def _session_events(self, *args: Any) -> AsyncGenerator[list[Event], None]:
        attempts = self._attempts()
        try:
            async with aclosing(self._calls.events(attempts, "continue_", *args)) as lists:
                async for events in lists:
                    attempts.progressed()
                    yield events
        except TimeoutError:
            raise unanswered() from None

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        error: ErllamaError | None = None
        attempts, name = self._attempts(), uuid.uuid4().hex
        while True:
            try:
                return await self._answer(attempts, attempt_id(name, attempts.number), method, *args, **kwargs)
            except TimeoutError:
                raise error or unanswered() from None
            except ErllamaError as failed:
                error = failed
                if self._calls.closing is not None:
                    raise self._calls.closing from None
                if not await _goes_on(attempts, method, failed):
                    raise

    async def _answer(self, attempts: Attempts, ref: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """One attempt, as a stream: its heartbeats tell a replica that computes from one that
        hangs. By `ref` the router knows where earlier ones failed."""
        lists: AsyncGenerator[list[Any], None] = self._calls.lists(attempts, bool, "answer", ref, method, args, kwargs)
        async with aclosing(lists):
            return (await anext(lists))[0]

    async def _broadcast(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        handles = self._place.current()
        async with explained_errors(handles):
            return await handles.all(method, *args, **kwargs)

    async def _state(self) -> LoadState:
        try:
            return await self._place.current().state()
        except EngineStopped:  # it was never loaded
            return LoadState(Phase.ASLEEP)


async def _goes_on(attempts: Attempts, name: str, error: ErllamaError) -> bool:
    """Whether there is another attempt after `error`; it may then begin at once."""
    if (wait_s := attempts.failed(error)) is None:
        return False
    log.warning("event=failover request_id=%s wait_s=%.2f error=%s", name, wait_s, error.message)
    await asyncio.sleep(wait_s)
    return True
