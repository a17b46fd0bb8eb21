"""Typed access to a model deployment from anywhere in the cluster: `ModelClient` for asyncio, `RemoteModel` for plain code (a Ray job).

    from deployments.model_client import RemoteModel
    model = RemoteModel.connect("demo")
    print(model.complete("Once upon a time", response_tokens=16, temperature=0).text)

Both offer the names of `erllama.Model`. Handles are made once and kept: every `.options()` variant of a Serve handle costs a metrics
pusher and a long poll. What Ray raises is mapped here, and only here, to the errors of `erllama.errors`.

A call whose replica is gone goes on from another one, see `resumption`: generation without a lost or repeated token, calls that change
nothing by asking again. Not so calls about a session (it went with the replica) and calls to all replicas.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from typing import Any

import grpc
from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from cache_store import CachedPrefix, StoreStats
from deployments.config import Failover, deployment_name
from deployments.resumption import Attempts, Resumption
from erllama.errors import EngineStopped, ErllamaError, QueueFull
from erllama.request import Completion, CompletionParts, Done, Event, Failed, GenerationRequest, build_request
from erllama.stats import AdapterInfo, EngineStats, EvictResult, ModelInfo, ModelStatus

log = logging.getLogger(__name__)

APP_NAME = "erllama"

# By reference a dead replica is the first, and lost answers the others; over gRPC it is `ActorUnavailableError` or a bare RpcError.
_REPLICA_GONE = (RayActorError, NodeDiedError, WorkerCrashedError, OutOfMemoryError, ObjectLostError, grpc.RpcError)


class ModelUnavailable(EngineStopped):
    """No replica runs and Serve has stopped trying to start one: asking again at once is pointless."""

    resumable = False


def _gone(error: BaseException) -> EngineStopped:
    lines = str(error).splitlines() or [repr(error)]
    return EngineStopped(f"the model's replica is gone: {lines[0]}", retry_after_s=1)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn what a handle call raises into an `ErllamaError`; anything not listed is a bug and passes through."""
    try:
        yield
    except ErllamaError as error:
        cause = getattr(error, "cause", None)  # RayTaskError inherits from its cause's class; the original is cleaner
        if isinstance(cause, ErllamaError):
            raise cause from None
        raise
    except RayTaskError as error:
        if isinstance(error.cause, ErllamaError):
            raise error.cause from None
        if isinstance(error.cause, asyncio.CancelledError):
            raise _gone(error.cause) from None
        raise
    except BackPressureError as error:
        raise QueueFull(str(error), retry_after_s=1) from None
    except DeploymentUnavailableError as error:
        raise ModelUnavailable(f"the model has no replica: {str(error).splitlines()[0]}", retry_after_s=1) from None
    except (asyncio.CancelledError, concurrent.futures.CancelledError, TaskCancelledError) as error:
        if _we_are_cancelled():
            raise asyncio.CancelledError from None
        raise _gone(error) from None  # a replica whose grace time is over cancels what it runs
    except _REPLICA_GONE as error:
        raise _gone(error) from None
    except RuntimeError as error:
        if not str(error).startswith("Unexpected error (StatusCode."):  # how Serve wraps a gRPC status that it does not expect
            raise
        raise _gone(error) from None


