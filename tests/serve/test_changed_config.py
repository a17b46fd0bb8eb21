"""A changed config restarts what it changes: one model of several, an added one, and no other; a stream
of one that stays goes on. The models share the node's CPUs, as they do where nothing is configured.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.serve_process import ServeProcess, running
from tests.support.streams import TextStream, replica_pids, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]


def model(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": name, "path": "demo", "n_ctx": 16384, "n_parallel": 1, "drain_s": 1.0, **changes,
    }  # fmt: skip


def deploy(server: ServeProcess, folder: Path, models: list[dict[str, Any]], tiers: list[dict[str, Any]]) -> None:
    """As `serve deploy` does it, through Ray's dashboard."""
    document = yaml.safe_load(server.config.read_text())
    document["applications"][0]["args"] = {"models": models, "store": {"tiers": tiers}}
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(document))
    command = [str(Path(sys.executable).with_name("serve")), "deploy", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def answers(server: ServeProcess, name: str) -> bool:
    body = {"model": name, "prompt": "The sun", "max_tokens": 4}
    try:
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_changed_or_added_model_restarts_itself_alone(tmp_path: Path):
    tiers = [{"url": str(tmp_path / "kv"), "max_bytes": "1GiB"}]
    first = [model("stays"), model("changes")]
    with running(tmp_path, {"models": first, "store": {"tiers": tiers}}, "stays", "changes") as server:
        stays, changes = replica_pids("model-stays"), replica_pids("model-changes")
        asked = {"model": "stays", "prompt": "Once upon a time", "max_tokens": 6000, "ignore_eos": True, "seed": 1}
        stream = TextStream(server.url, asked)
        stream.wait_chars(1)
        deploy(server, tmp_path, [model("stays"), model("changes", n_ctx=8192), model("comes")], tiers)
        wait_until(lambda: answers(server, "comes"), "the added model")
        wait_until(lambda: replica_pids("model-changes") not in ([], changes), "the changed model")
        wait_until(lambda: answers(server, "changes"), "the changed model answers")
        assert replica_pids("model-stays") == stays
        text = stream.finish()
        assert (stream.error, stream.broken) == (None, None)
        comes = replica_pids("model-comes")
        deploy(server, tmp_path, [model("stays", aliases=["other"]), model("comes")], tiers)
        wait_until(lambda: not replica_pids("model-changes"), "the model that is gone")
        wait_until(lambda: answers(server, "other"), "the new alias")
        assert (replica_pids("model-stays"), replica_pids("model-comes")) == (stays, comes)
        again = TextStream(server.url, asked)
        assert again.finish() == text
