"""Models of a hub through the real server: a name in a request is enough, two of three fit, the manager
dies, and all is warm after a restart.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine.
"""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import ollama
import psutil
import pytest
from openai import NotFoundError, OpenAI

from deployments.config import HubSpec
from deployments.hub.specs import loadable_of
from erllama.demo import demo_model_path
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub
from tests.support.serve_process import ServeProcess, running
from tests.support.streams import TextStream, replica_pids, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.model]

DEFAULTS = {"n_ctx": 16384, "n_parallel": 2, "n_threads": 1}
QUESTION = "Tell me about the rivers. " + " ".join(f"River number {i} is blue." for i in range(40))


@pytest.fixture(scope="module")
def args(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A hub with three models, and memory for two that are awake while the third sleeps."""
    folder = tmp_path_factory.mktemp("hub")
    hub = Hub(HubConfig(dir=folder / "hub"))
    list(hub.pull(str(demo_model_path()), "tiny:a"))
    hub.copy("tiny:a", "tiny:b")
    hub.copy("tiny:a", "tiny:c")
    one = loadable_of(hub, HubSpec(dir=folder / "hub", defaults=DEFAULTS), "tiny:a", 8 << 30)
    room = 2 * one.need_bytes + one.process_bytes + (one.need_bytes - one.process_bytes) // 2
    spec = {"enabled": True, "dir": str(folder / "hub"), "max_models": 3, "memory_bytes": room, "defaults": DEFAULTS}
    tiers = [{"url": str(folder / "kv"), "max_bytes": "1GiB"}]
    return {"hub": spec, "store": {"tiers": tiers}, "policy": {"min_tokens": 64, "cold_min_tokens": 64}}


def client_of(server: ServeProcess) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def ask(client: OpenAI, model: str, text: str = QUESTION) -> tuple[str, int]:
    """The reply, and how many tokens of the prompt were not computed."""
    reply = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], max_tokens=16, temperature=0
    )
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    return reply.choices[0].message.content or "", reply.usage.prompt_tokens_details.cached_tokens or 0


def standings(server: ServeProcess) -> dict[str, dict[str, Any]]:
    told = httpx.get(f"{server.url}/erllama/v1/hub", timeout=30).json()["data"]
    return {model["id"]: model["standing"] for model in told}


def in_memory(server: ServeProcess) -> set[str]:
    return {name for name, standing in standings(server).items() if standing["phase"] in ("loading", "loaded")}


def model_pid(name: str) -> int:
    [pid] = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if f"ServeReplica:erllama.hub.{name.replace(':', '-')}." in " ".join(process.info["cmdline"] or ())
    ]
    return pid


def test_models_come_and_go_by_name_and_nothing_is_forgotten(args, tmp_path: Path):
    (tmp_path / "first").mkdir()
    with running(tmp_path / "first", args) as server, client_of(server) as client:
        first, n_cached = ask(client, "tiny:a")
        assert n_cached == 0
        assert ask(client, "TINY:A")[0] == first
        with pytest.raises(NotFoundError, match="tiny:a"):
            ask(client, "tiny:x")
        # a second and a third model while a stream of the first runs, for which there is no room twice
        stream = TextStream(
            server.url, {"model": "tiny:a", "prompt": "Once upon a time", "max_tokens": 8000, "ignore_eos": True}
        )
        stream.wait_chars(1)
        assert ask(client, "tiny:b")[0] == first
        assert ask(client, "tiny:c")[0] == first
        assert not stream.ended
        assert in_memory(server) == {"tiny:a", "tiny:c"}
        pid = model_pid("tiny:a")
        # the manager dies: what runs goes on, and a new one knows it
        os.kill(*replica_pids("hub"), signal.SIGKILL)
        assert ask(client, "tiny:a", "And the sea?")
        wait_until(
            lambda: len(replica_pids("hub")) == 1 and standings(server)["tiny:a"]["phase"] == "loaded", "recovery"
        )
        assert model_pid("tiny:a") == pid
        stream.finish()
        assert stream.error is None
        assert stream.broken is None
        # everybody at once
        with ThreadPoolExecutor(15) as pool:
            names = [f"tiny:{'abc'[number % 3]}" for number in range(15)]
            replies = list(pool.map(lambda name: ask(client, name)[0], names))
        assert set(replies) == {first}
        assert len(in_memory(server)) <= 2
    (tmp_path / "second").mkdir()
    with running(tmp_path / "second", args) as server, client_of(server) as client:
        assert in_memory(server) == set()
        again, n_cached = ask(client, "tiny:a")
        assert again == first
        assert n_cached > 300
        manage_with_ollama(server, client, first)


def manage_with_ollama(server: ServeProcess, client: OpenAI, first: str) -> None:
    """Ollama's own client makes a model, lets it go, and deletes it."""
    with ollama.Client(server.url) as own:
        own.create(
            "pirate", from_="tiny:a", system="You are a pirate.", parameters={"temperature": 0, "num_predict": 7}
        )
        assert own.show("pirate").modelfile.count("pirate") == 2
        told = own.chat("pirate", [{"role": "user", "content": QUESTION}], keep_alive="10m")
        assert told.eval_count == 7
        assert told.message.content != first
        [running_one] = [model for model in own.ps().models if model.model == "pirate:latest"]
        assert running_one.context_length == DEFAULTS["n_ctx"]
        own.generate("pirate", keep_alive=0)
        wait_until(lambda: standings(server)["pirate"]["phase"] == "sleeping", "keep_alive 0")
        listed = {model.id: json.loads(model.model_dump_json())["status"]["value"] for model in client.models.list()}
        assert listed["pirate"] == "sleeping"
        assert httpx.post(f"{server.url}/models/load", json={"model": "pirate"}, timeout=60).json() == {"success": True}
        assert standings(server)["pirate"]["phase"] == "loaded"
        own.delete("pirate")
        with pytest.raises(ollama.ResponseError, match="not found"):
            own.chat("pirate", [{"role": "user", "content": "Ahoy"}])
