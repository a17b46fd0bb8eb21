"""Serve handles for plain code: threads without an event loop, in any process of the cluster.

A process that Ray starts, a job's driver too, inherits the switches of `launch.py`. With them a handle keeps its router on the event loop
that makes it, and refuses to be made where none runs. Here the router gets a loop and thread of its own, as without the switches.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle


def blocking_handle(deployment: str, app_name: str) -> DeploymentHandle[Any]:
    """A handle whose `remote(...).result()` works in any thread. Raises `RayServeException` when there is no such deployment."""
    handle: DeploymentHandle[Any] = serve.get_deployment_handle(deployment, app_name)
    if not handle.is_initialized:
        handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call]
    return handle
