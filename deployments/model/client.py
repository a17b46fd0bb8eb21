"""Typed access to a model deployment for asyncio, wherever in the cluster. `blocking.py` has the
same client for plain code.

The names are those of `erllama.Model`. Handles are made once and kept: every `.options()` variant
of a Serve handle costs a metrics pusher and a long poll.

A call whose replica is gone goes on from another one, see `FailoverCall`: generation without a lost
or repeated token, calls that change nothing by asking again. Not so calls about a session (it went
with the replica) and calls to all replicas.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from cache_store import CachedPrefix, StoreStats
from deployments.config import FailoverPolicy, deployment_name
from deployments.model.failover import Attempts, FailoverCall
from deployments.model.ray_errors import ModelUnavailable, mapped_errors
from erllama.errors import EngineStopped, ErllamaError
from erllama.events import Completion, CompletionParts, Done, Event, Failed
from erllama.request import GenerationRequest, build_request
from erllama.stats import AdapterInfo, EngineStats, EvictResult, ModelInfo, ModelStatus

log = logging.getLogger(__name__)

APP_NAME = "erllama"


class ModelClient:
    """Async client of one model deployment. Use it on one event loop.

    While no replica runs, because the model is scaled to zero or starts, Serve holds a call back.
    `timeout_s` bounds how long a call waits for its first answer, that and a full queue included;
    then it ends with `ModelUnavailable`. None waits as long as it takes. Calls to all replicas
    never wait for one to start.
    """

    def __init__(
        self,
        handle: DeploymentHandle[Any],
        *,
        scales_to_zero: bool = False,
        failover: FailoverPolicy | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._unary = handle
        self._stream = handle.options(stream=True)
        self._scales_to_zero = scales_to_zero
        self._failover = failover or FailoverPolicy()
        self._timeout_s = timeout_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[Any] = set()
        self._closing: ErllamaError | None = None

    @classmethod
    def connect(
        cls,
        model_id: str,
        app_name: str = APP_NAME,
        *,
        failover: FailoverPolicy | None = None,
        timeout_s: float | None = None,
    ) -> ModelClient:
        """The client of a model of a running application."""
        handle: DeploymentHandle[Any] = serve.get_deployment_handle(deployment_name(model_id), app_name)
        return cls(handle, failover=failover, timeout_s=timeout_s)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Events in lists of one or more; the last one is `Done` or `Failed`. Closing the generator
        cancels the request."""
        run = FailoverCall(request, self._failover, timeout_s=self._timeout_s)
        error: ErllamaError | None = None
        while True:
            try:
                async with aclosing(self._events(run.attempts, "generate", run.request)) as lists:
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
                error = error or _unanswered()
            assert error is not None
            wait_s = run.attempts.failed(error) if self._closing is None else None
            if wait_s is None:
                yield [Failed(self._closing or error)]
                return
            log_failover(request.request_id, error, wait_s)
            await asyncio.sleep(wait_s)

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
                if whole is not None:
                    return unwrap(whole)
        raise AssertionError("a request ended without Done or Failed")

    async def prefill_only(
        self, tokens: Sequence[int], parent_key: str | None = None, session_id: str | None = None
    ) -> Completion:
        """Compute and save the KV of `tokens` without generating."""
        return await self.complete(list(tokens), response_tokens=0, parent_key=parent_key, session_id=session_id)

    def continue_(
        self,
        /,
        session_id: str,
        suffix: Sequence[int] = (),
        expect_committed: Sequence[int] | int | None = None,
        **params: Any,
    ) -> AsyncGenerator[Event, None]:
        """The events of a request that continues a session of the replica that serves it. It ends
        with that replica."""
        return self._singly(self._session_events(session_id, list(suffix), expect_committed, params, uuid.uuid4().hex))

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
        self,
        messages: Sequence[Mapping[str, Any]],
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
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
        """Whether a replica answers. None: none runs, and asking must not wake a model that is
        scaled to zero."""
        try:
            await self._broadcast("status")
        except EngineStopped:
            return None if self._scales_to_zero else False
        return True

    def end_all(self, error: ErllamaError) -> None:
        """End what runs with `error` and refuse what comes: the process of this client is going
        away. Any thread; returns at once."""
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

    async def _session_events(self, *args: Any) -> AsyncGenerator[list[Event], None]:
        attempts = Attempts(self._failover, timeout_s=self._timeout_s)
        try:
            async with aclosing(self._events(attempts, "continue_", *args)) as lists:
                async for events in lists:
                    attempts.progressed()
                    yield events
        except TimeoutError:
            raise _unanswered() from None

    async def _events(self, attempts: Attempts, method: str, *args: Any) -> AsyncGenerator[list[Event], None]:
        """One attempt. Raises `TimeoutError` when `attempts` have no time left; whatever else ends
        it early raises an `ErllamaError`."""
        if self._closing is not None:
            raise self._closing
        self._loop = asyncio.get_running_loop()
        ended = False
        with mapped_errors():
            response: Any = getattr(self._stream, method).remote(*args)
            self._running.add(response)
            try:
                while not ended:
                    async with asyncio.timeout(attempts.left_s):
                        events = await anext(response, None)
                    if events is None:
                        break
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
        error: ErllamaError | None = None
        attempts = Attempts(self._failover, timeout_s=self._timeout_s)
        while True:
            try:
                async with asyncio.timeout(attempts.left_s):
                    return await self._attempt(method, *args)
            except TimeoutError:
                raise error or _unanswered() from None
            except ErllamaError as failed:
                wait_s = attempts.failed(failed)
                if wait_s is None:
                    raise
                error = failed
                log_failover(method, error, wait_s)
            await asyncio.sleep(wait_s)

    async def _attempt(self, method: str, *args: Any) -> Any:
        with mapped_errors():
            response: Any = getattr(self._unary, method).remote(*args)
            try:
                return await response
            # nobody waits any more: a call that Serve still holds must not be made later
            except asyncio.CancelledError:
                response.cancel()
                raise

    async def _broadcast(self, method: str, *args: Any) -> list[Any]:
        with mapped_errors():
            return list(await self._unary.broadcast(method, *args).results_async())


def _unanswered() -> ModelUnavailable:
    return ModelUnavailable("no replica of the model answered in time: it is starting or very busy", retry_after_s=1)


def log_failover(request_id: str, error: ErllamaError, wait_s: float) -> None:
    """A call goes on elsewhere."""
    log.warning("event=failover request_id=%s wait_s=%.2f error=%s", request_id, wait_s, error.message)


def unwrap(result: Completion | Failed) -> Completion:
    """The reply, or the error that ended it, raised."""
    if isinstance(result, Failed):
        raise result.error
    return result
