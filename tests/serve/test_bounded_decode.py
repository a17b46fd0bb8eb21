"""A decode that takes too long is aborted within its budget, through HTTP: the replica recovers in
place, or is replaced when it cannot.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES
from tests.support.serve_process import ServeProcess, running
from tests.support.streams import replica_pids, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]

BUDGET_S = 0.4
LONG = [3 + i * 7 % 200 for i in range(4000)]  # in one slice, some seconds of one core
SHORT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("bounded")
    shape = replace(SHAPES["tiny-llama"], n_embd=512, n_layer=8, n_head=8, n_head_kv=8, n_ff=2048, n_ctx=8192)
    write_random_model(folder / "slow.gguf", shape, file_type="Q8_0", seed=2)
    model = {
        "id": "slow", "path": str(folder / "slow.gguf"), "n_ctx": 4352, "n_parallel": 2, "n_batch": 4096, "prefill_slice": 4096,
        "n_threads": 1, "num_cpus": 0.5, "decode_budget_s": BUDGET_S,
    }  # fmt: skip
    with running(folder, {"models": [model], "store": {"tiers": [{"url": str(folder / "kv")}]}}, "slow") as process:
        yield process


def ask(server: ServeProcess, prompt: list[int], **more: Any) -> httpx.Response:
    body = {"model": "slow", "prompt": prompt, "max_tokens": 8, "temperature": 0, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)


def test_a_decode_beyond_its_budget_is_aborted_and_the_same_replica_answers_the_next_request(server):
    expected = ask(server, SHORT).json()["choices"][0]["text"]
    pids = replica_pids("model-slow")
    started = time.monotonic()
    refused = ask(server, LONG)
    seconds = time.monotonic() - started
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "decode_aborted")
    assert "retry-after" in refused.headers
    assert seconds < 20 * BUDGET_S  # tried twice, each cut off within its budget
    assert ask(server, SHORT).json()["choices"][0]["text"] == expected
    assert replica_pids("model-slow") == pids


def test_a_stream_gets_the_error_as_an_event_of_its_dialect_or_as_a_status(server):
    refused = ask(server, LONG, stream=True)
    assert refused.status_code == 503 or '"error"' in refused.text


def test_a_replica_whose_decodes_only_hang_is_replaced(server):
    assert ask(server, SHORT).status_code == 200
    before = replica_pids("model-slow")
    for _ in range(2):  # each is tried twice: four aborts with no completed decode between them
        ask(server, LONG)
    wait_until(lambda: set(replica_pids("model-slow")).isdisjoint(before), "the replica is gone")
    server.wait_ready("slow")
    assert ask(server, SHORT).status_code == 200
