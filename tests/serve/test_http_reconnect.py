"""Clients that lose their connection and come back, possibly to another front: the stream goes on
behind the last event that they saw, byte for byte.

KV in q8_0: what is computed again is then the same bit for bit. The file comes before the tests that
share one long-lived server.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from deployments.config import FailoverPolicy
from deployments.jobs.remote_model import RemoteModel
from erllama.errors import EngineStopped
from tests.support.bounds import MOVES_S
from tests.support.driver import driver
from tests.support.serve_process import ServeProcess, running
from tests.support.streams import WAIT_S, busiest, replica_pids, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]

REPLICAS, INGRESS = "model-demo", "ingress"
N = 3000  # tokens: a second or more, long enough to be cut in the middle
MODEL = {
    "id": "demo", "path": "demo", "n_ctx": 8192, "n_parallel": 4, "n_threads": 1, "num_cpus": 0.5, "num_replicas": 2,
    "type_k": "q8_0", "type_v": "q8_0", "drain_s": 0.2,
    "stream_interval_ms": 0,  # each token leaves at once: the front that streams is the busy one
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    args = {"models": [MODEL], "store": {"tiers": []}, "http": {"ingress_replicas": 2}}
    with running(tmp_path_factory.mktemp("reconnect"), args, "demo") as process:
        yield process


@pytest.fixture(scope="module")
def connected(server: ServeProcess) -> Iterator[None]:
    """This process is a driver of the cluster."""
    with driver():
        yield


@pytest.fixture(autouse=True)
def all_run(connected: None) -> None:
    def answer() -> bool:
        try:
            return len(RemoteModel.connect("demo", failover=FailoverPolicy(max_attempts=1)).status()) == 2
        except EngineStopped:  # one was killed a moment ago
            return False

    wait_until(lambda: len(replica_pids(INGRESS)) == 2 and len(replica_pids(REPLICAS)) == 2 and answer(), "all run")


class Stream:
    """A stream that is read in a thread, byte for byte."""

    def __init__(self, server: ServeProcess, content: str, last: str | None = None) -> None:
        self.data = b""
        self.status = 0
        self._headers = {} if last is None else {"Last-Event-ID": last}
        self._url, self._content = f"{server.url}/v1/completions", content
        self._leaves = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with httpx.stream("POST", self._url, content=self._content, headers=self._headers, timeout=WAIT_S) as reply:
                self.status = reply.status_code
                for chunk in reply.iter_raw():
                    with self._change:
                        self.data += chunk
                        self._change.notify_all()
                    if self._leaves:
                        return
        except httpx.HTTPError:
            pass  # the front was killed
        finally:
            with self._change:
                self._change.notify_all()

    @property
    def n_events(self) -> int:
        return self.data.count(b"\n\n")

    def wait_events(self, n: int) -> None:
        with self._change:
            assert self._change.wait_for(lambda: self.n_events >= n or not self._thread.is_alive(), WAIT_S)
        assert self._thread.is_alive(), "it ended before it was cut"

    def leave(self) -> bytes:
        """Close the connection; the events that came whole."""
        self._leaves = True
        return self.whole()

    def whole(self) -> bytes:
        """The events, once no more come."""
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the stream hangs"
        return self.data[: self.data.rfind(b"\n\n") + 2]


def asked(prompt: str, **more: Any) -> str:
    body = {"model": "demo", "prompt": prompt, "max_tokens": N, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    return json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}, **more})


def last_id(data: bytes) -> str:
    return str(re.findall(rb"^id: (\S+)$", data, re.MULTILINE)[-1].decode())


def text_of(data: bytes) -> str:
    chunks = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]
    assert chunks[-1]["usage"]["completion_tokens"] == N
    return "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])


def check(server: ServeProcess, content: str, seen: bytes, rest: bytes) -> None:
    """What a client put together is the stream as it is kept, and the text as it would have been."""
    again = Stream(server, content, last_id(seen).rpartition(".")[0] + ".0").whole()
    assert seen + rest == again
    plain = httpx.post(
        f"{server.url}/v1/completions",
        json={**json.loads(content), "stream": False, "stream_options": None},
        timeout=WAIT_S,
    )
    assert text_of(seen + rest) == plain.json()["choices"][0]["text"]


def kill_the_front_that_streams() -> None:
    os.kill(busiest(replica_pids(INGRESS)), signal.SIGKILL)


def test_a_client_whose_front_was_killed_goes_on_at_the_other_one(server):
    content = asked("Once upon a time")
    stream = Stream(server, content)
    stream.wait_events(200)
    kill_the_front_that_streams()
    seen = stream.whole()
    assert b"[DONE]" not in seen, "killed too late to matter"
    again = Stream(server, content, last_id(seen))
    rest = again.whole()
    assert again.status == 200
    check(server, content, seen, rest)


def test_a_client_that_left_goes_on_and_its_tokens_are_not_computed_again(server):
    content = asked("The rain had stopped")
    stream = Stream(server, content)
    stream.wait_events(200)
    seen = stream.leave()
    model = RemoteModel.connect("demo")
    wait_until(lambda: not any(stats.n_generating for stats in model.stats()), "its request is cancelled")
    rest = Stream(server, content, last_id(seen)).whole()
    check(server, content, seen, rest)


def test_one_that_failed_over_before_its_front_was_killed_goes_on_as_well(server):
    content = asked("Two of them died")
    stream = Stream(server, content)
    stream.wait_events(200)
    os.kill(busiest(replica_pids(REPLICAS)), signal.SIGKILL)
    stream.wait_events(stream.n_events + 200)
    kill_the_front_that_streams()
    seen = stream.whole()
    assert b"[DONE]" not in seen, "killed too late to matter"
    rest = Stream(server, content, last_id(seen)).whole()
    check(server, content, seen, rest)


def test_a_replica_that_stands_still_does_not_keep_a_client_from_what_another_one_has(server):
    content = asked("All is quiet")
    stream = Stream(server, content)
    stream.wait_events(200)
    working = busiest(replica_pids(REPLICAS))
    (other,) = set(replica_pids(REPLICAS)) - {working}
    os.kill(other, signal.SIGSTOP)
    try:
        seen = stream.leave()
        again = Stream(server, content, last_id(seen))
        again.wait_events(1)
        rest = again.whole()
    finally:
        os.kill(other, signal.SIGCONT)
    check(server, content, seen, rest)


def test_a_stream_that_nobody_knows_is_a_404_at_once(server):
    reply = httpx.post(
        f"{server.url}/v1/completions",
        content=asked("x"),
        headers={"Last-Event-ID": "req-gone.7"},
        timeout=MOVES_S,
    )
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "stream_not_resumable")


def n_admitted() -> int:
    return sum(stats.counts.requests_admitted for stats in RemoteModel.connect("demo").stats())


def test_identical_requests_at_two_fronts_are_computed_once(server):
    before = n_admitted()
    content = json.dumps({**json.loads(asked("Six of one")), "stream": False, "stream_options": None})
    with ThreadPoolExecutor(6) as pool:
        replies = [
            reply.json()
            for reply in pool.map(
                lambda _: httpx.post(f"{server.url}/v1/completions", content=content, timeout=WAIT_S), range(6)
            )
        ]
    assert {reply["usage"]["completion_tokens"] for reply in replies} == {N}
    assert len({reply["choices"][0]["text"] for reply in replies}) == 1
    assert n_admitted() - before <= 2, "each front has its own router: they may meet at two replicas"
