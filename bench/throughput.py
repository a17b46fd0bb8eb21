"""Our server against llama-server, over HTTP: the same GGUF, threads, context, slots and prompts.

    python bench/throughput.py --model MODEL.gguf --peer LLAMA_SERVER [--rounds 3] [--json FILE]

Each round starts both servers in turn (the order alternates), so that a machine whose load drifts
treats both alike. Both run with flash attention, an f16 KV cache, one KV stream per slot and no
prompt cache; prompts are random token ids, no two alike, the same for both within a round. Decoding
is greedy and ignores the end of text. Every figure is the median over the rounds; the JSON has all
rounds.

prefill         prompt tokens / time to the first token, one request of 1024 tokens at a time
ttft_N          time to the first token of an N-token prompt on an idle server, the median
itl_p50/p99.sK  time between two events of a stream that carry text, over K concurrent streams (an
                event may hold several tokens: see events_per_token; a random-weight model also
                makes bytes of half characters, which both servers hold back)
decode.sK       tokens/s of all streams together while all K generate: prefill is outside the window
total.sK        tokens/s from the first request to the last end, prefill included
cpu.sK          CPU milliseconds per generated token of every process of the server, prefill
                included
greedy_agreement  share of a few prompts for which both give the same text; greedy_prefix is the
                  mean share of text up to the first
                difference. Near ties of a random-weight model may fall either way, so this is 1.0 only where logits agree well

Ratios are ours/peer; below one is better for ttft, itl and cpu. Hold still: nothing else on the
machine, the same build of llama.cpp (compile flags) on both sides, `--threads` not above the
physical cores. The client shares the machine and costs the same for both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from harness import Figures, PromptMaker, int_list, make_parser, median, percentile, say, setting, spread
from servers import Ours, Peer, Server, cpu_of
from stream_client import Connection, Stream, encode_request, parse_reply, parse_stream, steady_rate

from erllama.demo import demo_model_path
from erllama.gguf.check import inspect_gguf

MODEL_ID = "bench"
PREFILL_TOKENS = 1024
AGREE_PROMPTS, AGREE_PROMPT_TOKENS, AGREE_GEN = 4, 64, 48
UNITS = {
    "prefill": "tok/s",
    "ttft": "ms",
    "itl": "ms",
    "decode": "tok/s",
    "total": "tok/s",
    "cpu": "ms/tok",
    "events_per_token": "1",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What one round does to a server."""

    streams: tuple[int, ...]
    prompt_tokens: int
    ttft_tokens: int
    gen: int
    repeats: int


@dataclass(slots=True)
class Measured:
    """What one round gave: values by name, and the texts for the comparison."""

    values: dict[str, float] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)


async def complete(
    port: int, prompts: Sequence[list[int]], max_tokens: int, more: Mapping[str, Any] = MappingProxyType({})
) -> list[Stream]:
    """One stream per prompt, all sent at once; parsed when all have ended. `more` are further
    fields of the body.
    """
    bodies = [
        {
            "model": MODEL_ID, "prompt": prompt, "max_tokens": max_tokens, "stream": True, "stream_options": {"include_usage": True},
            "temperature": 0, "ignore_eos": True, "cache_prompt": False, **more,
        }
        for prompt in prompts
    ]  # fmt: skip
    requests = [encode_request("POST", "/v1/completions", body) for body in bodies]
    connections = await asyncio.gather(*(Connection.open(port) for _ in requests))
    raws = await asyncio.gather(*(c.request(data) for c, data in zip(connections, requests, strict=True)))
    for connection in connections:
        connection.abort()
    return [parse_stream(parse_reply(raw)) for raw in raws]


def measure(server: Server, plan: Plan, prompts: PromptMaker, slots: int) -> Measured:
    """One round on a running server."""
    out = Measured()

    def go(lengths: Sequence[int], max_tokens: int) -> list[Stream]:
        return asyncio.run(complete(server.port, [prompts.make(n) for n in lengths], max_tokens))

    say("  warm up")
    go([plan.prompt_tokens] * slots, 8)
    out.texts = [go([AGREE_PROMPT_TOKENS], AGREE_GEN)[0].text for _ in range(AGREE_PROMPTS)]

    say("  prefill and TTFT")
    seconds = [go([PREFILL_TOKENS], 1)[0].ttft_s for _ in range(plan.repeats)]
    out.values["prefill"] = PREFILL_TOKENS / median(seconds)
    out.values[f"ttft_{plan.ttft_tokens}"] = 1e3 * median(
        go([plan.ttft_tokens], 1)[0].ttft_s for _ in range(plan.repeats)
    )

    for n in plan.streams:
        say(f"  {n} streams")
        runs: list[list[Stream]] = []
        started = time.monotonic()
        with cpu_of(server) as used:
            runs.extend(go([plan.prompt_tokens] * n, plan.gen) for _ in range(plan.repeats if n == 1 else 1))
            wall_s = time.monotonic() - started
        out.values |= stream_values(runs, n, wall_s, sum(used.values()))
    return out


def stream_values(runs: Sequence[Sequence[Stream]], n: int, wall_s: float, cpu_s: float) -> dict[str, float]:
    """The figures of one stream count."""
    everything = [stream for run in runs for stream in run]
    gaps = [gap for stream in everything for gap in stream.gaps_ms]
    tokens = sum(stream.completion_tokens for stream in everything)
    return {
        f"itl_p50.s{n}": percentile(gaps, 50),
        f"itl_p99.s{n}": percentile(gaps, 99),
        f"decode.s{n}": median(steady_rate(run) for run in runs),
        f"total.s{n}": tokens / wall_s,
        f"cpu.s{n}": 1e3 * cpu_s / tokens,
        f"events_per_token.s{n}": sum(len(stream.text_ns) for stream in everything) / tokens,
    }


