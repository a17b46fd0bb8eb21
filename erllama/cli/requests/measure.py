"""Sends a captured request to a server and measures its answer, whatever the server is: what it tells of
cached tokens is looked for under the names that servers give it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx

from erllama.benchmark.turn import event_data
from erllama.cli.requests.captured import CapturedRequest

# the first name that is found counts; llama.cpp's server counts the prompt without what was cached
_CACHED = ("cached_tokens", "cache_read_input_tokens", "cachedContentTokenCount", "cache_n", "tokens_cached")
_PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_eval_count", "tokens_evaluated", "prompt_n")
_USAGE_PATHS = ("/chat/completions", "/completions")
_MAX_REASON = 300


@dataclass(frozen=True, slots=True)
class Measured:
    """`ttft_ms` is the time to the first piece of the answer's content, of one that does not stream to its
    end; `total_ms` to its end. Tokens are None where the server does not tell. `error`: it was refused or
    broke off.
    """

    id: str
    path: str
    status: int = 0
    ttft_ms: float | None = None
    total_ms: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    error: str = ""


def send(http: httpx.Client, captured: CapturedRequest, model: str | None = None) -> Measured:
    """One request, to its end. `model` stands for the one that it names. Raises `httpx.ConnectError`."""
    body = captured.body if model is None else {**captured.body, "model": model}
    if body.get("stream") and captured.path.partition("?")[0].endswith(_USAGE_PATHS):
        body = {**body, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}
    started, measured = time.monotonic(), Measured(captured.id, captured.path)
    try:
        with http.stream("POST", captured.path, json=body, headers=captured.headers) as reply:
            measured = replace(measured, status=reply.status_code)
            if reply.status_code >= 400:
                reply.read()
                return replace(measured, error=reply.text[:_MAX_REASON], total_ms=_ms_since(started))
            measured = _read(reply, measured, started)
    except httpx.ConnectError:
        raise
    except (httpx.TransportError, ValueError) as error:
        measured = replace(measured, error=f"{type(error).__name__}: {error}"[:_MAX_REASON])
    return replace(measured, total_ms=_ms_since(started))


def _read(reply: httpx.Response, measured: Measured, started: float) -> Measured:
    counts: dict[str, int] = {}
    for event in _events(reply):
        if measured.ttft_ms is None and _has_content(event):
            measured = replace(measured, ttft_ms=_ms_since(started))
        _find_counts(event, counts)
        if isinstance(event, dict) and event.get("error"):
            measured = replace(measured, error=json.dumps(event["error"])[:_MAX_REASON])
    cached = next((counts[name] for name in _CACHED if name in counts), None)
    prompt_name = next((name for name in _PROMPT if name in counts), None)
    prompt = None if prompt_name is None else counts[prompt_name]
    if prompt is not None and (prompt_name == "prompt_n" or "cache_read_input_tokens" in counts):
        prompt += cached or 0  # told without what was cached
    return replace(measured, prompt_tokens=prompt, cached_tokens=cached)


def _events(reply: httpx.Response) -> Iterator[Any]:
    """The answer as JSON values: events of a stream, lines, or the whole."""
    kind = reply.headers.get("content-type", "")
    if "event-stream" in kind or "ndjson" in kind:
        for line in reply.iter_lines():
            if data := line.strip() if "ndjson" in kind else event_data(line):
                yield json.loads(data)
        return
    reply.read()
    yield reply.json()


_CONTENT = ("content", "text", "delta", "response", "thinking", "reasoning_content", "arguments", "partial_json")


def _has_content(value: Any) -> bool:
    """Whether an event carries a piece of the reply: a text that is not empty under one of its names."""
    if isinstance(value, dict):
        return any(
            (name in _CONTENT and isinstance(inner, str) and inner != "") or _has_content(inner)
            for name, inner in value.items()
        )
    return isinstance(value, list) and any(map(_has_content, value))


def _find_counts(value: Any, counts: dict[str, int]) -> None:
    """The counts under known names, wherever they stand; later ones win, as streams tell them last."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if (name in _CACHED or name in _PROMPT) and type(inner) is int:
                counts[name] = inner
            else:
                _find_counts(inner, counts)
    elif isinstance(value, list):
        for inner in value:
            _find_counts(inner, counts)


def _ms_since(started: float) -> float:
    return (time.monotonic() - started) * 1e3
