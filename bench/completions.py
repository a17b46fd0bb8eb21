"""Completions from token ids over HTTP where prefixes may be reused: the same body for our server
and for llama-server.

Greedy, past the end of text, streamed, with usage. The client parses when all replies have ended,
so that it takes nothing from them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stream_client import Connection, Stream, encode_request, parse_reply, parse_stream


def completion_request(model: str, prompt: Sequence[int], max_tokens: int) -> bytes:
    body = {
        "model": model, "prompt": list(prompt), "max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True},
        "temperature": 0, "ignore_eos": True, "cache_prompt": True,
    }  # fmt: skip
    return encode_request("POST", "/v1/completions", body)


def ask(port: int, model: str, prompt: Sequence[int], max_tokens: int = 1) -> Stream:
    """One completion on a connection of its own."""
    return ask_all(port, model, [prompt], max_tokens)[0]


def ask_all(port: int, model: str, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Stream]:
    """One completion per prompt, all sent at the same moment on connections that are open
    already.
    """
    requests = [completion_request(model, prompt, max_tokens) for prompt in prompts]
    return asyncio.run(_send_all(port, requests))


async def _send_all(port: int, requests: Sequence[bytes]) -> list[Stream]:
    connections = await asyncio.gather(*(Connection.open(port) for _ in requests))
    try:
        raws = await asyncio.gather(*(c.request(data) for c, data in zip(connections, requests, strict=True)))
    finally:
        for connection in connections:
            connection.abort()
    return [parse_stream(parse_reply(raw)) for raw in raws]
