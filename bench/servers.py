"""Starting, watching and stopping the servers that a benchmark drives: ours on Ray Serve, and
llama.cpp's `llama-server`.

A server is a context manager: it is ready inside the block and gone, with every process it started,
behind it. Only one Ray cluster may run on a machine at a time, because Serve's ports are fixed;
starting ours beside another one is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import fsspec
import psutil
import ray
import yaml
from harness import say
from stream_client import HOST, encode_request, fetch

from deployments.launch import IMPORT_PATH, environment

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
_GET_READY = {"ours": "/health/ready", "peer": "/health", "s3": "/moto-api/"}


class ServerFailed(RuntimeError):
    """The server did not come up, or did not go away; the message ends with its last lines of
    output.
    """


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """What one process has used so far: CPU seconds (user + system), resident and proportional
    bytes.
    """

    name: str
    cpu_s: float
    rss: int
    pss: int


class Server:
    """A server process with its descendants. Subclasses say what to run."""

    kind: str

    def __init__(self, command: list[str], env: Mapping[str, str], port: int, ready_s: float = 180.0) -> None:
        self.port = port
        self._command = command
        self._env = dict(env)
        self._ready_s = ready_s
        self._log = tempfile.NamedTemporaryFile(mode="w+", prefix=f"bench-{self.kind}-", suffix=".log", delete=False)  # noqa: SIM115
        self._process: subprocess.Popen[str] | None = None
        self._seen: dict[int, psutil.Process] = {}

    def __enter__(self) -> Self:
        say(f"start {self.kind} on port {self.port}; log {self._log.name}")
        # A session of its own, so that Ctrl-C at the benchmark reaches the server once, from
        # `stop`. A shell starts background jobs with SIGINT ignored, which a child would inherit
        # and so never end.
        self._process = subprocess.Popen(
            self._command, env=self._env, cwd=ROOT, stdout=self._log, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=_default_sigint,
        )  # fmt: skip
        try:
            self._wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def processes(self) -> list[psutil.Process]:
        """The server's process and every descendant, also one whose parent has gone since it was
        first seen.
        """
        assert self._process is not None
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            for process in [root, *root.children(recursive=True)]:
                self._seen.setdefault(process.pid, process)
        return [process for process in self._seen.values() if _alive(process)]

    def usage(self, *, with_pss: bool = False) -> list[ProcessUse]:
        """One entry per process. PSS walks the page tables, so it is read only when asked for."""
        rows = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times, memory = process.cpu_times(), process.memory_info()
                pss = int(process.memory_full_info().pss) if with_pss else 0
                rows.append(ProcessUse(" ".join(process.cmdline())[:200], times.user + times.system, memory.rss, pss))
        return rows

    def cpu_s(self) -> float:
        """CPU seconds of the whole tree so far."""
        return sum(row.cpu_s for row in self.usage())

    def stop(self, timeout_s: float = 90.0) -> None:
        """SIGINT, then wait until no process of it is left. Raises `ServerFailed` naming those that
        had to be killed.
        """
        if self._process is None:
            return
        self.processes()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and (
            self._process.poll() is None or any(_alive(p) for p in self._seen.values())
        ):
            time.sleep(0.1)
        left = [process for process in self._seen.values() if _alive(process)]
        names = [f"{process.pid} {process.name()}" for process in left]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)
        self._process.wait(10)
        self._process = None
        self._log.close()
        if names:
            raise ServerFailed(f"{self.kind} left {', '.join(names)} behind; killed. {self._tail()}")
        if sys.exception() is None:  # else the log is evidence
            os.unlink(self._log.name)
        say(f"{self.kind} is gone")

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._ready_s
        data = encode_request("GET", _GET_READY[self.kind])
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerFailed(f"{self.kind} ended with code {self._process.returncode}. {self._tail()}")
            with contextlib.suppress(OSError, ValueError):
                if asyncio.run(fetch(self.port, data)).status == 200:
                    return
            time.sleep(0.25)
        raise ServerFailed(f"{self.kind} is not ready after {self._ready_s:.0f} s. {self._tail()}")

    def _tail(self) -> str:
        lines = [
            line for line in Path(self._log.name).read_text(errors="replace").splitlines() if "/health" not in line
        ]
        return f"Last lines of {self._log.name}:\n" + "\n".join(lines[-20:])


def _default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Peer(Server):
    """`llama-server` on one GGUF, with everything off that we have no equivalent of running: web
    page, context shift.

    Without `slot_dir` its prompt cache is off, too. With it slots reuse what they hold, and can be
    saved to files of that directory.
    """

    kind = "peer"

    def __init__(
        self,
        binary: str,
        model: str,
        *,
        threads: int,
        slots: int,
        n_ctx: int,
        port: int,
        slot_dir: str | None = None,
        kv: str = "f16",
        more: Sequence[str] = (),
    ) -> None:
        flags = {
            "-m": model, "--host": HOST, "--port": str(port), "-t": str(threads), "-tb": str(threads), "-np": str(slots),
            "-c": str(n_ctx * slots), "-fa": "on", "-ctk": kv, "-ctv": kv, "-ngl": "0", "-fit": "off", "-cram": "0",
        }  # fmt: skip
        switches = ["-no-kvu", "--no-context-shift", "--no-ui", "--offline", "--log-disable"]
        cache = ["--no-cache-prompt"] if slot_dir is None else ["--slot-save-path", slot_dir]
        super().__init__(
            [binary, *(part for pair in flags.items() for part in pair), *switches, *cache, *more], os.environ, port
        )

    def slot(self, action: str, filename: str, slot: int = 0) -> dict[str, Any]:
        """`save` or `restore` a slot. Raises `ServerFailed` with what the server says."""
        reply = asyncio.run(
            fetch(self.port, encode_request("POST", f"/slots/{slot}?action={action}", {"filename": filename}))
        )
        if reply.status != 200:
            raise ServerFailed(f"slot {action} of {filename}: HTTP {reply.status} {reply.body[:300]!r}")
        answer: dict[str, Any] = json.loads(reply.body)
        return answer


class S3Server(Server):
    """moto's S3 on this machine, in memory, with one bucket. What it stores is gone when it
    stops.
    """

    kind = "s3"
    BUCKET = "bench-kv"

    def __init__(self, *, port: int) -> None:
        super().__init__([sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)], os.environ, port)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            fsspec.filesystem("s3", skip_instance_cache=True, **self.storage_options()).mkdir(self.BUCKET)
        except BaseException:
            self.stop()
            raise
        return self

    def storage_options(self) -> dict[str, Any]:
        return {"endpoint_url": f"http://{HOST}:{self.port}", "key": "bench", "secret": "bench"}

    def tier(self) -> dict[str, Any]:
        """One entry of the config's `store.tiers`."""
        return {"url": f"s3://{self.BUCKET}/kv", "storage_options": self.storage_options()}


