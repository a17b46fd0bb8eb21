"""Streams outlive what serves them: replicas are killed, drained and replaced, the store vanishes;
the reply stays what it would have been.

KV in q8_0: what is restored or computed again is then the same bit for bit. The file comes before
the tests that share one long-lived server: HAProxy allows one cluster per machine. What breaks most
for good comes last.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from ray import serve

from deployments.app import build_app
from deployments.config import FailoverPolicy
from deployments.jobs.remote_model import RemoteModel
from erllama.errors import EngineStopped
from erllama.events import Done, Event, Failed, Tokens
from erllama.request import GenerationRequest, SamplingParams
from tests.support.bounds import MOVES_S, STREAMS_END_S
from tests.support.driver import serve_logs
from tests.support.serve_process import ServeProcess, running
from tests.support.streams import TextStream, busiest, replica_pids, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]

REPLICAS, INGRESS = "model-demo", "ingress"
INTERVAL, BLOCK = 64, 256
N = 3000  # tokens: a second or more, long enough to be cut in the middle
MODEL = {
    "id": "demo", "path": "demo", "n_ctx": 8192, "n_parallel": 4, "n_threads": 1, "num_cpus": 0.5, "num_replicas": 2,
    "type_k": "q8_0", "type_v": "q8_0", "drain_s": 0.2,
}  # fmt: skip
# a demo model computes faster than it reads: without `restore_always` it would not even try
POLICY = {
    "min_tokens": 32,
    "cold_min_tokens": 32,
    "continued_interval": INTERVAL,
    "boundary_trim_tokens": 0,
    "restore_always": True,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failover-kv")


@pytest.fixture(scope="module")
def args(store: Path) -> dict[str, Any]:
    return {
        "models": [MODEL],
        "store": {"tiers": [{"url": str(store / "kv")}]},
        "policy": POLICY,
        "failover": {"max_attempts": 3},
        "http": {"ingress_replicas": 2},
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, args: dict[str, Any]) -> Iterator[ServeProcess]:
    with running(tmp_path_factory.mktemp("failover"), args, "demo") as process:
        yield process


@pytest.fixture(scope="module")
def logs(server: ServeProcess) -> Iterator[Path]:
    with serve_logs() as folder:
        yield folder


@pytest.fixture
def both(server: ServeProcess, logs: Path) -> None:
    """Both replicas run."""
    wait_both()


def wait_both() -> None:
    def running() -> bool:
        try:
            return len(RemoteModel.connect("demo", failover=FailoverPolicy(max_attempts=1)).status()) == 2
        except EngineStopped:
            return False

    wait_until(lambda: len(replica_pids(REPLICAS)) == 2 and running(), "two replicas")


def body(prompt: str, n: int, temperature: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "model": "demo",
        "prompt": prompt,
        "max_tokens": n,
        "temperature": temperature,
        "seed": 5,
        "ignore_eos": True,
        **more,
    }


def uninterrupted(server: ServeProcess, asked: dict[str, Any]) -> str:
    reply = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=90).json()
    assert reply["usage"]["completion_tokens"] == asked["max_tokens"]
    return str(reply["choices"][0]["text"])


def kill_the_one_that_works() -> None:
    os.kill(busiest(replica_pids(REPLICAS)), signal.SIGKILL)


@pytest.mark.parametrize(("cut", "temperature"), [(1, 0.0), (1200, 1.0)])
def test_a_killed_replicas_stream_goes_on_from_the_other_one_without_a_gap_or_a_repeat(server, both, cut, temperature):
    asked = body(f"Once upon a time {cut},", N, temperature)
    stream = TextStream(server.url, asked)
    stream.wait_chars(cut)
    kill_the_one_that_works()
    assert not stream.ended, "killed too late to matter"
    text = stream.finish()
    assert (stream.error, stream.broken) == (None, None)
    assert stream.usage is not None
    assert stream.usage["completion_tokens"] == N
    assert text == uninterrupted(server, asked)


@pytest.mark.parametrize("n_chars", [0, 1200])
def test_a_replica_that_stands_still_loses_its_stream_and_says_nothing_when_it_wakes(server, both, n_chars):
    """Stopped while it computes the prompt, and in the middle of the reply."""
    asked = body(f"The long night {n_chars}. " * (1 if n_chars else 300), N)
    stream = TextStream(server.url, asked)
    if n_chars:
        stream.wait_chars(n_chars)
    pid = busiest(replica_pids(REPLICAS))
    os.kill(pid, signal.SIGSTOP)
    try:
        assert not stream.ended, "stopped too late to matter"
        seen = len(stream.text)
        stream.wait_chars(seen + 300, MOVES_S)
        os.kill(pid, signal.SIGCONT)  # while the other one is still writing
        text = stream.finish()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (stream.error, stream.broken) == (None, None)
    assert text == uninterrupted(server, asked)
    assert len(replica_pids(REPLICAS)) == 2, "it was not even replaced"


def test_calls_for_one_answer_leave_a_replica_that_stands_still(server, both):
    """Several at once, so that some meet it."""

    def embedding(name: int) -> list[float]:
        asked = {"model": "demo", "input": f"The long night {name}."}
        reply = httpx.post(f"{server.url}/v1/embeddings", json=asked, timeout=90)
        assert reply.status_code == 200, reply.text
        return list(reply.json()["data"][0]["embedding"])

    expected = [embedding(name) for name in range(6)]
    pid = replica_pids(REPLICAS)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        started = time.monotonic()
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(embedding, range(6))) == expected
        assert time.monotonic() - started < MOVES_S
    finally:
        os.kill(pid, signal.SIGCONT)


def test_what_a_dead_replica_costs_is_bounded_by_the_interval_between_two_saves(server, both):
    model = RemoteModel.connect("demo")
    request = GenerationRequest(
        "cost", tuple(range(300, 700)), SamplingParams(temperature=0.9, seed=3), max_tokens=N, ignore_eos=True
    )
    events: list[Event] = []
    n, killed_at = 0, 0
    for arrived in model.generate(request):
        events += arrived
        n += sum(len(event.ids) for event in arrived if isinstance(event, Tokens))
        if n > 1000 and not killed_at:
            killed_at = n
            kill_the_one_that_works()
    done = events[-1]
    assert isinstance(done, Done)
    assert done.stats.resumed_tokens >= killed_at
    assert done.stats.computed_tokens <= INTERVAL + BLOCK
    assert done.stats.completion_tokens == N
    whole = [event for arrived in model.generate(request) for event in arrived]
    assert ids(whole) == ids(events)


def ids(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.ids]


def test_with_no_replica_left_a_stream_waits_for_the_next_one(server, both):
    asked = body("The last of them", N, 0.8)
    stream = TextStream(server.url, asked)
    stream.wait_chars(300)
    for pid in replica_pids(REPLICAS):
        os.kill(pid, signal.SIGKILL)
    text = stream.finish()
    assert (stream.error, stream.broken) == (None, None)
    assert stream.longest_pause_s > 1.0, "a process started meanwhile"
    assert text == uninterrupted(server, asked)


def test_a_client_without_tries_sees_the_error_itself(server, both):
    model = RemoteModel.connect("demo", failover=FailoverPolicy(max_attempts=1))
    events: list[Event] = []
    for arrived in model.generate(
        GenerationRequest("one", (5, 6, 7), SamplingParams(seed=3), max_tokens=N, ignore_eos=True)
    ):
        if not events:
            kill_the_one_that_works()
        events += arrived
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, EngineStopped)


def test_a_reply_in_one_body_survives_as_well(server, both):
    asked = body("All at once", N)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(uninterrupted, server, asked)
        wait_until(lambda: any(stats.n_generating for stats in RemoteModel.connect("demo").stats()), "the request runs")
        kill_the_one_that_works()
        assert not pending.done(), "killed too late to matter"
        assert pending.result(90) == uninterrupted(server, asked)


def test_a_request_that_loses_every_replica_ends_with_an_error_after_its_tries(server, both):
    asked = body("Never to end", N)
    stream = TextStream(server.url, asked)
    seen = 0
    while not stream.ended:
        stream.wait_chars(seen + 1)
        seen = len(stream.text)
        for pid in replica_pids(REPLICAS):
            os.kill(pid, signal.SIGKILL)
    assert stream.broken is None
    assert stream.error is not None
    assert stream.error["code"] == "engine_stopped"
    wait_both()
    assert uninterrupted(server, asked).startswith(stream.finish())


def test_an_update_loses_no_request_and_what_runs_fails_over(server, both, args, logs):
    """A constant load of short requests and long streams, while every process of the application is
    replaced.
    """
    over = threading.Event()
    texts: dict[str, set[str]] = {}

    def short(name: int) -> list[str]:
        problems = []
        with httpx.Client(base_url=server.url, timeout=90) as http:
            while not over.is_set():
                reply = http.post("/v1/completions", json=body(f"Short {name}", 16))
                if reply.status_code != 200:
                    problems.append(f"{reply.status_code} {reply.text}")
        return problems

    def long(name: int) -> list[str]:
        problems = []
        while not over.is_set():
            stream = TextStream(server.url, body(f"Long {name}", N))
            texts.setdefault(f"Long {name}", set()).add(stream.finish())
            if stream.error is not None or stream.broken is not None:
                problems.append(f"{stream.error} {stream.broken!r}")
        return problems

    before = n_failovers(logs)
    with ThreadPoolExecutor(4) as pool:
        load = [pool.submit(work, name) for work in (short, long) for name in range(2)]
        old = set(replica_pids(REPLICAS))
        changed = {**args, "models": [{**MODEL, "drain_s": 0.3}]}  # what its replicas depend on, and all others
        serve.run(build_app(changed), name="erllama", route_prefix="/")
        wait_until(lambda: old.isdisjoint(replica_pids(REPLICAS)), "the old replicas are gone")
        over.set()
        assert [problem for work in load for problem in work.result(90)] == []
    assert all(len(seen) == 1 for seen in texts.values()), "a prompt had two replies"
    assert n_failovers(logs) > before, (
        "no stream failed over: has Ray changed what deployments/model/drain.py looks at?"
    )


def n_failovers(logs: Path) -> int:
    return sum(
        path.read_text(errors="replace").count("event=failover") for path in logs.glob("replica_erllama_ingress_*.log")
    )


def test_the_official_client_survives_the_death_of_a_front_and_its_retries_are_warm(server, both):
    sent: list[httpx.Request] = []
    long = "It was a dark and stormy night. " * 60

    def ask(name: int) -> int:
        reply = client.completions.create(
            model="demo", prompt=f"{name} {long}", max_tokens=2000, temperature=0, extra_body={"ignore_eos": True}
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 2000
        return reply.usage.prompt_tokens

    def computed() -> int:
        return sum(stats.counts.prompt_tokens - stats.counts.cached_tokens for stats in model.stats())

    model = RemoteModel.connect("demo")
    before = computed()
    http = httpx.Client(event_hooks={"request": [sent.append]}, timeout=90)
    wait_until(lambda: len(replica_pids(INGRESS)) == 2, "two fronts")
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=4, http_client=http) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        asked = [pool.submit(ask, name) for name in range(8)]
        # six may have met on one replica, which runs four
        arrived = lambda: sum(stats.n_generating + stats.n_queued for stats in model.stats())  # noqa: E731
        wait_until(lambda: arrived() == 8, "all of them run, or wait behind those")
        os.kill(replica_pids(INGRESS)[0], signal.SIGKILL)
        n_prompts = sum(one.result(90) for one in asked)
    retried = len(sent) - 8
    assert retried > 0, "the balancer gave all of them to the other front"
    # a retry goes on with the first try's reply, or finds all of its prompt
    assert computed() - before <= n_prompts + retried


def test_a_stream_whose_store_vanishes_goes_on_and_so_it_does_when_its_replica_dies_then(server, both, store):
    asked = body("Everything is lost", N)
    stream = TextStream(server.url, asked)
    stream.wait_chars(300)
    (store / "kv").rename(store / "gone")  # at once: a removal would race with its writers
    kill_the_one_that_works()
    text = stream.finish()
    assert (stream.error, stream.broken) == (None, None)
    assert text == uninterrupted(server, asked)


def test_a_deleted_application_ends_its_streams_with_an_error_and_nothing_hangs(server, both):
    streams = [TextStream(server.url, body(f"Good bye {n}", N)) for n in range(4)]
    for stream in streams:
        stream.wait_chars(1)
    started = time.monotonic()
    serve.delete("erllama", _blocking=False)
    for stream in streams:
        stream.finish(30)
        assert stream.broken is None
        assert stream.error is None or stream.error["code"] == "engine_stopped"
    assert any(stream.error for stream in streams)
    assert time.monotonic() - started < STREAMS_END_S
