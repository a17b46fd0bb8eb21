"""`Cluster` from a driver, and the scripts of examples/ as users run them: `ray job submit` and the
official client.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from deployments.jobs.cluster import Cluster, ClusterUnavailable, ModelState, chat
from deployments.model.ray_errors import ModelUnavailable
from erllama.errors import ModelNotFound
from erllama.stats import EvictResult
from tests.support.serve_process import ROOT, ServeProcess
from tests.support.snippets import Snippet, all_snippets

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.usefixtures("cluster")]

EXAMPLES = ROOT / "examples"
WITHIN_S = 120
BLOCK_TOKENS = 256


@pytest.fixture
def app() -> Iterator[Cluster]:
    with Cluster.connect() as cluster:
        yield cluster


def state(app: Cluster, model_id: str) -> ModelState:
    (found,) = [state for state in app.status() if state.id == model_id]
    return found


def test_models_lists_the_ids_in_the_order_of_the_config(app):
    assert app.models() == ("demo", "tiny", "narrow", "encoder", "broken", "sleepy")


def test_model_finds_by_id_and_by_alias(app):
    assert app.model("gpt-demo").model_info().id == app.model("demo").model_info().id == "demo"


def test_what_does_not_run_is_named_with_what_does(app):
    with pytest.raises(ModelNotFound, match="'nobody' does not exist; served are: demo, tiny"):
        app.model("nobody")
    with pytest.raises(ClusterUnavailable, match="no application 'other' runs on this cluster; there is erllama"):
        Cluster.connect("other")


def test_a_cluster_that_was_there_before_is_not_left(app):
    with Cluster.connect():
        pass
    assert "demo" in app.models()


def test_status_counts_what_a_model_did(app):
    before = state(app, "demo")
    assert (before.state, before.replicas, len(before.engines), before.aliases) == ("HEALTHY", 1, 1, ("gpt-demo",))
    reply = chat(app.model("demo"), [{"role": "user", "content": "Hello!"}], response_tokens=4, temperature=0)
    after = state(app, "demo")
    assert after.prompt_tokens - before.prompt_tokens == reply.stats.prompt_tokens
    assert after.cached_tokens - before.cached_tokens == reply.stats.cached_tokens
    assert after.completion_tokens - before.completion_tokens == reply.stats.completion_tokens
    assert 0 <= after.hit_ratio == after.cached_tokens / after.prompt_tokens


def test_asking_about_a_model_that_sleeps_does_not_wake_it_and_one_that_cannot_load_says_why(app):
    assert app.evict("sleepy") == [EvictResult()] * state(app, "sleepy").replicas
    assert state(app, "broken").replicas == 0
    assert "missing.gguf" in state(app, "broken").message
    if state(app, "sleepy").replicas == 0:
        assert "sleepy" not in app.store_stats()
        assert state(app, "sleepy").replicas == 0


def test_evict_takes_the_context_of_every_replica_and_the_next_request_brings_it_back(app):
    tiny = app.model("tiny")
    prompt = [5 + i % 90 for i in range(200)]
    tiny.complete(prompt, response_tokens=2, temperature=0)
    (evicted,) = app.evict("tiny")
    assert evicted.n_tokens >= len(prompt)
    (engine,) = state(app, "tiny").engines
    assert not engine.has_context
    tiny.complete(prompt, response_tokens=2, temperature=0)
    (engine,) = state(app, "tiny").engines
    assert engine.has_context


def test_store_stats_has_one_entry_for_every_running_replica(app):
    stats = app.store_stats()
    assert {"demo", "tiny", "narrow", "encoder"} <= set(stats)
    (demo,) = stats["demo"]
    assert len(demo.tiers) == 2


def test_a_call_that_waits_for_a_sleeping_model_can_be_given_up_and_is_not_made_later(app):
    if state(app, "sleepy").replicas:
        pytest.skip("it is awake: another test asked it")
    with pytest.raises(ModelUnavailable):
        app.model("sleepy", timeout_s=0.05).complete([5, 6], response_tokens=1)
    sleepy = app.model("sleepy")
    assert len(sleepy.complete([5, 6], response_tokens=1).tokens) <= 1
    assert [stats.counts.requests_admitted for stats in sleepy.stats()] == [1]


def submit(script: str, *args: str) -> subprocess.Popen[str]:
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "job", "submit", "--", sys.executable, str(EXAMPLES / script), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_example_jobs_run_on_the_cluster_and_a_shared_prompt_is_computed_once(app, tmp_path):
    questions = [{"id": i, "question": f"What do you know about number {i}?"} for i in range(12)]
    (tmp_path / "questions.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
    before = state(app, "demo")
    options = [
        "--questions",
        str(tmp_path / "questions.jsonl"),
        "--out",
        str(tmp_path / "replies.jsonl"),
        "--tokens",
        "4",
    ]
    jobs = {"batch": submit("batch_job.py", *options), "handle": submit("handle_job.py", "Hello!")}
    said = {name: job.communicate(timeout=WITHIN_S)[0] for name, job in jobs.items()}
    assert {name: job.returncode for name, job in jobs.items()} == {"batch": 0, "handle": 0}, said
    assert "12 rows, 0 failed" in said["batch"]
    assert "of the prompt were not computed" in said["handle"]
    rows = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert [{"id": row["id"], "question": row["question"]} for row in rows] == questions
    assert all(row["reply"] and row["error"] is None for row in rows)
    shared = min(row["cached_tokens"] for row in rows)
    assert shared >= 1000
    after = state(app, "demo")
    computed = (after.prompt_tokens - after.cached_tokens) - (before.prompt_tokens - before.cached_tokens)
    assert computed <= shared + sum(row["prompt_tokens"] - shared for row in rows) + BLOCK_TOKENS


ON_CLUSTER = [each for each in all_snippets() if each.language == "python" and "test_on_cluster" in each.not_run]


@pytest.mark.parametrize("snippet", ON_CLUSTER, ids=str)
def test_what_the_documentation_shows_of_the_cluster_runs_as_it_stands(snippet: Snippet):
    """In a process of its own: a data set of Ray's stays for as long as its driver."""
    command = [sys.executable, "-c", snippet.text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) > 5


def test_the_example_of_the_official_client_runs_as_it_stands(server: ServeProcess, client: OpenAI):
    command = [sys.executable, str(EXAMPLES / "openai_client.py"), f"{server.url}/v1", "demo"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=WITHIN_S, check=True)
    assert len(answer.stdout.split()) > 5