class Ours(Server):
    """Our application under `serve run`, from a config written for the occasion.

    `tuned` starts with the switches of `deployments.launch`, else with Ray's defaults.
    `import_path` other than ours may come from bench/. Without a `store` in `args` there is none: a
    benchmark must not fill, or profit from, the cache directory of whoever runs it.
    """

    kind = "ours"

    def __init__(
        self, args: Mapping[str, Any], *, port: int, tuned: bool = True, import_path: str = IMPORT_PATH
    ) -> None:
        alive = [p for p in psutil.process_iter(["name", "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE]
        running = [p.pid for p in alive if p.info["name"] == "raylet"]
        if running:
            raise ServerFailed(f"a Ray cluster runs already on this machine (raylet {running[0]}); stop it first")
        if import_path == IMPORT_PATH:
            args = {"store": {"tiers": []}, **args}
        application = {"name": "erllama", "route_prefix": "/", "import_path": import_path, "args": dict(args)}
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": HOST, "port": port},
            "applications": [application],
        }
        self._directory = tempfile.TemporaryDirectory(prefix="bench-ours-")
        path = Path(self._directory.name, "serve.yaml")
        path.write_text(yaml.safe_dump(config))
        base = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "bench"), str(ROOT)])}
        untuned = {**base, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # neither changes speed
        command = [str(Path(sys.executable).with_name("serve")), "run", str(path)]
        if tuned and import_path == IMPORT_PATH:  # the launcher refuses other import paths, and always tunes
            command = [sys.executable, "-m", "deployments.launch", str(path)]
        super().__init__(command, environment(base) if tuned else untuned, port)

    def ray_address(self) -> str:
        """Where to connect with `ray.init`. "auto" may find another cluster of this machine."""
        flag = "--gcs-address="
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                for part in process.cmdline():
                    if part.startswith(flag):
                        return part.removeprefix(flag)
        raise ServerFailed(f"no process of {self.kind} names the cluster's address")

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """This process as a driver of the server's cluster, as a Ray job is: `RemoteModel.connect`
        works inside.

        Once per process, because Serve's client remembers actors of the first cluster: see
        `in_new_process`.
        """
        os.environ["RAY_AUTH_MODE"] = "disabled"
        ray.init(address=self.ray_address(), namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
        try:
            yield
        finally:
            ray.shutdown()

    def stop(self, timeout_s: float = 90.0) -> None:
        super().stop(timeout_s)
        self._directory.cleanup()


def in_new_process(function: Callable[..., T], *args: Any) -> T:
    """Call `function` in a process of its own. What it raises is raised here; Ctrl-C lets it stop
    its servers.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def component(name: str) -> str:
    """Which part of our server a process (its command line) is: proxy, ingress, replica, or the
    rest of Ray.
    """
    if "ray::ServeReplica:erllama:ingress" in name:
        return "ingress"
    if "ray::ServeReplica:erllama:model-" in name:
        return "replica"
    if "haproxy" in name.lower() or "ray::ProxyActor" in name:
        return "proxy"
    return "ray"


@contextlib.contextmanager
def cpu_of(server: Server, group: Callable[[str], str] = lambda name: "all") -> Iterator[dict[str, float]]:
    """CPU seconds that the server used inside the block, by group of process; the dict is filled
    when the block ends.
    """
    before = _by_group(server.usage(), group)
    used: dict[str, float] = {}
    yield used
    after = _by_group(server.usage(), group)
    used.update({name: seconds - before.get(name, 0.0) for name, seconds in after.items()})


def _by_group(rows: list[ProcessUse], group: Callable[[str], str]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for row in rows:
        totals[group(row.name)] = totals.get(group(row.name), 0.0) + row.cpu_s
    return totals
