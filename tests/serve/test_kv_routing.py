"""Two replicas of one model: who gets which request, through `serve run`, the HTTP door and a
driver of its own.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine. The driver is a process of its own, because Serve's client remembers the first cluster that
a process was connected to.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import psutil
import pytest
import ray

from deployments.jobs.remote_model import RemoteModel
from deployments.routing import router as kv_router
from erllama.errors import EngineStopped
from tests.support.serve_process import ServeProcess, running

pytestmark = [pytest.mark.ray, pytest.mark.model]

N_REPLICAS = 2
WITHIN_S = 60.0
Worker = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    model = {"id": "demo", "path": "demo", "n_ctx": 2048, "n_threads": 1, "num_cpus": 0.5, "num_replicas": N_REPLICAS}
    with running(tmp_path_factory.mktemp("routing"), {"models": [model], "store": {"tiers": []}}, "demo") as process:
        yield process


def connect() -> None:
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="auto", namespace="serve", log_to_driver=False, include_dashboard=False)


@pytest.fixture(scope="module")
def driver(server: ServeProcess) -> Iterator[Worker]:
    """Runs a function of this module in a process that is a driver of the server's cluster."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=connect) as pool:

        def call(function: Worker, *args: Any) -> Any:
            return pool.submit(function, *args).result(120)

        call(all_up)
        yield call
        call(ray.shutdown)


# --- in the driver --------------------------------------------------------------------------------


def all_up() -> None:
    model, deadline = RemoteModel.connect("demo"), time.monotonic() + WITHIN_S
    n_up = 0
    while n_up < N_REPLICAS:
        assert time.monotonic() < deadline
        time.sleep(0.1)  # a poll of other processes
        with suppress(EngineStopped):  # one has just died
            n_up = len(model.stats())


def admitted() -> list[int]:
    """Requests per replica so far, in an order that stays while none comes or goes."""
    return [stats.counts.requests_admitted for stats in RemoteModel.connect("demo").stats()]


def converse_in_sessions(n_sessions: int, n_turns: int) -> list[list[int]]:
    """Committed tokens after each turn. The handle that continues is not the one that began:
    another router, which only knows what replicas publish.
    """
    lengths = []
    model = RemoteModel.connect("demo")
    for i in range(n_sessions):
        list(model.infer(prompt(i), session_id=f"s{i}", response_tokens=4, ignore_eos=True))
    time.sleep(3)  # more than what is published can be late
    other = RemoteModel.connect("demo")
    for i in range(n_sessions):
        ends = [
            list((model if turn % 2 else other).continue_(f"s{i}", [5, 6, 7], response_tokens=4))[-1]
            for turn in range(n_turns)
        ]
        lengths.append([end.stats.prompt_tokens for end in ends])  # type: ignore[union-attr]
        model.end_session(f"s{i}")  # its pin would keep others out of the context
    return lengths


def complete_with_broken_scores(n: int) -> int:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("injected")

    ranked, kv_router.ranked = kv_router.ranked, broken  # type: ignore[assignment]
    try:
        model = RemoteModel.connect("demo")
        return sum(
            model.complete(prompt(100 + i), response_tokens=2, ignore_eos=True).stats.completion_tokens
            for i in range(n)
        )
    finally:
        kv_router.ranked = ranked


# --- the tests ------------------------------------------------------------------------------------


def prompt(seed: int, n: int = 200) -> list[int]:
    words = random.Random(seed)
    return [words.randrange(300, 1200) for _ in range(n)]


def ask(server: ServeProcess, tokens: list[int]) -> int:
    """Tokens of the prompt that were taken over from a context."""
    body = {"model": "demo", "prompt": tokens, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return int(reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_unknown_prompts_are_spread_evenly(server, driver):
    before = driver(admitted)
    assert [ask(server, prompt(1000 + i)) for i in range(20)] == [0] * 20
    assert min(after - n for after, n in zip(driver(admitted), before, strict=True)) >= 8


def test_a_conversation_stays_on_its_replica_among_others(server, driver):
    transcripts = [prompt(2000 + i) for i in range(4)]
    for tokens in transcripts:
        ask(server, tokens)
    for turn in range(4):
        for i, tokens in enumerate(transcripts):
            known = len(tokens)
            tokens += prompt(3000 + 10 * i + turn, 40)
            assert ask(server, tokens) >= known - 1, (turn, i)


def test_a_conversation_that_began_at_the_front_goes_on_from_a_job_on_the_same_replica(server, driver):
    tokens = prompt(4000)
    ask(server, tokens)
    time.sleep(3)  # the job's router knows only what replicas publish
    assert driver(cached_of, [*tokens, *prompt(4001, 40)]) >= len(tokens) - 1


def cached_of(tokens: list[int]) -> int:
    return RemoteModel.connect("demo").complete(tokens, response_tokens=2).stats.cached_tokens


def test_a_session_stays_on_its_replica_whichever_router_continues_it(server, driver):
    for lengths in driver(converse_in_sessions, 4, 6):
        assert len(lengths) == 6
        assert lengths == sorted(lengths)


def test_an_error_in_the_scores_costs_no_request(server, driver):
    before = sum(driver(admitted))
    assert driver(complete_with_broken_scores, 8) == 16
    assert sum(driver(admitted)) == before + 8


def test_requests_go_on_when_a_replica_is_killed_and_a_new_one_gets_its_share(server, driver):
    transcripts = [prompt(5000 + i) for i in range(4)]
    before = driver(admitted)
    for tokens in transcripts:
        ask(server, tokens)
    living = [after - n for after, n in zip(driver(admitted), before, strict=True)]
    victim, *_ = [
        p
        for p in psutil.process_iter(["cmdline"])
        if "ServeReplica:erllama:model-demo" in " ".join(p.info["cmdline"] or ())
    ]
    victim.kill()
    cached = [ask(server, [*tokens, *prompt(6000, 40)]) for tokens in transcripts]
    assert sum(n > 0 for n in cached) in living  # those of the other replica
    # they live elsewhere now
    assert all(ask(server, [*tokens, *prompt(6000, 60)]) >= len(tokens) for tokens in transcripts)
    driver(all_up)
    before = driver(admitted)
    for i in range(12):
        ask(server, prompt(7000 + i))
    assert min(after - n for after, n in zip(driver(admitted), before, strict=True)) >= 4
