"""Memory pressure, for real: another process eats the machine, an idle model gives its context
back, nobody else notices.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
from ray import serve

from deployments.config import ReleaseKind
from deployments.memory.messages import ReleaseReason, SchedulerStatus
from deployments.memory.sources import SystemMemory
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES, ModelShape
from tests.support.driver import driver
from tests.support.serve_process import ServeProcess

pytestmark = [pytest.mark.ray, pytest.mark.model]

GB = 1 << 30
WITHIN_S = 60.0
BIG = ModelShape("llama", 8, 256, 4, 4, 256, 4096)  # 8 kB of KV per token
BIG_KV_BYTES = 10 * 4096 * 8192  # of its context: 335 MB
PROMPT = [5 + i * 7 % 100 for i in range(700)]

# Touches as many bytes as each line of its input says, then answers.
BALLAST = """
import sys
held = []
for line in sys.stdin:
    held.append(b"\\x01" * int(line))
    print(flush=True)
"""


@dataclass
class Fixture:
    server: ServeProcess
    total_bytes: int

    def post(self, model: str, **body: Any) -> dict[str, Any]:
        answer = httpx.post(
            f"{self.server.url}/v1/completions", json={"model": model, "temperature": 0, **body}, timeout=60
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def used_bytes(self) -> int:
        return SystemMemory().read("here")[0].used_bytes


@pytest.fixture(scope="module")
def it(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fixture]:
    folder = tmp_path_factory.mktemp("pressure")
    write_random_model(folder / "big.gguf", BIG, vocab=None, file_type="F16", seed=1)
    write_random_model(folder / "brief.gguf", SHAPES["tiny-llama"], vocab=None, file_type="F16", seed=1)
    # so that the watermarks are above what the cluster needs
    total = SystemMemory().read("here")[0].used_bytes + 5 * GB
    small = {"n_threads": 1, "num_cpus": 0.1}
    args = {
        "models": [
            {"id": "big", "path": str(folder / "big.gguf"), "n_ctx": 4096, "n_parallel": 10, **small},
            {"id": "demo", "path": "demo", "n_ctx": 2048, "n_parallel": 2, "n_threads": 1, "num_cpus": 0.5},
            {
                "id": "sleepy",
                "path": "demo",
                "n_ctx": 512,
                "autoscaling": {"min_replicas": 0, "max_replicas": 1},
                **small,
            },
            {"id": "brief", "path": str(folder / "brief.gguf"), "n_ctx": 512, "keep_alive_s": 1.5, **small},
        ],
        "store": {"tiers": [{"url": str(folder / "kv")}]},
        "policy": {"min_tokens": 64, "cold_min_tokens": 64},
        "scheduler": {
            "interval_s": 0.5,
            "total_bytes": total,
            "min_bytes": 64 << 20,  # demo's context is smaller than that
            "sources": ["system"],
            "release_kinds": ["context"],
            "gc_s": 2,
        },
    }
    server = ServeProcess(folder, args)
    try:
        server.wait_ready("big", "demo")
        with driver():
            yield Fixture(server, total)
    finally:
        server.stop()


@pytest.fixture
def ballast() -> Iterator[Callable[[int], None]]:
    """Makes the machine hold so many bytes more, until the test ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", BALLAST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def hold(n_bytes: int) -> None:
        process.stdin.write(f"{max(0, n_bytes)}\n")
        process.stdin.flush()
        process.stdout.readline()

    try:
        yield hold
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(WITHIN_S)


