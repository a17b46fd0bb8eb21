"""Typed access to a model deployment from anywhere in the cluster: `ModelClient` for asyncio, `RemoteModel` for plain code (a Ray job).

    from deployments.model_client import RemoteModel
    model = RemoteModel.connect("demo")
    print(model.complete("Once upon a time", response_tokens=16, temperature=0).text)

Both offer the names of `erllama.Model`. Handles are made once and kept: every `.options()` variant of a Serve handle costs a metrics
pusher and a long poll. What Ray raises is mapped here, and only here, to the errors of `erllama.errors`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RequestCancelledError
from ray.serve.handle import DeploymentHandle

from cache_store import CachedPrefix, StoreStats
from deployments.config import deployment_name
from erllama.errors import EngineStopped, ErllamaError, QueueFull
from erllama.request import Completion, Done, Event, Failed, GenerationRequest
from erllama.stats import AdapterInfo, EngineStats, EvictResult, ModelInfo, ModelStatus

APP_NAME = "erllama"


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
        raise
    except BackPressureError as error:
        raise QueueFull(str(error), retry_after_s=1) from None
    except (ActorDiedError, ActorUnavailableError, DeploymentUnavailableError) as error:
        raise EngineStopped(f"the model's replica is gone: {str(error).splitlines()[0]}", retry_after_s=1) from None
    except RequestCancelledError:
        raise asyncio.CancelledError from None


class ModelClient:
    """Async client of one model deployment. Use it on one event loop."""

    def __init__(self, handle: DeploymentHandle[Any], *, scales_to_zero: bool = False) -> None:
        self._unary = handle
        self._stream = handle.options(stream=True)
        self._scales_to_zero = scales_to_zero

    @classmethod
    def connect(cls, model_id: str, app_name: str = APP_NAME) -> ModelClient:
        """The client of a model of a running application."""
        return cls(_handle(model_id, app_name))

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """Events in lists of one or more; the last one is `Done` or `Failed`. Closing the generator cancels the request."""
        return self._events("generate", request)

    async def infer(self, tokens: Sequence[int], **params: Any) -> AsyncGenerator[Event, None]:
        """The events of a request given by token ids and parameters. Closing the generator cancels the request."""
        async with aclosing(self._events("infer", list(tokens), params, uuid.uuid4().hex)) as lists:
            async for events in lists:
                for event in events:
                    yield event

    async def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        """A whole reply. Raises the error that ended it."""
        return _unwrap(await self._call("complete", prompt, params, uuid.uuid4().hex))

    async def prefill_only(self, tokens: Sequence[int], parent_key: str | None = None, session_id: str | None = None) -> Completion:
        """Compute and save the KV of `tokens` without generating."""
        return await self.complete(list(tokens), response_tokens=0, parent_key=parent_key, session_id=session_id)

    async def continue_(
        self, session_id: str, suffix: Sequence[int] = (), expect_committed: Sequence[int] | int | None = None, **params: Any
    ) -> AsyncGenerator[Event, None]:
        """The events of a request that continues a session of the replica that serves it."""
        args = (session_id, list(suffix), expect_committed, params, uuid.uuid4().hex)
        async with aclosing(self._events("continue_", *args)) as lists:
            async for events in lists:
                for event in events:
                    yield event

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

    async def _events(self, method: str, *args: Any) -> AsyncGenerator[list[Event], None]:
        ended = False
        with mapped_errors():
            response: Any = getattr(self._stream, method).remote(*args)
            try:
                async for events in response:
                    ended = isinstance(events[-1], Done | Failed)
                    yield events
            finally:
                if not ended:
                    response.cancel()

    async def _call(self, method: str, *args: Any) -> Any:
        with mapped_errors():
            return await getattr(self._unary, method).remote(*args)

    async def _broadcast(self, method: str, *args: Any) -> list[Any]:
        with mapped_errors():
            return list(await self._unary.broadcast(method, *args).results_async())


class RemoteModel:
    """Blocking client of one model deployment, for Ray jobs and tasks. Not for use on an event loop."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._unary = handle
        self._stream = handle.options(stream=True)

    @classmethod
    def connect(cls, model_id: str, app_name: str = APP_NAME) -> RemoteModel:
        """The client of a model of a running application; needs a driver or worker that is connected to the cluster."""
        return cls(_handle(model_id, app_name))

    def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        """A whole reply. Raises the error that ended it."""
        return _unwrap(self._call("complete", prompt, params, uuid.uuid4().hex))

    def infer(self, tokens: Sequence[int], **params: Any) -> Generator[Event, None, None]:
        """The events of a request. Closing the generator cancels it."""
        return self._events("infer", list(tokens), params, uuid.uuid4().hex)

    def _events(self, method: str, *args: Any) -> Generator[Event, None, None]:
        ended = False
        with mapped_errors():
            response: Any = getattr(self._stream, method).remote(*args)
            try:
                for events in response:
                    for event in events:
                        ended = isinstance(event, Done | Failed)
                        yield event
            finally:
                if not ended:
                    response.cancel()

    def prefill_only(self, tokens: Sequence[int], parent_key: str | None = None, session_id: str | None = None) -> Completion:
        """Compute and save the KV of `tokens` without generating."""
        return self.complete(list(tokens), response_tokens=0, parent_key=parent_key, session_id=session_id)

    def continue_(
        self, session_id: str, suffix: Sequence[int] = (), expect_committed: Sequence[int] | int | None = None, **params: Any
    ) -> Generator[Event, None, None]:
        """The events of a request that continues a session of the replica that serves it."""
        return self._events("continue_", session_id, list(suffix), expect_committed, params, uuid.uuid4().hex)

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
        with mapped_errors():
            return getattr(self._unary, method).remote(*args).result()

    def _broadcast(self, method: str, *args: Any) -> list[Any]:
        with mapped_errors():
            return list(self._unary.broadcast(method, *args).results())


def _handle(model_id: str, app_name: str) -> DeploymentHandle[Any]:
    return serve.get_deployment_handle(deployment_name(model_id), app_name)


def _unwrap(result: Completion | Failed) -> Completion:
    if isinstance(result, Failed):
        raise result.error
    return result