def _we_are_cancelled() -> bool:
    """Whether the cancellation that arrives is our own task's, and not one that came over the wire."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # plain code
        return False
    return task is not None and task.cancelling() > 0


def _moving(request_id: str, error: ErllamaError, wait_s: float) -> None:
    log.warning("event=moving request_id=%s wait_s=%.2f error=%s", request_id, wait_s, error.message)


class ModelClient:
    """Async client of one model deployment. Use it on one event loop."""

    def __init__(self, handle: DeploymentHandle[Any], *, scales_to_zero: bool = False, failover: Failover | None = None) -> None:
        self._unary = handle
        self._stream = handle.options(stream=True)
        self._scales_to_zero = scales_to_zero
        self._failover = failover or Failover()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[Any] = set()
        self._closing: ErllamaError | None = None

    @classmethod
    def connect(cls, model_id: str, app_name: str = APP_NAME, *, failover: Failover | None = None) -> ModelClient:
        """The client of a model of a running application."""
        return cls(_handle(model_id, app_name), failover=failover)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Events in lists of one or more; the last one is `Done` or `Failed`. Closing the generator cancels the request."""
        run = Resumption(request, self._failover)
        error: ErllamaError | None = None
        while True:
            try:
                async with aclosing(self._events("generate", run.request)) as lists:
                    while True:
                        async with asyncio.timeout(run.attempts.left_s):
                            events, error = run.take(await anext(lists))
                        if events:
                            yield events
                        if error is not None:
                            break
                        if isinstance(events[-1], Done):
                            return
            except ErllamaError as gone:
                error = gone
            except TimeoutError:
                error = error or EngineStopped("no replica answered in time; send the request again", retry_after_s=1)
            wait_s = run.attempts.failed(error) if self._closing is None else None
            if wait_s is None:
                yield [Failed(self._closing or error)]
                return
            _moving(request.request_id, error, wait_s)
            await asyncio.sleep(wait_s)

    def infer(self, tokens: Sequence[int], **params: Any) -> AsyncGenerator[Event, None]:
        """The events of a request given by token ids and parameters. Closing the generator cancels the request."""
        return self._singly(self.generate(build_request(uuid.uuid4().hex, tokens, params)))

    async def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        """A whole reply. Raises the error that ended it."""
        tokens = await self.tokenize(prompt) if isinstance(prompt, str) else prompt
        parts = CompletionParts()
        async with aclosing(self.infer(tokens, **params)) as events:
            async for event in events:
                whole = parts.add(event)
                if whole is not None:
                    return _unwrap(whole)
        raise AssertionError("a request ended without Done or Failed")

    async def prefill_only(self, tokens: Sequence[int], parent_key: str | None = None, session_id: str | None = None) -> Completion:
        """Compute and save the KV of `tokens` without generating."""
        return await self.complete(list(tokens), response_tokens=0, parent_key=parent_key, session_id=session_id)

    def continue_(
        self, session_id: str, suffix: Sequence[int] = (), expect_committed: Sequence[int] | int | None = None, **params: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of a request that continues a session of the replica that serves it. It ends with that replica."""
        return self._singly(self._events("continue_", session_id, list(suffix), expect_committed, params, uuid.uuid4().hex))

    async def end_session(self, session_id: str) -> None:
        await self._broadcast("end_session", session_id)

    async def reset_session(self, session_id: str) -> None:
        await self._broadcast("reset_session", session_id)

    async def evict(self) -> list[EvictResult]:
        """Save and release the context of every running replica."""
        return await self._broadcast("evict")

    async def store_stats(self) -> list[StoreStats | None]:
        """One snapshot per running replica; None without a store."""
        return await self._broadcast("store_stats")

    async def list_cached_prefixes(self, limit: int = 1000) -> tuple[CachedPrefix, ...]:
        """Stored prefixes, as one replica knows them."""
        return await self._call("list_cached_prefixes", limit)  # type: ignore[no-any-return]

    async def cancel(self, ref: str) -> None:
        """Cancel by request id, whichever replica runs it. Idempotent."""
        await self._broadcast("cancel", ref)

    async def tokenize(self, text: str) -> list[int]:
        return await self._call("tokenize", text)  # type: ignore[no-any-return]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return await self._call("detokenize", list(tokens))  # type: ignore[no-any-return]

    async def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], system: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        return await self._call("apply_chat_template", list(messages), system, tools)  # type: ignore[no-any-return]

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        return await self._call("embed", inputs)  # type: ignore[no-any-return]

    async def load_adapter(self, path: str) -> str:
        """Load on every running replica; returns the handle, which is the same everywhere."""
        return (await self._broadcast("load_adapter", path))[0]  # type: ignore[no-any-return]

    async def unload_adapter(self, handle: str) -> None:
        await self._broadcast("unload_adapter", handle)

    async def set_adapter_scale(self, handle: str, scale: float) -> None:
        await self._broadcast("set_adapter_scale", handle, scale)

    async def list_adapters(self) -> tuple[AdapterInfo, ...]:
        return await self._call("list_adapters")  # type: ignore[no-any-return]

    async def model_info(self) -> ModelInfo:
        return await self._call("model_info")  # type: ignore[no-any-return]

    async def status(self) -> list[ModelStatus]:
        """One status per running replica."""
        return await self._broadcast("status")

    async def stats(self) -> list[EngineStats]:
        """One snapshot per running replica."""
        return await self._broadcast("stats")

    async def ready(self) -> bool | None:
        """Whether a replica answers. None: none runs, and asking must not wake a model that is scaled to zero."""
        try:
            await self._broadcast("status")
        except EngineStopped:
            return None if self._scales_to_zero else False
        return True

    def end_all(self, error: ErllamaError) -> None:
        """End what runs with `error` and refuse what comes: the process of this client is going away. Any thread; returns at once."""
        self._closing = error
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel_running)

    def _cancel_running(self) -> None:
        for response in list(self._running):
            response.cancel()

    async def _singly(self, stream: AsyncGenerator[list[Event], None]) -> AsyncGenerator[Event, None]:
        async with aclosing(stream) as lists:
            async for events in lists:
                for event in events:
                    yield event

    async def _events(self, method: str, *args: Any) -> AsyncGenerator[list[Event], None]:
        """One attempt. Whatever ends it early raises an `ErllamaError`."""
        if self._closing is not None:
            raise self._closing
        self._loop = asyncio.get_running_loop()
        ended = False
        with mapped_errors():
            response: Any = getattr(self._stream, method).remote(*args)
            self._running.add(response)
            try:
                async for events in response:
                    ended = isinstance(events[-1], Done | Failed)
                    yield events
            finally:
                self._running.discard(response)
                if not ended:
                    response.cancel()
        if not ended:
            raise EngineStopped("the model's replica ended a reply in the middle", retry_after_s=1)

    async def _call(self, method: str, *args: Any) -> Any:
        """A call that changes nothing, hence may be made again."""
        attempts = Attempts(self._failover)
        while True:
            try:
                async with asyncio.timeout(attempts.left_s):
                    with mapped_errors():
                        return await getattr(self._unary, method).remote(*args)
            except TimeoutError:
                raise EngineStopped("no replica answered in time; send the request again", retry_after_s=1) from None
            except ErllamaError as error:
                wait_s = attempts.failed(error)
                if wait_s is None:
                    raise
                _moving(method, error, wait_s)
            await asyncio.sleep(wait_s)

    async def _broadcast(self, method: str, *args: Any) -> list[Any]:
        with mapped_errors():
            return list(await self._unary.broadcast(method, *args).results_async())


class RemoteModel:
    """Blocking client of one model deployment, for Ray jobs and tasks. Not for use on an event loop.

    It cannot give up on a call that waits in Serve for a replica to start: `failover.timeout_s` bounds the tries alone.
    """

    def __init__(self, handle: DeploymentHandle[Any], *, failover: Failover | None = None) -> None:
        self._unary = handle
        self._stream = handle.options(stream=True)
        self._failover = failover or Failover()

    @classmethod
    def connect(cls, model_id: str, app_name: str = APP_NAME, *, failover: Failover | None = None) -> RemoteModel:
        """The client of a model of a running application; needs a driver or worker that is connected to the cluster."""
        return cls(_handle(model_id, app_name), failover=failover)

    def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        """A whole reply. Raises the error that ended it."""
        parts = CompletionParts()
        with closing(self.infer(self.tokenize(prompt) if isinstance(prompt, str) else prompt, **params)) as events:
            for event in events:
                whole = parts.add(event)
                if whole is not None:
                    return _unwrap(whole)
        raise AssertionError("a request ended without Done or Failed")

    def infer(self, tokens: Sequence[int], **params: Any) -> Generator[Event, None, None]:
        """The events of a request. Closing the generator cancels it."""
        return self._singly(self.generate(build_request(uuid.uuid4().hex, tokens, params)))

    def generate(self, request: GenerationRequest) -> Generator[list[Event], None, None]:
        """Events in lists of one or more; the last one is `Done` or `Failed`. Closing the generator cancels the request."""
        run = Resumption(request, self._failover)
        error: ErllamaError | None = None
        while True:
            try:
                with closing(self._events("generate", run.request)) as lists:
                    for arrived in lists:
                        events, error = run.take(arrived)
                        if events:
                            yield events
                        if error is not None:
                            break
                        if isinstance(events[-1], Done):
                            return
            except ErllamaError as gone:
                error = gone
            assert error is not None
            wait_s = run.attempts.failed(error)
            if wait_s is None:
                yield [Failed(error)]
                return
            _moving(request.request_id, error, wait_s)
            time.sleep(wait_s)

    def _singly(self, stream: Generator[list[Event], None, None]) -> Generator[Event, None, None]:
        with closing(stream) as lists:
            for events in lists:
                yield from events

    def _events(self, method: str, *args: Any) -> Generator[list[Event], None, None]:
        """One attempt. Whatever ends it early raises an `ErllamaError`."""
        ended = False
        with mapped_errors():
            response: Any = getattr(self._stream, method).remote(*args)
            try:
                for events in response:
                    ended = isinstance(events[-1], Done | Failed)
                    yield events
            finally:
                if not ended:
                    response.cancel()
        if not ended:
            raise EngineStopped("the model's replica ended a reply in the middle", retry_after_s=1)

    def prefill_only(self, tokens: Sequence[int], parent_key: str | None = None, session_id: str | None = None) -> Completion:
        """Compute and save the KV of `tokens` without generating."""
        return self.complete(list(tokens), response_tokens=0, parent_key=parent_key, session_id=session_id)

    def continue_(
        self, session_id: str, suffix: Sequence[int] = (), expect_committed: Sequence[int] | int | None = None, **params: Any
    ) -> Generator[Event, None, None]:
        """The events of a request that continues a session of the replica that serves it. It ends with that replica."""
        return self._singly(self._events("continue_", session_id, list(suffix), expect_committed, params, uuid.uuid4().hex))

    def end_session(self, session_id: str) -> None:
        self._broadcast("end_session", session_id)

    def reset_session(self, session_id: str) -> None:
        self._broadcast("reset_session", session_id)

    def evict(self) -> list[EvictResult]:
        """Save and release the context of every running replica."""
        return self._broadcast("evict")

    def store_stats(self) -> list[StoreStats | None]:
        """One snapshot per running replica; None without a store."""
        return self._broadcast("store_stats")

    def list_cached_prefixes(self, limit: int = 1000) -> tuple[CachedPrefix, ...]:
        """Stored prefixes, as one replica knows them."""
        return self._call("list_cached_prefixes", limit)  # type: ignore[no-any-return]

    def cancel(self, ref: str) -> None:
        """Cancel by request id, whichever replica runs it. Idempotent."""
        self._broadcast("cancel", ref)

    def tokenize(self, text: str) -> list[int]:
        return self._call("tokenize", text)  # type: ignore[no-any-return]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._call("detokenize", list(tokens))  # type: ignore[no-any-return]

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], system: str | None = None, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        return self._call("apply_chat_template", list(messages), system, tools)  # type: ignore[no-any-return]

    def embed(self, tokens: Sequence[int]) -> list[float]:
        return self._call("embed", [list(tokens)])[0]  # type: ignore[no-any-return]

    def load_adapter(self, path: str) -> str:
        """Load on every running replica; returns the handle, which is the same everywhere."""
        return self._broadcast("load_adapter", path)[0]  # type: ignore[no-any-return]

    def unload_adapter(self, handle: str) -> None:
        self._broadcast("unload_adapter", handle)

    def set_adapter_scale(self, handle: str, scale: float) -> None:
        self._broadcast("set_adapter_scale", handle, scale)

    def list_adapters(self) -> tuple[AdapterInfo, ...]:
        return self._call("list_adapters")  # type: ignore[no-any-return]

    def model_info(self) -> ModelInfo:
        return self._call("model_info")  # type: ignore[no-any-return]

    def status(self) -> list[ModelStatus]:
        """One status per running replica."""
        return self._broadcast("status")

    def stats(self) -> list[EngineStats]:
        """One snapshot per running replica."""
        return self._broadcast("stats")

    def _call(self, method: str, *args: Any) -> Any:
        """A call that changes nothing, hence may be made again."""
        attempts = Attempts(self._failover)
        while True:
            try:
                with mapped_errors():
                    return getattr(self._unary, method).remote(*args).result()
            except ErllamaError as error:
                wait_s = attempts.failed(error)
                if wait_s is None:
                    raise
                _moving(method, error, wait_s)
            time.sleep(wait_s)

    def _broadcast(self, method: str, *args: Any) -> list[Any]:
        with mapped_errors():
            return list(self._unary.broadcast(method, *args).results())


def _handle(model_id: str, app_name: str) -> DeploymentHandle[Any]:
    return serve.get_deployment_handle(deployment_name(model_id), app_name)


def _unwrap(result: Completion | Failed) -> Completion:
    if isinstance(result, Failed):
        raise result.error
    return result
