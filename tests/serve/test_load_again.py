"""Models that ran and cannot be loaded again, because their file has gone: they stay failed with the
reason, who still runs goes on, and a change of the model's own settings begins anew.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray import serve

from deployments.app import build_app
from deployments.model.load_limit import MAX_LOADS
from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.bounds import MOVES_S
from tests.support.driver import serve_logs
from tests.support.serve_process import ServeProcess, running
from tests.support.streams import replica_pids, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_random_model(folder / "spare.gguf", SHAPES["tiny-llama"], vocab=None, file_type="F16", seed=1)
    for name in ("one", "two"):
        shutil.copy(folder / "spare.gguf", folder / f"{name}.gguf")
    return folder


@pytest.fixture(scope="module")
def args(folder: Path) -> dict[str, Any]:
    small = {"n_ctx": 256, "n_threads": 1, "num_cpus": 0.1, "drain_s": 0.2}
    return {
        "models": [{"id": name, "path": str(folder / f"{name}.gguf"), "num_replicas": n, **small}
                   for name, n in (("one", 1), ("two", 2))],
        "store": {"tiers": []},
    }  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, args: dict[str, Any]) -> Iterator[ServeProcess]:
    with running(tmp_path_factory.mktemp("load-again"), args, "one", "two") as process:
        yield process


@pytest.fixture(scope="module")
def logs(server: ServeProcess) -> Iterator[Path]:
    with serve_logs() as folder:
        yield folder


def complete(server: ServeProcess, model: str) -> httpx.Response:
    asked = {"model": model, "prompt": [5, 6, 7], "max_tokens": 2}
    return httpx.post(f"{server.url}/v1/completions", json=asked, timeout=MOVES_S)


def n_started(logs: Path, model: str) -> int:
    return len(list(logs.glob(f"replica_erllama_model-{model}_*.log")))


def stays_failed(logs: Path, model: str) -> bool:
    files = logs.glob(f"replica_erllama_model-{model}_*.log")
    return any("is not tried again" in file.read_text(errors="replace") for file in files)


def test_the_last_replica_of_a_model_whose_file_has_gone(server, logs, folder):
    (folder / "one.gguf").unlink()
    os.kill(replica_pids("model-one")[0], signal.SIGKILL)
    wait_until(lambda: stays_failed(logs, "one"), "it is given up")
    assert n_started(logs, "one") == 1 + MAX_LOADS + 1, "once well, three failures, and the one that waits"
    for path, more in (("/v1/completions", {"prompt": [5, 6]}), ("/v1/embeddings", {"input": [5, 6]})):
        reply = httpx.post(f"{server.url}{path}", json={"model": "one", **more}, timeout=MOVES_S)
        assert reply.status_code == 503
        assert "one.gguf: there is no such file" in reply.json()["error"]["message"]
    health = httpx.get(f"{server.url}/health/ready").json()
    assert health["models"] == {"one": "not_ready", "two": "ready"}
    assert health["reasons"]["one"].endswith("one.gguf: there is no such file")
    wait_until(lambda: "one: failed: " in server.log.read_text(), "the console tells")


def test_a_replica_that_is_left_goes_on_alone(server, logs, folder):
    (folder / "two.gguf").unlink()
    killed, left = replica_pids("model-two")
    os.kill(killed, signal.SIGKILL)
    while not stays_failed(logs, "two"):
        assert complete(server, "two").status_code == 200
    assert n_started(logs, "two") == 2 + MAX_LOADS + 1
    assert n_started(logs, "one") == 1 + MAX_LOADS + 1, "nothing more was tried"
    assert left in replica_pids("model-two")
    assert complete(server, "two").status_code == 200
    assert httpx.get(f"{server.url}/health/ready").json()["models"]["two"] == "ready"
    wait_until(lambda: "two: ready, but not all of it: " in server.log.read_text(), "the console tells")


def test_a_model_whose_own_settings_change_begins_anew(server, logs, folder, args):
    for name in ("one", "two"):
        shutil.copy(folder / "spare.gguf", folder / f"{name}.gguf")
    changed = {**args, "models": [{**model, "drain_s": 0.3} for model in args["models"]]}
    serve.run(build_app(changed), name="erllama", route_prefix="/")
    for name in ("one", "two"):
        assert complete(server, name).status_code == 200
