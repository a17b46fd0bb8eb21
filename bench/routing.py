"""Agents at work on several replicas: what routing by prefix saves against Serve's own routing.
Over HTTP, chat with tools.

    python bench/routing.py [--model MODEL.gguf] [--replicas 2] [--conversations 24] [--turns 8]
    [--rounds 1] [--store off,on] [--json FILE]

A trace of conversations is made once from `--seed` and replayed on each server: each belongs to one
of `--families` (a system prompt with tools that many share), starts at its time, and in every turn
sends its whole history and new words, reads the reply as a stream, thinks and goes on. Some turns
are followed by a side request (a title, say) that has its own short prompt. The clients wait for
replies, so a slow server is asked less often, not more. `routed` has `routing.enabled`, `plain` has
not; they take turns, `--rounds` each.

STORE is off (what is reused was in a context: replicas that share no store, or prompts that are in
no tier) or on (a RAM tier that all replicas of this machine share, which makes up for bad routing
within one machine).

STORE.WHO.hit            cached tokens / prompt tokens, of all requests
STORE.WHO.prefilled      tokens of prompts that were computed
STORE.WHO.ttft_p50, _p95 milliseconds to the first token
STORE.WHO.wall           seconds from the first request to the last end
STORE.WHO.share          requests of the replica that got most / of all
STORE.ratio.*            routed / plain: hit is better above 1, the others below

Medians over the rounds. Fails when, without a store, routing does not win all of hit, prefilled and
both TTFTs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from harness import Figures, add_place_options, make_parser, median, percentile, say
from servers import Ours, in_new_process
from shared_prefix import all_up
from stream_client import Connection, Stream, encode_request, parse_reply, parse_stream

from deployments.jobs.remote_model import RemoteModel
from erllama.demo import demo_model_path

MODEL_ID = "bench"
_TEXT = (
    "river stone paper garden window market letter winter summer bridge engine doctor number family people morning evening silver "
    "yellow orange purple simple little ancient modern quiet village kitchen captain soldier teacher student machine science "
    "history picture journey mountain valley forest island harbour weather story question answer reason result moment minute"
)
WORDS = _TEXT.split()
WHO = ("routed", "plain")
MEASURES = ("hit", "prefilled", "ttft_p50", "ttft_p95")


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user says, what he does besides, and how long he thinks before the next one."""

    words: str
    side: str | None
    think_s: float


@dataclass(frozen=True, slots=True)
class Conversation:
    start_s: float
    family: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """`systems` are the system prompts of the families. Two traces of the same arguments are
    equal.
    """

    systems: tuple[str, ...]
    conversations: tuple[Conversation, ...]
    reply: int


@dataclass(frozen=True, slots=True)
class Run:
    """One replay."""

    hit: float
    prefilled: int
    ttft_p50: float
    ttft_p95: float
    wall: float
    share: float
    n_requests: int


def text(words: random.Random, n: int) -> str:
    return " ".join(words.choice(WORDS) for _ in range(n))


