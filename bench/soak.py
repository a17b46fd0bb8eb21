"""Three replicas, a `kill -9` every 20 seconds, pressure on the memory, mixed traffic: what do the
clients notice?

    python bench/soak.py [--seconds 900] [--kill-every 20] [--pulse-every 60] [--clients 6] [--json
    FILE]

Before anything is killed every request of the pool is asked once: its reply is what it must be ever
after, token for token. Then the clients loop over the pool, streamed or not, some going away in
mid-stream, while
- every `--kill-every` seconds one process is killed: a replica of the model, now and then the
  memory scheduler;
- every `--pulse-every` seconds a ballast process takes memory for a while, so that the scheduler
  frees what is idle.

requests, completed, aborted     what the clients sent; `aborted` by themselves
failed                           anything but a whole reply: an error, a broken connection, a status
                                 other than 200 (aim 0)
differing                        replies that are not the expected ones: tokens lost, repeated,
                                 others (aim 0)
wrong                            questions answered wrong that were answered right before (aim 0)
failovers                        calls that went on from another replica
gap_*, ttft_*                    longest pause inside a stream, time to its first event; a kill
                                 shows as a pause
kills.*, released.*              what was killed; what the scheduler did, bytes by kind
memory.*                         PSS (or RSS) of all processes of the server: start, peak, end,
                                 without the page cache
left.*                           afterwards: running or queued requests, ids that are not free,
                                 temporary files in the store
The store's tiers lie under --ram-dir and --disk-dir and are removed at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
from harness import Figures, add_place_options, make_parser, percentile, say
from servers import Ours, component
from soak_pool import Answer, Ask, make_pool, send

from deployments.jobs.cluster import Cluster

MODEL_ID = "soak"
SHOWN = 20
_KILL_SCHEDULER_SHARE = 0.15
_KILL_BUSY_SHARE = 0.8  # of the killed replicas, those that compute the most at that moment
_PULSE_S = 15.0
_BALLAST = "import sys,time; b=bytearray(int(sys.argv[1])); b[::4096]=b'x'*len(b[::4096]); print('ready',flush=True); time.sleep(3600)"


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    cached: int = 0
    prompt: int = 0

    def problem(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        if len(self.problems) < SHOWN:
            self.problems.append(f"{kind}: {text}")
        say(f"{kind}: {text}")


@dataclass(frozen=True, slots=True)
class Case:
    """A request of the pool with the reply that it must have."""

    ask: Ask
    expected: Answer
    right: bool


async def expected_replies(port: int, pool: list[Ask]) -> list[Case]:
    cases = []
    for ask in pool:
        answer = await send(port, ask, stream=True)
        assert answer is not None
        cases.append(Case(ask, answer, ask.sample is not None and ask.sample.is_right(answer.text)))
    return cases


async def one(port: int, case: Case, rng: random.Random, tally: Tally) -> None:
    """One request to whatever end, and what is wrong with it."""
    stream = rng.random() < 0.75
    abort_after = rng.randint(1, 6) if stream and rng.random() < 0.1 else None
    tally.counts["requests"] += 1
    started = time.monotonic()
    try:
        answer = await send(port, case.ask, stream=stream, abort_after=abort_after)
    except (OSError, ValueError, KeyError, IndexError) as error:
        tally.problem("failed", f"stream={stream} after {time.monotonic() - started:.1f} s: {error!r}"[:500])
        return
    if answer is None:
        tally.counts["aborted"] += 1
        return
    tally.counts["completed"] += 1
    tally.counts["tokens"] += answer.tokens
    tally.cached += answer.cached_tokens
    tally.prompt += answer.prompt_tokens
    if stream:
        tally.ttft_ms.append(answer.ttft_ms)
        tally.gap_ms.append(answer.gap_ms)
    if (answer.text, answer.tokens) != (case.expected.text, case.expected.tokens):
        tally.problem("differing", f"stream={stream}: {difference(answer, case.expected)}")
    if case.right and case.ask.sample is not None and not case.ask.sample.is_right(answer.text):
        tally.problem("wrong", f"{answer.text!r:.80} instead of {case.ask.sample.expected!r:.80}")


def difference(got: Answer, expected: Answer) -> str:
    """Where two replies part."""
    at = next(
        (i for i, (a, b) in enumerate(zip(got.text, expected.text, strict=False)) if a != b),
        min(len(got.text), len(expected.text)),
    )
    context = slice(max(0, at - 20), at + 20)
    return f"{got.tokens}/{expected.tokens} tokens, from character {at}: {got.text[context]!r} / {expected.text[context]!r}"


async def clients(port: int, cases: list[Case], n: int, until: float, tally: Tally) -> None:
    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            await one(port, rng.choice(cases), rng, tally)
            await asyncio.sleep(rng.expovariate(4))

    await asyncio.gather(*(client(number) for number in range(n)))


async def killer(server: Ours, every_s: float, until: float, kills: Counter[str]) -> None:
    rng = random.Random(1)
    while (left := until - time.monotonic()) > every_s:
        await asyncio.sleep(min(every_s, left))
        part = "scheduler" if rng.random() < _KILL_SCHEDULER_SHARE else "replica"
        victims = [p for p in server.processes() if _part(p) == part]
        if victims:
            victim = await busiest(victims) if rng.random() < _KILL_BUSY_SHARE else rng.choice(victims)
            say(f"kill {part} {victim.pid}, one of {len(victims)}")
            victim.kill()
            kills[part] += 1


async def busiest(processes: list[psutil.Process]) -> psutil.Process:
    """The one that uses most of a core."""
    for process in processes:
        process.cpu_percent()
    await asyncio.sleep(0.2)
    return max(processes, key=lambda process: process.cpu_percent())


async def pulses(every_s: float, n_bytes: int, until: float, kills: Counter[str]) -> None:
    """Ballast for a while, again and again."""
    while until - time.monotonic() > every_s:
        await asyncio.sleep(every_s - _PULSE_S)
        ballast = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _BALLAST, str(n_bytes), stdout=subprocess.PIPE
        )
        try:
            assert ballast.stdout is not None
            await ballast.stdout.readline()
            say(f"ballast of {n_bytes >> 20} MiB")
            kills["pulses"] += 1
            await asyncio.sleep(_PULSE_S)
        finally:
            ballast.send_signal(signal.SIGKILL)
            await ballast.wait()


async def watch_memory(server: Ours, until: float, shots: list[float]) -> None:
    while time.monotonic() < until:
        shots.append(await asyncio.to_thread(memory_mb, server))
        await asyncio.sleep(5)


def memory_mb(server: Ours) -> float:
    rows = server.usage(with_pss=True)
    return sum(row.pss or row.rss for row in rows) / 1e6


def _part(process: psutil.Process) -> str:
    try:
        name = " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
    return "scheduler" if "ray::ServeReplica:erllama:scheduler" in name else component(name)


async def storm(
    server: Ours, args: Any, pool: list[Ask], tally: Tally, kills: Counter[str], shots: list[float]
) -> None:
    say(f"ask each of {len(pool)} requests once")
    cases = await expected_replies(server.port, pool)
    say(
        f"{sum(case.right for case in cases)} of {sum(case.ask.sample is not None for case in cases)} questions answered right"
    )
    shots.append(memory_mb(server))
    until = time.monotonic() + args.seconds
    await asyncio.gather(
        clients(server.port, cases, args.clients, until, tally),
        killer(server, args.kill_every, until, kills),
        pulses(args.pulse_every, args.pulse_mib << 20, until, kills),
        watch_memory(server, until, shots),
    )


def app_args(args: Any, ram: str, disk: str) -> dict[str, Any]:
    """Replicas of the demo model that keep what they compute, and a scheduler for which the ballast
    is too much.
    """
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    idle_mib = 2500  # what the application itself takes, with some room
    model = {
        "id": MODEL_ID, "path": "demo", "n_ctx": 2048, "n_parallel": 4, "num_replicas": args.replicas, "n_threads": 1, "num_cpus": 0.1,
        "type_k": "q8_0", "type_v": "q8_0",
    }  # fmt: skip
    total = used + ((idle_mib + args.pulse_mib // 2) << 20)
    return {
        "models": [model],
        "policy": {"min_tokens": 128, "cold_min_tokens": 128, "continued_interval": 128},
        "store": {
            "tiers": [{"url": f"file://{ram}", "max_bytes": "256MiB"}, {"url": f"file://{disk}", "max_bytes": "2GiB"}]
        },
        "scheduler": {
            "interval_s": 1.0,
            "total_bytes": total,
            "high": 0.9,
            "low": 0.8,
            "min_bytes": 1 << 20,
            "cooldown_s": 5.0,
            "gc_s": 60.0,
        },
    }


def settled(server: Ours, args: Any) -> dict[str, Any]:
    """When all replicas are back and idle, or time is up: what is left running, and what the
    scheduler did.
    """
    with server.connected():
        cluster, give_up = Cluster.connect(), time.monotonic() + args.settle
        while True:
            (model,) = cluster.status()
            free = sum(engine.n_free_seq_ids for engine in model.engines)
            whole = model.replicas == args.replicas and free == sum(engine.n_parallel for engine in model.engines)
            if (whole and not model.running and not model.queued) or time.monotonic() > give_up:
                break
            time.sleep(0.5)
        stores = [stats for stats in cluster.store_stats()[MODEL_ID] if stats is not None]
        return {
            "replicas": model.replicas,
            "running": model.running,
            "queued": model.queued,
            "ids_not_free": sum(engine.n_parallel for engine in model.engines) - free,
            "corrupt": sum(sum(stats.corrupt.values()) for stats in stores),
            "scheduler": cluster.scheduler_status(),
            "failovers": n_failovers(),
        }


def n_failovers() -> int:
    """Calls that the ingress sent on to another replica, as its log tells; only inside
    `connected`.
    """
    folder = Path(ray._private.worker._global_node.get_session_dir_path(), "logs", "serve")
    return sum(path.read_text().count("event=failover") for path in folder.glob("replica_erllama_ingress_*.log"))


def report(figures: Figures, tally: Tally, kills: Counter[str], shots: list[float], left: dict[str, Any]) -> None:
    for name in ("requests", "completed", "aborted", "failed", "differing", "wrong", "tokens"):
        figures.add(name, tally.counts[name], "1")
    figures.add("cached_share", tally.cached / max(1, tally.prompt), "1")
    figures.add("failovers", left.pop("failovers"), "1")
    for name, values in (("ttft", tally.ttft_ms), ("gap", tally.gap_ms)):
        for percent in (50, 95, 100):
            figures.add(f"{name}_p{percent}", percentile(values, percent), "ms")
    for name, n in sorted(kills.items()):
        figures.add(f"kills.{name}", n, "1")
    status = left.pop("scheduler")
    for kind, n_bytes in sorted(status.freed_bytes.items() if status is not None else ()):
        figures.add(f"released.{kind}.times", status.releases[kind], "1")
        figures.add(f"released.{kind}.bytes", n_bytes / 1e6, "MB")
    for name, value in (("start", shots[0]), ("peak", max(shots)), ("end", shots[-1])):
        figures.add(f"memory.{name}", value, "MB")
    for name, n in left.items():
        figures.add(f"left.{name}", n, "1")
    figures.add_ratio("growth.memory", shots[-1], shots[0])
    figures.extra["problems"] = tally.problems
    figures.extra["memory_mb"] = [round(shot) for shot in shots]


def failures(tally: Tally, left: dict[str, Any], args: Any, growth: float) -> list[str]:
    """Why the soak did not pass."""
    found = [f"{tally.counts[kind]} {kind}" for kind in ("failed", "differing", "wrong") if tally.counts[kind]]
    found += [
        f"{left[name]} {name} left" for name in ("running", "queued", "ids_not_free", "temporary_files") if left[name]
    ]
    if left["replicas"] != args.replicas:
        found.append(f"{left['replicas']} of {args.replicas} replicas are back")
    if growth > args.max_growth:
        found.append(f"memory grew by {growth:.3f}, at most {args.max_growth} is allowed")
    if not tally.counts["completed"]:
        found.append("nothing was completed")
    return found


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--kill-every", type=float, default=20.0)
    parser.add_argument("--pulse-every", type=float, default=60.0)
    parser.add_argument("--pulse-mib", type=int, default=1500)
    parser.add_argument("--questions", type=int, default=80)
    parser.add_argument(
        "--settle", type=float, default=60.0, help="seconds in which the cluster must become whole and idle"
    )
    parser.add_argument(
        "--max-growth", type=float, default=1.15, help="memory at the end over memory before the first kill"
    )
    parser.add_argument("--port", type=int, default=8221)
    add_place_options(parser, ram=True)
    args = parser.parse_args()

    pool = make_pool(
        MODEL_ID, 3, n_questions=args.questions, n_streams=args.questions // 2, n_chats=args.questions // 4
    )
    figures, tally, kills, shots = Figures(), Tally(), Counter[str](), list[float]()
    with tempfile.TemporaryDirectory(dir=args.ram_dir) as ram, tempfile.TemporaryDirectory(dir=args.disk_dir) as disk:
        with Ours(app_args(args, ram, disk), port=args.port) as server:
            asyncio.run(storm(server, args, pool, tally, kills, shots))
            left = settled(server, args)
            shots.append(memory_mb(server))
        left["temporary_files"] = sum(
            ".tmp" in name for folder in (ram, disk) for _, _, names in os.walk(Path(folder)) for name in names
        )
    report(figures, tally, kills, shots, left)
    return figures.conclude(args.json, failures(tally, left, args, shots[-1] / shots[0]))


if __name__ == "__main__":
    sys.exit(main())
