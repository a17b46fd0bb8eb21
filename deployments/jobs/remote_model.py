"""Blocking access to a model deployment from plain code: Ray jobs, tasks, threads.

    from deployments.jobs.remote_model import RemoteModel
    model = RemoteModel.connect("demo")
    print(model.complete("Once upon a time", response_tokens=16, temperature=0).text)

`RemoteModel` is `ModelClient` on an event loop of its own: each method runs the one of the same
name there and waits for it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.config import FailoverPolicy
from deployments.jobs.loop_thread import LoopThread
from deployments.model.client import APP_NAME, ModelClient

P = ParamSpec("P")
T = TypeVar("T")


def _waiting(
    method: Callable[Concatenate[ModelClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[RemoteModel, P], T]:
    @wraps(method)
    def call(self: RemoteModel, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._client, *args, **kwargs))

    return call


def _streaming(
    method: Callable[Concatenate[ModelClient, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[RemoteModel, P], Generator[T, None, None]]:
    @wraps(method)
    def call(self: RemoteModel, /, *args: P.args, **kwargs: P.kwargs) -> Generator[T, None, None]:
        return self._loop.stream(method(self._client, *args, **kwargs))

    return call


class RemoteModel:
    """Blocking client of one model. Any thread, but not on an event loop. Several may share one `loop`."""

    def __init__(self, client: ModelClient, *, loop: LoopThread | None = None) -> None:
        """The handles of `client` are `blocking_handle`'s; nobody else uses it."""
        self._loop = loop or LoopThread()
        self._shares_loop = loop is not None
        self._client = client

    @classmethod
    def connect(
        cls,
        model_id: str,
        app_name: str = APP_NAME,
        *,
        failover: FailoverPolicy | None = None,
        timeout_s: float | None = None,
    ) -> RemoteModel:
        """The client of a configured model of a running application, with the `timeout_s` of
        `ModelClient`; needs a driver or worker that is connected to the cluster."""
        return cls(
            ModelClient.connect(model_id, app_name, failover=failover, timeout_s=timeout_s, get_handle=blocking_handle)
        )

    def close(self) -> None:
        """End what runs, and the client's thread unless it is shared. Idempotent; a client that
        nobody refers to closes itself."""
        if not self._shares_loop:
            self._loop.close()

    def embed(self, tokens: Sequence[int]) -> list[float]:
        return self._loop.run(self._client.embed([list(tokens)]))[0]

    generate = _streaming(ModelClient.generate)
    infer = _streaming(ModelClient.infer)
    continue_ = _streaming(ModelClient.continue_)
    rank = _waiting(ModelClient.rank)
    complete = _waiting(ModelClient.complete)
    prefill_only = _waiting(ModelClient.prefill_only)
    end_session = _waiting(ModelClient.end_session)
    reset_session = _waiting(ModelClient.reset_session)
    cancel = _waiting(ModelClient.cancel)
    evict = _waiting(ModelClient.evict)
    store_stats = _waiting(ModelClient.store_stats)
    list_cached_prefixes = _waiting(ModelClient.list_cached_prefixes)
    tokenize = _waiting(ModelClient.tokenize)
    detokenize = _waiting(ModelClient.detokenize)
    apply_chat_template = _waiting(ModelClient.apply_chat_template)
    load_adapter = _waiting(ModelClient.load_adapter)
    unload_adapter = _waiting(ModelClient.unload_adapter)
    set_adapter_scale = _waiting(ModelClient.set_adapter_scale)
    list_adapters = _waiting(ModelClient.list_adapters)
    model_info = _waiting(ModelClient.model_info)
    status = _waiting(ModelClient.status)
    stats = _waiting(ModelClient.stats)


def blocking_handle(deployment: str, app_name: str, *, check: bool = True) -> DeploymentHandle[Any]:
    """A handle that works on any event loop. Raises `RayServeException` when there is no such
    deployment, if that is to be checked.

    With the launcher's switches, which a Ray job's driver inherits, a handle's router runs on the
    loop that first uses the handle, and Serve wants that loop to run as long as the process: else
    the router's long poll disables itself with an error. A client's loop ends with the client, so
    the router gets Serve's own background loop.
    """
    handle: DeploymentHandle[Any] = serve.get_deployment_handle(deployment, app_name, _check_exists=check)
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle
