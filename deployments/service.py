"""Ray (or the cluster that `ray.init` finds) and Serve with the applications of a checked config:
started, watched, and stopped in order. `run.py` is the process around it.

`serve run` does the same but for the stop: it shuts Serve down at once, which kills the HTTP
proxies first and breaks every stream, and a SIGTERM ends it with a traceback. Here both signals
mean: admit nothing more, let streams end for `drain_s`, tell the rest with an error event, save
what the contexts hold, and only then take the processes away. A second signal cuts the waiting
short, not the saves.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import ray
import yaml
from ray import serve
from ray.serve._private import api as serve_api  # what `serve run` uses: no public call deploys a whole config file
from ray.serve.config import gRPCOptions
from ray.serve.schema import ServeDeploySchema

from deployments.config import BuildArgs, deployment_name
from deployments.console import Progress
from deployments.hub.launcher import hub_models
from deployments.launch import IMPORT_PATH, load_args
from deployments.model.ray_errors import ModelUnavailable, mapped_errors
from deployments.stop_signals import StopSignals

log = logging.getLogger("ray.serve")  # which Ray shows on the console

_TOLD_S = 10.0  # for error events to reach clients, beyond `drain_s`
_SAVED_S = 15.0  # for a replica to end, beyond the bound of its saves
_SHUTDOWN_S = 30.0  # for Serve on a cluster that stays; its replicas are idle by then
_OWN_SHUTDOWN_S = 1.0  # on one that goes with us: time to end HAProxy, which would outlive Ray
_POLL_S = 0.1
_WATCH_S = 1.0
_VITAL = frozenset({"raylet", "gcs_server"})  # of Ray's processes: nothing is answered without them


class Service:
    """Serve with the applications of one config. Main thread. Made with Ray, so that there is
    something to stop.
    """

    def __init__(self, path: Path) -> None:
        self._config = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
        names = [app.name for app in self._config.applications if app.import_path == IMPORT_PATH]
        self._apps: Mapping[str, BuildArgs] = dict(zip(names, load_args(path), strict=True))
        self._client: Any = None
        ray.init(namespace="serve")

    def start(self) -> None:
        """Returns when the applications are on their way, not when they are ready."""
        self._client = serve_api.serve_start(
            http_options=self._config.http_options.model_dump(),
            proxy_location=self._config.proxy_location,
            grpc_options=gRPCOptions(**self._config.grpc_options.model_dump()),
            controller_options=self._config.controller_options,
        )
        self._client.deploy_apps(self._config, _blocking=False)

    def watch(self, signals: StopSignals) -> None:
        """Tell the console how the models are, until a signal comes."""
        models = [(app, deployment_name(spec.id), spec.id) for app, args in self._apps.items() for spec in args.models]
        progress = Progress(models, self._url(), apps=list(self._apps))
        while not signals.stop.wait(_WATCH_S):
            for line in progress.lines(serve.status().applications):
                log.info(line)

    def _url(self) -> str:
        http = self._config.http_options
        prefix = next(app.route_prefix for app in self._config.applications if app.name in self._apps) or ""
        return f"http://{http.host}:{http.port}{prefix.rstrip('/')}/v1"

    def stop(self, signals: StopSignals) -> None:
        """Every step has a bound, and a step that fails does not keep the next one from being
        tried.
        """
        try:
            if self._client is not None:
                asyncio.run(self._leave(signals))
        except Exception:  # the processes go all the same
            log.warning("Serve did not stop in order", exc_info=True)
        _end_ray()

    async def _leave(self, signals: StopSignals) -> None:
        """Until it is done, or Ray's processes are gone: who sends SIGTERM to all of them at once,
        as systemd does by default, leaves nobody to ask.
        """
        leaving = asyncio.create_task(self._drain_and_shut_down(signals))
        while not leaving.done() and _ray_lives():
            await asyncio.wait([leaving], timeout=_POLL_S)
        if not leaving.done():
            _quit_without_ray()
        await leaving

    async def _drain_and_shut_down(self, signals: StopSignals) -> None:
        await self._drain(signals)
        # on the loop that the handles of `_drain` belong to; what it has not ended by then ends with Ray
        shutdown = asyncio.create_task(self._client.shutdown_async())
        await asyncio.wait([shutdown], timeout=_SHUTDOWN_S if _own_node() is None else _OWN_SHUTDOWN_S)
        if shutdown.done():
            await shutdown

    async def _drain(self, signals: StopSignals) -> None:
        drain_s = max(args.drain_s for args in self._apps.values())
        fronts = [(app, "ingress") for app in self._apps]
        streams = asyncio.create_task(_all_leave(fronts, drain_s, _TOLD_S))
        while not streams.done() and not signals.hurry.is_set():
            await asyncio.wait([streams], timeout=_POLL_S)
        if not streams.done():
            await _all_leave(fronts, 0.0, _TOLD_S)
        await streams
        # what still runs now belongs to jobs, which have had the same time
        models = [(app, deployment_name(spec.id)) for app, args in self._apps.items() for spec in args.models]
        models += await asyncio.to_thread(lambda: [model for app in self._apps for model in hub_models(app)])
        save_s = max(args.policy.evict_save_timeout_s for args in self._apps.values())
        await _all_leave(models, 0.0, save_s + _SAVED_S)


async def _all_leave(deployments: Sequence[tuple[str, str]], seconds: float, margin_s: float) -> None:
    """Tell every replica that it has `seconds`, and wait until each has done what it must before it
    goes.
    """
    told = [_leave(app, name, seconds, margin_s) for app, name in deployments]
    for (_, name), error in zip(deployments, await asyncio.gather(*told, return_exceptions=True), strict=True):
        # none runs: asleep, never loaded, or (KeyError) not even deployed yet
        if error is not None and not isinstance(error, ModelUnavailable | KeyError):
            log.warning("%s did not take leave in order: %r", name, error)


async def _leave(app: str, deployment: str, seconds: float, margin_s: float) -> None:
    with mapped_errors():
        handle: Any = serve.get_deployment_handle(deployment, app)
        await handle.broadcast("leave", seconds).results_async(timeout_s=seconds + margin_s)


def _own_node() -> Any | None:
    """Ray's processes, if `ray.init` has started them here; None when it has joined a cluster."""
    node: Any = ray._private.worker._global_node  # private, and without a public counterpart
    return node if node is not None and node.is_head() else None


def _ray_lives() -> bool:
    """Whether there is a cluster that answers; True of one that others keep."""
    node = _own_node()
    return node is None or _VITAL.isdisjoint(kind for kind, _ in node.dead_processes())


def _end_ray() -> None:
    """`ray.shutdown`, unless that would wait a minute for a cluster that has gone."""
    if not _ray_lives():
        _quit_without_ray()
    ray.shutdown()


def _quit_without_ray() -> NoReturn:
    """Every call to a cluster that has gone waits, those of the interpreter's exit included."""
    log.warning("Ray has ended before us: what ran was broken off, and saved as far as the replicas had time.")
    node = _own_node()
    if node is not None:
        node.kill_all_processes(check_alive=False, allow_graceful=False)
    os._exit(0)
