"""Ctrl-C and SIGTERM, while clients wait for replies.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.bounds import STREAMS_END_S
from tests.support.serve_process import ServeProcess
from tests.support.streams import TextStream

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = {"id": "demo", "path": "demo", "n_ctx": 8192, "n_threads": 1, "num_cpus": 0.5, "drain_s": 0.5}
LONG = {"model": "demo", "prompt": "Never to end", "max_tokens": 8000, "ignore_eos": True, "temperature": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_waits_is_told_and_the_server_leaves_in_order(tmp_path, number):
    server = ServeProcess(tmp_path, {"models": [MODEL], "store": {"tiers": []}})
    try:
        server.wait_ready("demo")
        with ThreadPoolExecutor(1) as pool:
            streams = [TextStream(server.url, LONG) for _ in range(2)]
            whole = pool.submit(httpx.post, f"{server.url}/v1/completions", json=LONG, timeout=90)
            for stream in streams:
                stream.wait_chars(1)
            server.process.send_signal(number)
            for stream in streams:
                stream.finish(STREAMS_END_S)
                assert stream.broken is None
                assert stream.error is not None
                assert stream.error["code"] == "engine_stopped"
            assert (whole.result().status_code, whole.result().json()["error"]["code"]) == (503, "engine_stopped")
        assert server.process.wait(STREAMS_END_S) == 0
    finally:
        server.stop()
    assert "Traceback" not in server.log.read_text()
