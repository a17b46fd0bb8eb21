"""The same code under Serve's defaults: Python proxy, by-reference handles, user code on a loop and
thread of its own.
"""

from __future__ import annotations

import time

import httpx
import pytest
from openai import OpenAI

from tests.support.serve_process import running

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = {"id": "demo", "path": "demo", "n_ctx": 16384, "n_parallel": 1, "max_queue": 0, "n_threads": 1, "num_cpus": 0.5}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(
        tmp_path_factory.mktemp("default-mode"), {"models": [MODEL], "store": {"tiers": []}}, "demo", tuned=False
    ) as process:
        yield process


def test_chat_stream_errors_and_cancel_work_under_serves_defaults(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        messages = [{"role": "user", "content": "Hello!"}]
        whole = (
            client.chat.completions.create(model="demo", messages=messages, temperature=0).choices[0].message.content
        )
        chunks = client.chat.completions.create(model="demo", messages=messages, temperature=0, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole

    body = {"model": "demo", "prompt": "Once upon a time", "stream": True, "ignore_eos": True, "max_tokens": 16000}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as reply:
        lines = reply.iter_lines()  # kept: when httpx's iterator is dropped it closes the response
        next(lines)
        # its one sequence is taken
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).status_code == 429
    deadline = time.monotonic() + 20
    while httpx.post(f"{server.url}/v1/completions", json={**body, "max_tokens": 1}, timeout=30).status_code != 200:
        assert time.monotonic() < deadline, "the sequence of the client that left is not free"
        time.sleep(0.02)