def make_trace(args: argparse.Namespace) -> Trace:
    chance = random.Random(args.seed)

    def turn() -> Turn:
        side = f"Give a title to this: {text(chance, 12)}" if chance.random() < args.side else None
        return Turn(
            text(chance, chance.randint(args.user // 2, args.user * 3 // 2)), side, chance.expovariate(1 / args.think)
        )

    def conversation() -> Conversation:
        turns = tuple(turn() for _ in range(chance.randint(args.turns // 2, args.turns)))
        return Conversation(chance.uniform(0, args.ramp), chance.randrange(args.families), turns)

    systems = tuple(f"You are assistant number {i}. {text(chance, args.system)}" for i in range(args.families))
    return Trace(systems, tuple(conversation() for _ in range(args.conversations)), args.reply)


def tools_of(family: int) -> list[dict[str, Any]]:
    properties = {
        name: {"type": "string", "description": f"The {name}."} for name in WORDS[family * 5 : family * 5 + 3]
    }
    names = [f"{verb}_{WORDS[family * 7]}" for verb in ("get", "set")]
    parameters = {"type": "object", "properties": properties}
    return [
        {"type": "function", "function": {"name": n, "description": f"Call {n}.", "parameters": parameters}}
        for n in names
    ]


# --- the replay -----------------------------------------------------------------------------------


async def chat(port: int, messages: Sequence[dict[str, str]], reply: int, tools: list[dict[str, Any]] | None) -> Stream:
    body: dict[str, Any] = {
        "model": MODEL_ID, "messages": list(messages), "max_tokens": reply, "stream": True, "temperature": 0,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if tools:
        body["tools"] = tools
    connection = await Connection.open(port)
    try:
        return parse_stream(parse_reply(await connection.request(encode_request("POST", "/v1/chat/completions", body))))
    finally:
        connection.abort()


async def converse(port: int, trace: Trace, conversation: Conversation, done: list[Stream]) -> None:
    await asyncio.sleep(conversation.start_s)
    messages = [{"role": "system", "content": trace.systems[conversation.family]}]
    tools = tools_of(conversation.family)
    for turn in conversation.turns:
        messages.append({"role": "user", "content": turn.words})
        done.append(await chat(port, messages, trace.reply, tools))
        messages.append({"role": "assistant", "content": done[-1].text or "Done."})
        if turn.side is not None:
            done.append(await chat(port, [{"role": "user", "content": turn.side}], trace.reply, None))
        await asyncio.sleep(turn.think_s)


async def replay(port: int, trace: Trace) -> list[Stream]:
    done: list[Stream] = []
    async with asyncio.TaskGroup() as group:
        for conversation in trace.conversations:
            group.create_task(converse(port, trace, conversation, done))
    return done


async def warm_up(port: int, n: int) -> None:
    chance = random.Random(0)
    await asyncio.gather(*(chat(port, [{"role": "user", "content": text(chance, 40)}], 4, None) for _ in range(n)))


def admitted(remote: RemoteModel) -> list[int]:
    return [stats.counts.requests_admitted for stats in remote.stats()]


def drive(spec: dict[str, Any], tiers: Sequence[dict[str, Any]], routed: bool, trace: Trace, port: int) -> Run:
    """The whole trace on a server of its own."""
    args = {"models": [spec], "store": {"tiers": list(tiers)}, "routing": {"enabled": routed}}
    with Ours(args, port=port) as server, server.connected():
        remote = RemoteModel.connect(MODEL_ID)
        all_up(remote, spec["num_replicas"])
        asyncio.run(warm_up(port, 4 * spec["num_replicas"]))
        before = admitted(remote)  # in an order that stays while no replica comes or goes
        started = time.monotonic()
        streams = asyncio.run(replay(port, trace))
        wall_s = time.monotonic() - started
        requests = [b - a for a, b in zip(before, admitted(remote), strict=True)]
    return run_of(streams, requests, wall_s)


def run_of(streams: Sequence[Stream], requests: Sequence[int], wall_s: float) -> Run:
    n_prompt = sum(stream.prompt_tokens for stream in streams)
    n_cached = sum(stream.cached_tokens for stream in streams)
    ttft_ms = [stream.ttft_s * 1e3 for stream in streams]
    return Run(
        hit=n_cached / n_prompt,
        prefilled=n_prompt - n_cached,
        ttft_p50=percentile(ttft_ms, 50),
        ttft_p95=percentile(ttft_ms, 95),
        wall=wall_s,
        share=max(requests) / sum(requests),
        n_requests=len(streams),
    )


# --- figures --------------------------------------------------------------------------------------

UNITS = {"hit": "1", "prefilled": "tokens", "ttft_p50": "ms", "ttft_p95": "ms", "wall": "s", "share": "1"}


def summarise(figures: Figures, store: str, runs: dict[str, list[Run]]) -> list[str]:
    """Add the figures of one kind of store; where routing lost."""
    for who in WHO:
        for name, unit in UNITS.items():
            figures.add(f"{store}.{who}.{name}", median(getattr(run, name) for run in runs[who]), unit)
    figures.extra.setdefault("rounds", {})[store] = {who: [asdict(run) for run in runs[who]] for who in WHO}
    lost = []
    for name in MEASURES:
        ours, theirs = (figures.get(f"{store}.{who}.{name}") for who in WHO)
        figures.add_ratio(f"{store}.ratio.{name}", ours, theirs)
        assert ours is not None
        assert theirs is not None
        if not (ours > theirs if name == "hit" else ours < theirs):
            lost.append(f"store {store}: {name} is {ours:.4g} routed and {theirs:.4g} plain")
    return lost if store == "off" else []


def run_store(store: str, spec: dict[str, Any], trace: Trace, args: argparse.Namespace) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {who: [] for who in WHO}
    for number in range(args.rounds):
        for who in WHO if number % 2 == 0 else reversed(WHO):
            with tempfile.TemporaryDirectory(prefix="bench-routing-", dir=args.ram_dir) as ram:
                tiers = [{"url": ram, "max_bytes": "2GiB"}] if store == "on" else []
                run = in_new_process(drive, spec, tiers, who == "routed", trace, args.port)
            runs[who].append(run)
            say(f"  store {store}, {who}: {run}")
    return runs


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="demo", help="a GGUF file with a chat template, or demo (default)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--n-parallel", type=int, default=8, help="sequences of a replica (default 8)")
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--families", type=int, default=3, help="system prompts (default 3)")
    parser.add_argument(
        "--turns",
        type=int,
        default=8,
        help="at most so many turns of a conversation, half as many at least (default 8)",
    )
    parser.add_argument(
        "--system", type=int, default=60, help="words of a system prompt, some three tokens each (default 60)"
    )
    parser.add_argument("--user", type=int, default=20, help="words of a user's turn, more or less (default 20)")
    parser.add_argument("--reply", type=int, default=32, help="tokens of a reply at most (default 32)")
    parser.add_argument("--think", type=float, default=2.0, help="seconds between turns, exponential (default 2)")
    parser.add_argument(
        "--ramp", type=float, default=30.0, help="seconds within which conversations start (default 30)"
    )
    parser.add_argument(
        "--side", type=float, default=0.25, help="share of turns that are followed by a side request (default 0.25)"
    )
    parser.add_argument("--store", default="off", help="off, on or off,on (default off)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    add_place_options(parser, ram=True)
    parser.add_argument("--port", type=int, default=8260)
    args = parser.parse_args()
    stores = args.store.split(",")
    if not set(stores) <= {"off", "on"}:
        parser.error(f"--store takes off and on, not {args.store!r}")

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    spec = {
        "id": MODEL_ID, "path": path, "n_ctx": args.n_ctx, "n_parallel": args.n_parallel, "num_replicas": args.replicas,
        "num_cpus": 0.25, "n_threads": 1,
    }  # fmt: skip
    trace = make_trace(args)
    figures = Figures()
    figures.add("requests", sum(1 + (turn.side is not None) for c in trace.conversations for turn in c.turns), "1")
    failures: list[str] = []
    for store in stores:
        failures += summarise(figures, store, run_store(store, spec, trace, args))
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
