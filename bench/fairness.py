"""Small requests beside a flood of large ones: how long they wait for their first token, over HTTP.

    python bench/fairness.py --peer LLAMA_SERVER --other CHECKOUT [--rounds 2] [--json FILE]

Each round starts, in changing order, our server, our server of another checkout (`--other`, a
working tree of an earlier commit: "before"), and llama-server: the same GGUF, threads, context and
slots, no prompt cache and no store. `--large` clients send prompts of `--large-tokens` one after the
other, more of them than there are slots; when the first of their prompts has been running for
`--settle` seconds, `--small` clients send prompts of `--small-tokens`, a moment apart, for
`--seconds`. Nobody sends a key or a priority: all are one tenant. Prompts are random ids, no two
alike, so that nothing is reused.

SIDE.small_ttft_p50/p99  the time to the first token of small requests; those that have none when
                         the time is up count with what they have waited
SIDE.small_done          small requests that were answered in the time
SIDE.large_rate          tokens of large prompts that got their first token, per second of the time
                         since the flood began
ratio.*                  ours / before, ours / llama-server; below one is better but for the last two
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import servers
from harness import Figures, PromptMaker, make_parser, median, percentile, say
from servers import Ours, Peer, Server
from stream_client import Connection, Raw, encode_request, parse_reply, parse_stream

from erllama.demo import demo_model_path
from erllama.gguf.check import inspect_gguf

MODEL_ID = "bench"
ROOT = servers.ROOT


@dataclass(slots=True)
class Load:
    """What clients of one kind saw: seconds to the first token of each request that had one or waited
    until the end, and how many were answered.
    """

    ttft_s: list[float] = field(default_factory=list)
    n_first: int = 0
    n_done: int = 0


async def client(port: int, prompts: PromptMaker, n_tokens: int, gen: int, pause_s: float, load: Load) -> None:
    """Request after request, until it is cancelled."""
    connection = await Connection.open(port)
    try:
        while True:
            body = {
                "model": MODEL_ID, "prompt": prompts.make(n_tokens), "max_tokens": gen, "temperature": 0.0,
                "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
            }  # fmt: skip
            sent, first = time.monotonic(), 0.0

            def on_read(raw: Raw) -> None:
                nonlocal first
                if not first and b'"text"' in raw.reads[-1][1]:
                    first = time.monotonic()

            try:
                raw = await connection.request(encode_request("POST", "/v1/completions", body), on_read)
                stream = parse_stream(parse_reply(raw))
                first, load.n_done = stream.first_ns / 1e9, load.n_done + 1
            finally:
                load.n_first += bool(first)
                load.ttft_s.append((first or time.monotonic()) - sent)
            await asyncio.sleep(pause_s)
    finally:
        connection.abort()


async def measure(server: Server, args: argparse.Namespace, prompts: PromptMaker) -> dict[str, float]:
    small, large = Load(), Load()
    begun = time.monotonic()
    flood = [client(server.port, prompts, args.large_tokens, args.gen, 0.0, large) for _ in range(args.large)]
    tasks = [asyncio.create_task(one) for one in flood]
    await asyncio.sleep(args.settle)
    for _ in range(args.small):
        one = client(server.port, prompts, args.small_tokens, args.gen, args.pause, small)
        tasks.append(asyncio.create_task(one))
    await asyncio.sleep(args.seconds)
    seconds = time.monotonic() - begun
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [end for end in ends if not isinstance(end, asyncio.CancelledError)]
    if failed:
        raise RuntimeError(f"a client of {server.kind} failed: {failed[0]!r}")
    return {
        "small_ttft_p50": 1e3 * percentile(small.ttft_s, 50),
        "small_ttft_p99": 1e3 * percentile(small.ttft_s, 99),
        "small_done": small.n_done,
        "large_rate": large.n_first * args.large_tokens / seconds,
    }


def make_server(side: str, args: argparse.Namespace, path: str) -> Server:
    if side == "peer":
        return Peer(args.peer, path, threads=args.threads, slots=args.slots, n_ctx=args.n_ctx, port=args.port + 1)
    spec = {"id": MODEL_ID, "path": path, "n_ctx": args.n_ctx, "n_parallel": args.slots, "n_threads": args.threads}
    return Ours({"models": [spec]}, port=args.port)


def measured(side: str, args: argparse.Namespace, path: str, seed: int) -> dict[str, float]:
    """One round of one side; a checkout's server runs from there."""
    servers.ROOT = args.other.resolve() if side == "before" else ROOT
    try:
        with make_server(side, args, path) as server:
            return asyncio.run(measure(server, args, PromptMaker(inspect_gguf(path).n_vocab, seed)))
    finally:
        servers.ROOT = ROOT


UNITS = {"small_ttft_p50": "ms", "small_ttft_p99": "ms", "small_done": "1", "large_rate": "tok/s"}


def report(rounds: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    figures = Figures()
    figures.extra["rounds"] = rounds
    for side, values in rounds.items():
        for name, unit in UNITS.items():
            figures.add(f"{side}.{name}", median(value[name] for value in values), unit)
    for name in UNITS:
        for side in ("before", "peer"):
            figures.add_ratio(f"ratio.{name}.{side}", figures.get(f"ours.{name}"), figures.get(f"{side}.{name}"))
    figures.report(args.json)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="demo", help="a GGUF (default: the demo model)")
    parser.add_argument("--peer", help="llama-server")
    parser.add_argument("--other", type=Path, help="the working tree of another commit")
    parser.add_argument("--port", type=int, default=8123)
    for name, default in (
        *(("threads", 2), ("slots", 4), ("n-ctx", 16384), ("rounds", 2), ("large", 6), ("large-tokens", 12000)),
        *(("small", 2), ("small-tokens", 100), ("gen", 16)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, number in (("settle", 5.0), ("seconds", 40.0), ("pause", 0.2)):
        parser.add_argument(f"--{name}", type=float, default=number)
    args = parser.parse_args(argv)
    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    sides = ["ours", *(["before"] if args.other else []), *(["peer"] if args.peer else [])]
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for number in range(args.rounds):
        for side in sides if number % 2 == 0 else sides[::-1]:
            say(f"round {number + 1} of {args.rounds}: {side}")
            rounds[side].append(measured(side, args, path, number))
            say(rounds[side][-1])
    report(rounds, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
