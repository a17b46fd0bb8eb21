"""Blocking access to a model deployment from plain code: Ray jobs, tasks, threads.

    from deployments.model.blocking import RemoteModel
    model = RemoteModel.connect("demo")
    print(model.complete("Once upon a time", response_tokens=16, temperature=0).text)

The names are those of `erllama.Model`. A call whose replica is gone goes on from another one, as in `model_client`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from cache_store import CachedPrefix, StoreStats
from deployments.config import FailoverPolicy, deployment_name
from deployments.model.client import APP_NAME, log_failover, unwrap
from deployments.model.failover import Attempts, FailoverCall
from deployments.model.ray_errors import mapped_errors
from erllama.errors import EngineStopped, ErllamaError
from erllama.events import Completion, CompletionParts, Done, Event, Failed
from erllama.request import GenerationRequest, build_request
from erllama.stats import AdapterInfo, EngineStats, EvictResult, ModelInfo, ModelStatus


class RemoteModel:
    """Blocking client of one model deployment, for Ray jobs and tasks. Not for use on an event loop.

    It cannot give up on a call that waits in Serve for a replica to start: `failover.timeout_s` bounds the tries alone.
    """

    def __init__(self, handle: DeploymentHandle[Any], *, failover: FailoverPolicy | None = None) -> None:
        self._unary = handle
        self._stream = handle.options(stream=True)
        self._failover = failover or FailoverPolicy()

    @classmethod
    def connect(cls, model_id: str, app_name: str = APP_NAME, *, failover: FailoverPolicy | None = None) -> RemoteModel:
        """The client of a model of a running application; needs a driver or worker that is connected to the cluster."""
        return cls(blocking_handle(deployment_name(model_id), app_name), failover=failover)

    def complete(self, prompt: str | Sequence[int], **params: Any) -> Completion:
        """A whole reply. Raises the error that ended it."""
        parts = CompletionParts()
        with closing(self.infer(self.tokenize(prompt) if isinstance(prompt, str) else prompt, **params)) as events:
            for event in events:
                whole = parts.add(event)
                if whole is not None:
                    return unwrap(whole)
        raise AssertionError("a request ended without Done or Failed")

    def infer(self, tokens: Sequence[int], **params: Any) -> Generator[Event, None, None]:
        """The events of a request. Closing the generator cancels it."""
        return self._singly(self.generate(build_request(uuid.uuid4().hex, tokens, params)))

    def generate(self, request: GenerationRequest) -> Generator[list[Event], None, None]:
        """Events in lists of one or more; the last one is `Done` or `Failed`. Closing the generator cancels the request."""
        run = FailoverCall(request, self._failover)
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
            log_failover(request.request_id, error, wait_s)
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
                log_failover(method, error, wait_s)
            time.sleep(wait_s)

    def _broadcast(self, method: str, *args: Any) -> list[Any]:
        with mapped_errors():
            return list(self._unary.broadcast(method, *args).results())


def blocking_handle(deployment: str, app_name: str) -> DeploymentHandle[Any]:
    """A handle whose `remote(...).result()` works in any thread. Raises `RayServeException` when there is no such deployment."""
    handle: DeploymentHandle[Any] = serve.get_deployment_handle(deployment, app_name)
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle
