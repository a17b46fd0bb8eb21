"""A real `serve run` in a process group of its own, started the way README says and stopped with
SIGINT, as Ctrl-C does.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[2]
START_S = 180.0
STOP_S = 90.0


def free_port() -> int:
    """A TCP port that nobody listens on right now, and that nobody gets by asking for any: it is
    bound only when Ray has started.
    """
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(21_000, 30_000)))  # Ray's own ranges end below and begin above
            return int(probe.getsockname()[1])


class ServeProcess:
    """`tuned`: through deployments.launch, with its switches; else plain `serve run` with Serve's
    defaults.
    """

    def __init__(self, folder: Path, args: dict[str, Any], *, tuned: bool = True) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "serve.log"
        self.config = config = folder / "serve.yaml"
        application = {"name": "erllama", "route_prefix": "/", "import_path": "deployments.app:build_app", "args": args}
        http = {"host": "127.0.0.1", "port": self.port}
        config.write_text(
            yaml.safe_dump({"proxy_location": "HeadOnly", "http_options": http, "applications": [application]})
        )
        run = (
            [sys.executable, "-m", "deployments.launch"]
            if tuned
            else [str(Path(sys.executable).with_name("serve")), "run"]
        )
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*run, str(config)],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_mind_sigint,
            )

    def wait_ready(self, *models: str, state: str = "ready") -> None:
        """Until each of `models` is in `state`; "unknown" is that of one scaled to zero.

        Raises with the log's end when the process dies or time is up.
        """
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                states: dict[str, str] | None = httpx.get(f"{self.url}/health/ready", timeout=10).json()["models"]
            except (httpx.HTTPError, ValueError, KeyError):
                states = None
            if states is not None and all(states.get(model) == state for model in models):
                return
            time.sleep(0.25)  # a poll of another process, not a wait for our own threads
        raise RuntimeError(f"serve is not ready; its log ends with:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """Ctrl-C, then whatever Ray left behind. Idempotent. It must have left in order."""
        family = [self.process, *_children(self.process.pid)]
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for process in family[1:]:
            if process.is_running():
                process.kill()
        assert self.process.returncode == 0, f"the log ends with:\n{self.log.read_text()[-4000:]}"


def _mind_sigint() -> None:
    """In the child: a shell that runs the tests in the background has SIGINT ignored, and children
    inherit that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def running(
    folder: Path, args: dict[str, Any], *models: str, state: str = "ready", tuned: bool = True
) -> Iterator[ServeProcess]:
    """The application of `args` in a process of its own, from when each of `models` is in `state`."""
    process = ServeProcess(folder, args, tuned=tuned)
    try:
        process.wait_ready(*models, state=state)
        yield process
    finally:
        process.stop()