def common_prefix(a: str, b: str) -> float:
    """The share of the longer text that both begin with; 1.0 for equal texts."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same / max(len(a), len(b)) if a or b else 1.0


def unit_of(name: str) -> str:
    return next(unit for prefix, unit in UNITS.items() if name.startswith(prefix))


def summarise(figures: Figures, rounds: dict[str, list[Measured]]) -> None:
    """Medians over the rounds per server, the agreement, then the ratios of the medians."""
    for kind, measured in rounds.items():
        for name in measured[0].values:
            values = [one.values[name] for one in measured]
            figures.add(f"{kind}.{name}", median(values), unit_of(name))
            if name.startswith("decode") and len(values) > 1:
                figures.add(f"{kind}.{name}.spread", spread(values), "1")
    if "peer" in rounds:
        pairs = [
            p for a, b in zip(rounds["ours"], rounds["peer"], strict=True) for p in zip(a.texts, b.texts, strict=True)
        ]
        figures.add("greedy_agreement", sum(a == b for a, b in pairs) / len(pairs), "1")
        figures.add("greedy_prefix", sum(common_prefix(a, b) for a, b in pairs) / len(pairs), "1")
        for name in rounds["ours"][0].values:
            if not name.startswith("events"):
                figures.add_ratio(f"ratio.{name}", figures.get(f"ours.{name}"), figures.get(f"peer.{name}"))
    figures.extra["rounds"] = {kind: [one.values for one in measured] for kind, measured in rounds.items()}


def comparison_parser(
    description: str | None, *, streams: list[int], slots: int, n_ctx: int, prompt_tokens: int, gen: int
) -> argparse.ArgumentParser:
    """The options of a comparison with llama-server; what is given are the defaults."""
    parser = make_parser(description)
    shown = ",".join(map(str, streams))
    parser.add_argument("--model", required=True, help="a GGUF file, or demo")
    parser.add_argument("--peer", help="the llama-server binary; without it only ours is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int_list, default=streams, help=f"stream counts (default {shown})")
    parser.add_argument("--slots", type=int, default=slots, help=f"sequences of both servers (default {slots})")
    parser.add_argument("--n-ctx", type=int, default=n_ctx, help=f"context of one slot (default {n_ctx})")
    parser.add_argument(
        "--prompt-tokens", type=int, default=prompt_tokens, help=f"prompt of the streams (default {prompt_tokens})"
    )
    parser.add_argument("--gen", type=int, default=gen, help=f"tokens per stream (default {gen})")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind per round (default 3)")
    parser.add_argument("--port", type=int, default=8200)
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another key of our model's config",
    )
    return parser


def our_spec(args: argparse.Namespace, path: str) -> dict[str, Any]:
    """Our model, set up as llama-server is."""
    return {
        "id": MODEL_ID, "path": path, "n_ctx": args.n_ctx, "n_parallel": args.slots, "n_threads": args.threads,
        "flash_attn": True, "type_k": "f16", "type_v": "f16", **dict(args.set),
    }  # fmt: skip


def make_server(kind: str, args: argparse.Namespace, path: str, spec: dict[str, Any]) -> Server:
    """The server of that kind, "ours" or "peer"; their ports are neighbours."""
    if kind == "ours":
        return Ours({"models": [spec]}, port=args.port)
    return Peer(args.peer, path, threads=args.threads, slots=args.slots, n_ctx=args.n_ctx, port=args.port + 1)


def main() -> None:
    parser = comparison_parser(__doc__, streams=[1, 4, 8], slots=8, n_ctx=2048, prompt_tokens=256, gen=128)
    parser.add_argument("--ttft-tokens", type=int, default=800, help="prompt of the TTFT figure (default 800)")
    args = parser.parse_args()

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    info = inspect_gguf(path)
    plan = Plan(tuple(args.streams), args.prompt_tokens, args.ttft_tokens, args.gen, args.repeats)
    longest = max(PREFILL_TOKENS + 1, plan.ttft_tokens + 1, plan.prompt_tokens + plan.gen)
    if max(plan.streams, default=0) > args.slots or longest > args.n_ctx:
        parser.error(f"--slots must be at least the largest stream count and --n-ctx at least {longest}")

    spec = our_spec(args, path)

    def make(kind: str) -> Server:
        return make_server(kind, args, path, spec)

    figures = Figures()
    figures.extra["settings"] = {"ours": spec, "peer": args.peer and os.path.basename(args.peer)}
    rounds: dict[str, list[Measured]] = defaultdict(list)
    kinds = ["ours", "peer"] if args.peer else ["ours"]
    for turn in range(args.rounds):
        for kind in kinds if turn % 2 == 0 else reversed(kinds):
            say(f"round {turn + 1} of {args.rounds}: {kind}")
            with make(kind) as server:
                rounds[kind].append(measure(server, plan, PromptMaker(info.n_vocab, seed=turn), args.slots))
    summarise(figures, {kind: rounds[kind] for kind in kinds})
    figures.report(args.json)


if __name__ == "__main__":
    main()
