"""What was computed outlives the process that computed it: through `serve run`, Ctrl-C, SIGTERM and
the official client.

The file comes before the tests that share one long-lived server: HAProxy allows one cluster per
machine.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from tests.support.serve_process import ServeProcess, running
from tests.support.streams import TextStream, replica_pids

pytestmark = [pytest.mark.ray, pytest.mark.model]

SYSTEM = "You are a helpful assistant. " + " ".join(f"Fact {i}: the river number {i} is blue." for i in range(30))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@contextmanager
def serving(folder: Path, store: Path, policy: dict[str, Any], *, asleep: bool = False) -> Iterator[ServeProcess]:
    folder.mkdir()
    model: dict[str, Any] = {
        "id": "demo",
        "path": "demo",
        "n_ctx": 8192,
        "n_parallel": 2,
        "n_threads": 1,
        "num_cpus": 0.5,
        "prewarm": 1,
    }
    if asleep:
        model["autoscaling"] = {"min_replicas": 0, "max_replicas": 1}
    tiers = [{"url": str(store / "fast"), "max_bytes": "1GiB"}, {"url": str(store / "slow")}]
    with running(
        folder,
        {"models": [model], "store": {"tiers": tiers}, "policy": policy},
        "demo",
        state="unknown" if asleep else "ready",
    ) as process:
        yield process


def chat(client: OpenAI, messages: list[dict[str, Any]], **params: Any) -> tuple[dict[str, Any], int, int]:
    """The reply as a message of the history, its prompt tokens and how many of them were not
    computed.
    """
    reply = client.chat.completions.create(model="demo", messages=messages, max_tokens=48, temperature=0, **params)  # type: ignore[arg-type]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    message = json.loads(reply.choices[0].message.model_dump_json(exclude_none=True))
    return message, reply.usage.prompt_tokens, reply.usage.prompt_tokens_details.cached_tokens or 0


def test_a_conversation_goes_on_warm_after_ctrl_c_and_a_new_start_from_zero_replicas(tmp_path):
    policy = {"min_tokens": 64, "cold_min_tokens": 64}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "My name is Zorblat."},
    ]
    asking = [{"role": "user", "content": "What is the weather in Lotrusain?"}]
    with (
        serving(tmp_path / "first", tmp_path, policy) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="-") as client,
    ):
        first, n_prompt, n_cached = chat(client, messages)
        assert n_cached == 0
        messages += [first, {"role": "user", "content": "What is my name?"}]
        second, n_second, n_cached = chat(client, messages)
        assert n_cached >= n_prompt
        call, _, _ = chat(client, asking, tools=[WEATHER], tool_choice="required")
        asking += [
            call,
            {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": '{"weather": "sunny"}'},
        ]
        arguments = call["tool_calls"][0]["function"]
        # as a client writes it that parsed it
        arguments["arguments"] = json.dumps(json.loads(arguments["arguments"]), indent=3)
        answer, n_answer, n_cached = chat(client, asking, tools=[WEATHER])
        assert n_cached >= n_answer - 40  # all but the tool's result
    with (
        serving(tmp_path / "second", tmp_path, policy, asleep=True) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="-") as client,
    ):
        assert chat(client, messages) == (second, n_second, pytest.approx(n_second, abs=1))
        messages += [second, {"role": "user", "content": "Thank you."}]
        _, n_third, n_cached = chat(client, messages)
        assert n_second < n_cached < n_third
        again, n_again, n_cached = chat(
            client, asking, tools=[WEATHER]
        )  # the ids of the call come from the store: this ingress never saw them
        assert (again, n_again) == (answer, n_answer)
        assert n_cached >= n_answer - 1


def test_sigterm_saves_what_was_running(tmp_path):
    """No other save is due: what is restored afterwards was saved because of the signal. It strikes
    while the first token is on its way, where Ray's own handler would leave at once, and later.
    """
    policy = {"min_tokens": 64, "cold_min_tokens": 1 << 20, "continued_interval": 1 << 20}
    with serving(tmp_path / "serve", tmp_path, policy) as server:
        for n_chars in (1, 400):
            prompt = [300 + (n_chars + i) * 7 % 900 for i in range(600)]
            body = {"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": 2500, "ignore_eos": True}
            stream = TextStream(server.url, body)
            stream.wait_chars(n_chars)
            (replica,) = [psutil.Process(pid) for pid in replica_pids("model-demo")]
            os.kill(replica.pid, signal.SIGTERM)
            replica.wait(30)
            assert not stream.ended
            stream.finish()  # it went on from the next replica
            assert (stream.error, stream.broken) == (None, None)
            assert stream.usage is not None
            assert stream.usage["prompt_tokens_details"]["cached_tokens"] >= len(prompt) - 1
