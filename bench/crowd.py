"""Many clients that come and go: does the server lose a sequence, leak memory, or answer anything
but a reply or 429?

    python bench/crowd.py [--clients 64] [--seconds 120] [--model demo] [--json FILE]

Starts the real application with few sequences and a short queue, so that it is always full, and
lets every client loop: a chat or a completion, streamed or not, read to the end or cancelled by
closing the socket: before the first token, in mid-stream, while a whole reply is awaited. After a
429 a client waits as long as Retry-After says. When the time is up the clients stop and the server
has `--settle` seconds to become idle.

Passes (exit status 0) when
- every reply that was not cancelled is complete and correct in form (`errors` is 0), every 429
  carries Retry-After;
- afterwards the engine is idle with every sequence id free and nothing queued, none failed, every
  admitted one finished;
- no server process came or went, and the memory of replica and ingress grew by less than
  `--max-growth` from the warm-up to the end.

Memory is PSS where the kernel tells it (shared pages count in part), else RSS; taken after the
warm-up, in the middle and at the end. Growth is end/start. A Python server fills its caches in the
first minute, so short runs grow by a few percent.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from harness import Figures, make_parser, percentile, say
from servers import Ours, component
from stream_client import Connection, Raw, Reply, Truncated, encode_request, parse_reply, parse_stream

from deployments.jobs.remote_model import RemoteModel
from erllama.stats import EngineStats, ModelStatus

MODEL_ID = "crowd"
WORDS = (
    "red",
    "blue",
    "seven",
    "river",
    "stone",
    "Ada",
    "Bob",
    "Paris",
    "Oslo",
    "tea",
    "bread",
    "because",
    "when",
    "the",
    "likes",
    "lives in",
    "has",
)
SHOWN_ERRORS = 20


class Cut(StrEnum):
    """When a client goes away."""

    NEVER = "never"
    EARLY = "before the first token"
    MIDDLE = "in mid-stream"
    WAITING = "while a whole reply is awaited"


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)

    def error(self, text: str) -> None:
        self.counts["errors"] += 1
        if len(self.errors) < SHOWN_ERRORS:
            self.errors.append(text)
            say("error:", text)


def make_request(rng: random.Random, *, stream: bool, long: bool) -> bytes:
    """A chat or a completion of random words, short or long, greedy or sampled. `long` leaves time
    to be cut in the middle.
    """
    text = " ".join(rng.choices(WORDS, k=rng.choice((5, 20, 80, 300))))
    body: dict[str, Any] = {
        "model": MODEL_ID,
        "max_tokens": 128 if long else rng.choice((1, 8, 32, 128)),
        "temperature": rng.choice((0, 0.8)),
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if long or rng.random() < 0.3:
        body["ignore_eos"] = True
    if rng.random() < 0.5:
        return encode_request("POST", "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]})
    return encode_request("POST", "/v1/completions", body | {"prompt": text})


async def one_request(port: int, rng: random.Random, tally: Tally) -> float:
    """One request to whatever end; seconds to wait before the next."""
    stream = rng.random() < 0.7
    cut = (
        rng.choices((Cut.NEVER, Cut.EARLY, Cut.MIDDLE), (0.5, 0.2, 0.3))[0]
        if stream
        else rng.choice((Cut.NEVER, Cut.WAITING))
    )
    tally.counts["requests"] += 1
    connection = await Connection.open(port)
    reads_left = rng.randint(1, 6)

    def on_read(_: Raw) -> None:
        nonlocal reads_left
        reads_left -= 1
        if cut is Cut.MIDDLE and reads_left <= 0:
            connection.abort()

    task = asyncio.ensure_future(connection.request(make_request(rng, stream=stream, long=cut is Cut.MIDDLE), on_read))
    try:
        if cut in (Cut.EARLY, Cut.WAITING):
            await asyncio.wait((task,), timeout=rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.5))))
            if not task.done():
                connection.abort()
        raw = await task
    except Truncated as error:
        if not connection.closed or cut is Cut.NEVER:
            tally.error(f"cut={cut} stream={stream}: {error}")
        else:
            tally.counts["cancelled"] += 1
            tally.counts[f"cancelled_{cut.name.lower()}"] += 1
        return 0.0
    finally:
        connection.abort()
    try:
        return _judge(parse_reply(raw), stream, tally)
    except (ValueError, KeyError, IndexError) as error:
        tally.error(f"stream={stream}: {error!r}")
        return 0.1


def _judge(reply: Reply, stream: bool, tally: Tally) -> float:
    if reply.status == 429:
        tally.counts["refused"] += 1
        return float(reply.headers["retry-after"])
    if stream:
        parsed = parse_stream(reply)
        tally.ttft_ms.append(parsed.ttft_s * 1e3)
        tokens = parsed.completion_tokens
    elif reply.status == 200:
        tokens = json.loads(reply.body)["usage"]["completion_tokens"]
    else:
        raise ValueError(f"HTTP {reply.status}: {reply.body[:300]!r}")
    tally.counts["completed"] += 1
    tally.counts["tokens"] += tokens
    return 0.0


async def crowd(port: int, n_clients: int, seconds: float, seed: int, tally: Tally) -> None:
    """`n_clients` until the time is up; requests that run then are read or cancelled as they were
    meant to be.
    """
    deadline = time.monotonic() + seconds

    async def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        while (left := deadline - time.monotonic()) > 0:
            try:
                wait_s = await one_request(port, rng, tally)
            except OSError as error:
                tally.error(f"cannot connect: {error!r}")
                wait_s = 1.0
            await asyncio.sleep(min(wait_s, max(left, 0.0)))

    await asyncio.gather(*(client(number) for number in range(n_clients)))


def memory(server: Ours) -> dict[str, float]:
    """MB of replica and ingress."""
    totals: dict[str, float] = {}
    for row in server.usage(with_pss=True):
        part = component(row.name)
        if part in ("replica", "ingress"):
            totals[f"{part}.pss"] = totals.get(f"{part}.pss", 0.0) + row.pss / 1e6
            totals[f"{part}.rss"] = totals.get(f"{part}.rss", 0.0) + row.rss / 1e6
    return totals


def settled(model: RemoteModel, timeout_s: float) -> tuple[EngineStats, float]:
    """The engine's stats when it is idle, or the last ones when it does not become so; and the
    seconds that passed.
    """
    started = time.monotonic()
    while True:
        stats = model.stats()[0]
        waited = time.monotonic() - started
        idle = stats.status is ModelStatus.IDLE and stats.n_queued == 0 and stats.n_free_seq_ids == stats.n_parallel
        if idle or waited > timeout_s:
            return stats, waited
        time.sleep(0.1)


def run(server: Ours, args: Any, figures: Figures) -> list[str]:
    """The soak on a running server; the reasons for which it failed."""
    with server.connected():
        model = RemoteModel.connect(MODEL_ID)
        say("warm up")
        asyncio.run(crowd(server.port, args.clients, args.warm_up, 1, Tally()))
        settled(model, args.settle)
        n_processes = _n_workers(server)
        shots = [memory(server)]
        tally = Tally()
        for half in (2, 3):
            say(f"half {half - 1} of 2")
            asyncio.run(crowd(server.port, args.clients, args.seconds / 2, half, tally))
            stats, idle_after_s = settled(model, args.settle)
            shots.append(memory(server))

    for name in ("requests", "completed", "cancelled", "refused", "errors", "tokens"):
        figures.add(name, tally.counts[name], "1")
    for cut in (Cut.EARLY, Cut.MIDDLE, Cut.WAITING):
        figures.add(f"cancelled_{cut.name.lower()}", tally.counts[f"cancelled_{cut.name.lower()}"], "1")
    figures.add("ttft_p50", percentile(tally.ttft_ms, 50), "ms")
    figures.add("ttft_p99", percentile(tally.ttft_ms, 99), "ms")
    figures.add("idle_after", idle_after_s, "s")
    figures.add("free_seq_ids", stats.n_free_seq_ids, "1")
    figures.add("queued", stats.n_queued, "1")
    counts = stats.counts
    for name in ("requests_admitted", "requests_finished", "requests_cancelled", "requests_failed"):
        figures.add(f"engine.{name}", getattr(counts, name), "1")
    for name in shots[0]:
        for when, shot in zip(("start", "middle", "end"), shots, strict=True):
            figures.add(f"{name}.{when}", shot[name], "MB")
    for name in shots[0]:
        figures.add_ratio(f"growth.{name}", shots[-1][name], shots[0][name])
    figures.extra["errors"] = tally.errors

    failures = []
    if tally.counts["errors"]:
        failures.append(f"{tally.counts['errors']} errors, the first: {tally.errors[0]}")
    if stats.status is not ModelStatus.IDLE or stats.n_queued or stats.n_free_seq_ids != stats.n_parallel:
        failures.append(f"not idle after {idle_after_s:.0f} s: {stats}")
    if counts.requests_failed:
        failures.append(f"the engine failed {counts.requests_failed} requests")
    if counts.requests_admitted > counts.requests_finished:
        failures.append(f"{counts.requests_admitted} admitted, {counts.requests_finished} finished")
    if _n_workers(server) != n_processes:
        failures.append("a server process died or was added")
    measure = "pss" if all(shot[name] for shot in shots for name in shot if name.endswith("pss")) else "rss"
    grown = [figure for figure in figures.ratios if figure.name.endswith(measure) and figure.value > args.max_growth]
    failures += [f"{figure.name} is {figure.value:.3f}, at most {args.max_growth} is allowed" for figure in grown]
    if not tally.counts["completed"] or not tally.counts["cancelled"]:
        failures.append("nothing was completed, or nothing cancelled")
    return failures


def _n_workers(server: Ours) -> Counter[str]:
    return Counter(part for part in (component(row.name) for row in server.usage()) if part != "ray")


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--warm-up", type=float, default=15.0, help="seconds of the same traffic before memory is read")
    parser.add_argument("--settle", type=float, default=10.0, help="seconds in which the engine must become idle")
    parser.add_argument("--model", default="demo", help="a GGUF file, or demo")
    parser.add_argument("--n-parallel", type=int, default=4)
    parser.add_argument("--max-queue", type=int, default=32, help="short, so that 429 happens")
    parser.add_argument(
        "--max-growth", type=float, default=1.15, help="memory at the end over memory after the warm-up"
    )
    parser.add_argument("--port", type=int, default=8220)
    args = parser.parse_args()

    path = args.model if args.model == "demo" else os.path.abspath(args.model)
    spec = {"id": MODEL_ID, "path": path, "n_ctx": 2048, "n_parallel": args.n_parallel, "max_queue": args.max_queue}
    figures = Figures()
    with Ours({"models": [spec]}, port=args.port) as server:
        failures = run(server, args, figures)
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
