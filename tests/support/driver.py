"""This process as a driver of the cluster that runs on this machine, as a Ray job is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.serve import context


@contextmanager
def driver() -> Iterator[Any]:
    """What `ray.init` returns. One after the other in a process, on one cluster after the other."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    connected = ray.init(address="auto", namespace="serve", log_to_driver=False, include_dashboard=False)
    try:
        yield connected
    finally:
        ray.shutdown()
        # Serve's client remembers the controller; it forgets it for another job id, and the first
        # job of the next cluster has the same one.
        context._set_global_client(None)


@contextmanager
def serve_logs() -> Iterator[Path]:
    """This process as a driver of the cluster; where Serve's logs are."""
    with driver() as connected:
        yield Path(connected.address_info["session_dir"]) / "logs" / "serve"
