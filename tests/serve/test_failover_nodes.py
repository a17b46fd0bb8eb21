"""A whole node dies, with every process on it: the stream goes on from another node, of a configured
model, and of one of the hub, which is loaded there first. Three Ray nodes on this machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support.serve_process import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.model]


def test_a_killed_nodes_stream_goes_on_from_another_node(tmp_path):
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.two_nodes", str(tmp_path / "kv")],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=270)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert process.returncode == 0, (tmp_path / "log").read_text()[-4000:]
    seen, hub = [json.loads(line) for line in output.splitlines() if line.startswith("{")]  # beside Ray's own
    assert seen["same"], seen
    assert seen["resumed"] >= seen["killed_at"], seen
    assert seen["computed"] <= 64 + 256, seen
    assert hub["same"], hub
    assert hub["moved"], hub
    assert hub["killed_at"] < hub["n_tokens"] == 5000, hub