class Stream(threading.Thread):
    """A long reply of `demo`, read as it comes."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self.started, self.may_end = threading.Event(), threading.Event()
        self.lines: list[str] = []
        self.replies = 0

    def run(self) -> None:
        body = {
            "model": "demo",
            "prompt": "Once upon a time",
            "max_tokens": 1500,
            "stream": True,
            "ignore_eos": True,
            "temperature": 0,
        }
        # one reply after the other, so that one runs whenever it matters
        while not (self.replies and self.may_end.is_set()):
            with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=WITHIN_S) as response:
                assert response.status_code == 200
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        self.lines.append(line)
                        self.started.set()
            assert '"length"' in self.lines[-2], self.lines[-2:]
            assert self.lines[-1] == "data: [DONE]"
            self.replies += 1


def process_of(deployment: str) -> psutil.Process:
    processes = psutil.process_iter(["cmdline"])
    (found,) = [p for p in processes if f"ServeReplica:erllama:{deployment}" in " ".join(p.info["cmdline"] or ())]
    return found


def scheduler_status() -> SchedulerStatus:
    return serve.get_deployment_handle("scheduler", "erllama").status.remote().result(timeout_s=10)


def until(holds: Callable[[SchedulerStatus], bool]) -> SchedulerStatus:
    """Poll the scheduler, another process, until something holds of it; its replica may be gone
    meanwhile.
    """
    deadline = time.monotonic() + WITHIN_S
    last: object = None
    while time.monotonic() < deadline:
        try:
            last = status = scheduler_status()
            if holds(status):
                return status
        except Exception as error:
            last = error
        time.sleep(0.1)
    raise AssertionError(last)


def test_an_idle_model_gives_its_context_back_while_another_streams_and_comes_back_warm(it, ballast):
    prompt = {"prompt": PROMPT, "max_tokens": 4, "ignore_eos": True}
    first = it.post("big", **prompt)
    replica = process_of("model-big")
    before = replica.memory_info().rss
    ballast(int(0.8 * it.total_bytes) - it.used_bytes())
    stream = Stream(it.server.url)
    stream.start()
    assert stream.started.wait(WITHIN_S)
    assert all(record.order.model_id != "big" for record in scheduler_status().last), "there is no pressure yet"

    ballast(int(0.9 * it.total_bytes) - it.used_bytes())
    status = until(lambda status: any(record.order.model_id == "big" for record in status.last))
    (record,) = (record for record in status.last if record.order.model_id == "big")
    assert (record.order.reason, record.order.kind, record.result.kept) == (
        ReleaseReason.PRESSURE,
        ReleaseKind.CONTEXT,
        "",
    )
    assert record.result.freed_bytes > 0.9 * BIG_KV_BYTES
    assert before - replica.memory_info().rss > 0.9 * BIG_KV_BYTES, "the bytes are back with the system"
    assert any(reading.share > 0.8 for reading in status.readings)
    assert {report.model_id for report in status.replicas} == {"big", "demo", "brief"}
    n_lines = len(stream.lines)

    again = it.post("big", **prompt)
    assert again["choices"][0]["text"] == first["choices"][0]["text"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= len(PROMPT) - 1
    stream.may_end.set()
    stream.join(WITHIN_S)
    assert stream.replies
    assert len(stream.lines) > n_lines, "it went on beyond the eviction"
    assert not any('"error"' in line for line in stream.lines)


def test_a_model_is_unloaded_when_it_has_been_idle_for_its_keep_alive(it):
    it.post("brief", prompt=PROMPT[:100], max_tokens=4)
    asked = time.time()
    status = until(lambda status: any(record.order.model_id == "brief" and record.at > asked for record in status.last))
    record = next(record for record in status.last if record.order.model_id == "brief" and record.at > asked)
    assert (record.order.reason, record.order.kind, record.result.kept) == (
        ReleaseReason.KEEP_ALIVE,
        ReleaseKind.WEIGHTS,
        "",
    )
    (unloaded,) = until(
        lambda status: not any(report.loaded for report in status.replicas if report.model_id == "brief")
    ).replicas[-1:]
    assert unloaded.model_id == "brief"
    assert it.post("brief", prompt=PROMPT[:100], max_tokens=4)["usage"]["prompt_tokens_details"]["cached_tokens"] >= 99


def test_requests_go_on_without_the_scheduler_and_it_comes_back(it):
    before = until(lambda status: status.ticked > 0)
    process = process_of("scheduler")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    for model in ("demo", "big", "brief"):
        it.post(model, prompt=PROMPT[:50], max_tokens=4)
    after = until(lambda status: status.started > before.started and len(status.replicas) == 3)
    assert after.errors.get("round", 0) == 0


def test_deltas_are_spread_and_the_garbage_is_collected_by_one_of_the_replicas(it):
    it.post("demo", prompt="The river runs through " * 40, max_tokens=4)
    status = until(lambda status: status.deltas > 0 and status.tiers_collected > 0)
    assert not {"round", "task", "apply_deltas", "collect_garbage", "release"} & set(status.errors), status.last_error


def test_a_model_that_is_scaled_to_zero_is_not_woken_and_not_missed(it):
    status = scheduler_status()
    assert "memory_report" not in status.errors, status.last_error
    assert not any(serve.status().applications["erllama"].deployments["model-sleepy"].replica_states.values())
