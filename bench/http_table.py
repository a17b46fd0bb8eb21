"""How HTTP grows: requests per second and CPU per request with several ingress replicas, and the
memory of streams that wait.

    python bench/http_table.py [--ingress 1,2,4] [--connections 16] [--seconds 4] [--rounds 3]
    [--idle 0,250,500,1000] [--json FILE]

The real HTTP path and engine around a backend that takes no time (overhead_app.py). One cluster for
each number of ingress replicas, in turns that go up and down again, so that a machine that slows
down does not favour one of them.

ingressN.requests       completions of 16 prompt and 4 reply tokens per second, `--connections` at a time
ingressN.p50            milliseconds of one, the median
ingressN.PART_us        CPU microseconds per request of proxy (HAProxy and ProxyActor), ingress, replica,
                        and ray (all other processes of the cluster); client is this process
ratio.requests_N        requests per second of N ingress replicas / of the first number
ratio.cpu_N             CPU of proxy, ingress and replica per request, in the same way

Then streams that wait in the queue of a model whose one sequence is taken; a keep-alive is sent to
each every `--keepalive-s`. `--idle` many are opened, more and more of them, then all are closed; and
all of it once again, since what a second round adds over the first is what leaks.

idle.PART.N             MB (PSS) of a part while N streams wait; `.again` in the second round
idle.PART.closed        when all are closed
idle.PART.kB            kB per stream, between the least and the largest number
idle.PART.cpu_us        CPU microseconds per stream and keep-alive, with the largest number

The client has as many sockets: `ulimit -n` must be above them.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness import Figures, int_list, make_parser, median, percentile, say
from overhead import PARTS, PROMPT, UNARY_STEP, UNARY_TOKENS, body, drive, model_id, warm_up
from servers import Ours, component, cpu_of
from stream_client import Connection, Raw, Truncated, encode_request

from erllama.testing.random_gguf import write_random_model
from erllama.testing.random_shape import SHAPES

HELD = "held"
N_CTX = 16_384
HELD_STEP_MS = 100
OPEN_AT_ONCE = 125
SETTLE_S = 3.0


@contextmanager
def serving(path: Path, n_ingress: int, args: Any) -> Iterator[Ours]:
    """The application with a model for requests and one whose only sequence can be held."""
    models = [
        {"id": model_id(UNARY_STEP), "path": str(path), "n_ctx": N_CTX, "n_parallel": 64},
        {
            "id": HELD,
            "path": str(path),
            "n_ctx": N_CTX,
            "n_parallel": 1,
            "max_queue": 2 * max(args.idle, default=0) + 1,
        },
    ]
    app = {
        "models": models,
        "step_ms": {model_id(UNARY_STEP): 0, HELD: HELD_STEP_MS},
        "http": {"ingress_replicas": n_ingress, "keepalive_s": args.keepalive_s},
    }
    with Ours(app, port=args.port, import_path="overhead_app:build_app") as server:
        warm_up(server, [UNARY_STEP])
        yield server


# --- requests -------------------------------------------------------------------------------------


def measure_requests(server: Ours, args: Any) -> dict[str, float]:
    """Of one cluster: rates and costs per request."""
    make = partial(body, UNARY_STEP, UNARY_TOKENS, stream=False)
    asyncio.run(drive(server.port, make, args.connections, 1.0, stream=False))
    with cpu_of(server, component) as used:
        tally = asyncio.run(drive(server.port, make, args.connections, args.seconds, stream=False))
    found = {f"{part}_us": 1e6 * used.get(part, 0.0) / tally.requests for part in (*PARTS, "ray")}
    found["client_us"] = 1e6 * tally.client_cpu_s / tally.requests
    found["requests"] = tally.requests / tally.wall_s
    found["p50"] = percentile(tally.latencies_ms or [], 50)
    return found


def report_requests(turns: dict[int, list[dict[str, float]]], figures: Figures) -> None:
    units = {"requests": "1/s", "p50": "ms"}
    first = min(turns)
    middle = {n: {name: median([turn[name] for turn in of_n]) for name in of_n[0]} for n, of_n in turns.items()}
    for n, values in middle.items():
        for name, value in values.items():
            figures.add(f"ingress{n}.{name}", value, units.get(name, "us/req"))
    for n, values in middle.items():
        cpu, least = (sum(of[f"{part}_us"] for part in PARTS) for of in (values, middle[first]))
        figures.add_ratio(f"ratio.requests_{n}", values["requests"], middle[first]["requests"])
        figures.add_ratio(f"ratio.cpu_{n}", cpu, least)


# --- streams that wait ----------------------------------------------------------------------------


def memory(server: Ours) -> dict[str, float]:
    """MB (PSS) of each part."""
    found = dict.fromkeys(PARTS, 0.0)
    for row in server.usage(with_pss=True):
        part = component(row.name)
        if part in found:
            found[part] += (row.pss or row.rss) / 1e6
    return found


def waiting_request(number: int, max_tokens: int) -> bytes:
    """Of a prompt that no other has: identical requests are computed once."""
    prompt = [97 + number // 676 % 26, 97 + number // 26 % 26, 97 + number % 26, *PROMPT[3:]]
    more = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    return encode_request("POST", "/v1/completions", {"model": HELD, "prompt": prompt, **more})


class Waiting:
    """Streams that are open and of which nothing but keep-alives is expected."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[tuple[Connection, asyncio.Task[Raw]]] = []

    async def grow_to(self, n: int) -> None:
        """Open streams until there are `n`; back when the server has answered all of them. The first one
        holds the sequence.
        """
        if n and not self._open:
            await self._begin(0)
        while len(self._open) < n:
            first = len(self._open)
            await asyncio.gather(*(self._begin(number) for number in range(first, min(first + OPEN_AT_ONCE, n))))

    async def _begin(self, number: int) -> None:
        connection = await Connection.open(self._port)
        answered = asyncio.Event()
        task = asyncio.ensure_future(
            connection.request(waiting_request(number, 16_000 if number == 0 else 4), lambda raw: answered.set())
        )
        self._open.append((connection, task))
        seen = asyncio.ensure_future(answered.wait())
        await asyncio.wait((task, seen), timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert answered.is_set(), f"stream {number} was not answered: {task}"

    async def close(self) -> None:
        for connection, _ in self._open:
            connection.abort()
        ended = await asyncio.gather(*(task for _, task in self._open), return_exceptions=True)
        by_itself = [(n, one) for n, one in enumerate(ended) if not isinstance(one, Truncated)]
        for number, one in by_itself[:3]:
            say(f"stream {number}:", one.reads[-3:] if isinstance(one, Raw) else repr(one))
        assert not by_itself, f"{len(by_itself)} streams ended by themselves"
        self._open.clear()


async def measure_idle(server: Ours, args: Any, figures: Figures) -> None:
    shots: dict[str, dict[str, float]] = {}
    for turn in ("", ".again"):
        waiting = Waiting(server.port)
        for n in args.idle:
            await waiting.grow_to(n)
            await asyncio.sleep(SETTLE_S)
            shots[f"{n}{turn}"] = memory(server)
            say(f"  {n} streams wait{turn}: {shots[f'{n}{turn}']}")
        if not turn:
            await _measure_keepalives(server, args, figures)
        await waiting.close()
        await asyncio.sleep(SETTLE_S)
        shots[f"closed{turn}"] = memory(server)
    low, high = min(args.idle), max(args.idle)
    for part in PARTS:
        for name, shot in shots.items():
            figures.add(f"idle.{part}.{name}", shot[part], "MB")
        for turn in ("", ".again"):
            grown = shots[f"{high}{turn}"][part] - shots[f"{low}{turn}"][part]
            figures.add(f"idle.{part}.kB{turn}", 1e3 * grown / (high - low), "kB")


async def _measure_keepalives(server: Ours, args: Any, figures: Figures) -> None:
    seconds = 3 * args.keepalive_s
    with cpu_of(server, component) as used:
        await asyncio.sleep(seconds)
    n_sent = max(args.idle) * seconds / args.keepalive_s
    for part in PARTS:
        figures.add(f"idle.{part}.cpu_us", 1e6 * used.get(part, 0.0) / n_sent, "us")


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--ingress", type=int_list, default=[1, 2, 4], help="numbers of replicas (default 1,2,4)")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each number")
    parser.add_argument("--idle", type=int_list, default=[0, 250, 500, 1000], help="streams that wait")
    parser.add_argument("--keepalive-s", type=float, default=2.0)
    parser.add_argument("--port", type=int, default=8210)
    args = parser.parse_args()
    figures, turns = Figures(), dict[int, list[dict[str, float]]]()
    with tempfile.TemporaryDirectory(prefix="bench-http-") as directory:
        path = Path(directory, "vocab.gguf")
        write_random_model(path, SHAPES["tiny-qwen2"])
        for turn in range(args.rounds):
            for n in args.ingress if turn % 2 == 0 else args.ingress[::-1]:
                with serving(path, n, args) as server:
                    for _ in range(2):
                        turns.setdefault(n, []).append(measure_requests(server, args))
                        say(f"  {n} ingress replicas: {turns[n][-1]['requests']:.0f} requests per second")
                    if n == 1 and turn == 0 and args.idle:
                        asyncio.run(measure_idle(server, args, figures))
                time.sleep(1)
    report_requests(turns, figures)
    return figures.conclude(args.json, [])


if __name__ == "__main__":
    sys.exit(main())
