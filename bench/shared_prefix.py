"""Fifty conversations with one system prompt, all sent at the same moment: how often is the prompt
computed? Over HTTP.

    python bench/shared_prefix.py --model MODEL.gguf [--peer LLAMA_SERVER] [--conversations 50]
    [--system 2000] [--question 50]

The prompts are token ids: the same `--system` ids, then `--question` ids of their own. One replica
with `--n-parallel` sequences, then two, which share what they compute through the ram_file tier;
each gets `--threads` divided by the replicas. Every round has a new system prompt.

rN.prefilled         tokens that N replicas computed together: prompt_tokens - cached_tokens, by the
                     engines' counters
rN.prefilled.most    the same, of the replica that computed most
rN.requests.least    requests of the replica that got fewest
rN.wall              seconds from the first request to the last end
rN.ttft_p50, _max    milliseconds to the first token, over all conversations
rN.hits.WHERE        requests that took their prefix from there: live, ram_file, disk
peer.*               llama-server with as many slots as one replica has sequences; what it computed
                     is told by its usage
ideal, naive         the system prompt once and every question; every prompt whole
ratio.N/ideal        prefilled / ideal

Medians over the rounds. Fails when the replies' own usage tells other numbers than the engines.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from completions import ask_all
from harness import Figures, PromptMaker, add_place_options, int_list, make_parser, median, percentile, say
from servers import Ours, Peer, ServerFailed, in_new_process
from stream_client import Stream

from deployments.jobs.remote_model import RemoteModel
from erllama.demo import demo_model_path
from erllama.gguf.check import inspect_gguf
from erllama.stats import EngineStats

MODEL_ID = "bench"
WARM_UP_TOKENS = 64
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """One round. `computed` and `requests` have one entry per replica, `told` is what the replies'
    usage adds up to.
    """

    computed: tuple[int, ...]
    requests: tuple[int, ...]
    told: int
    wall_s: float
    ttft_ms: tuple[float, ...]
    hits: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every server is asked. Tokens."""

    n: int
    system: int
    question: int
    gen: int
    rounds: int
    n_vocab: int

    @property
    def ideal(self) -> int:
        return self.system + self.n * self.question

    @property
    def naive(self) -> int:
        return self.n * (self.system + self.question)

    def prompts(self, maker: PromptMaker) -> list[list[int]]:
        system = maker.make(self.system)
        return [system + maker.make(self.question) for _ in range(self.n)]


def crowd_of(streams: Sequence[Stream], before: Sequence[EngineStats], after: Sequence[EngineStats]) -> Crowd:
    """What the engines counted in between. Replicas come in the same order; without any, as for the
    peer, usage has to do.
    """
    told = sum(stream.prompt_tokens - stream.cached_tokens for stream in streams)
    computed = tuple(_computed(b) - _computed(a) for a, b in zip(before, after, strict=True))
    requests = tuple(
        b.counts.requests_admitted - a.counts.requests_admitted for a, b in zip(before, after, strict=True)
    )
    hits: Counter[str] = Counter()
    for a, b in zip(before, after, strict=True):
        for name, count in b.cache.hits.items():
            hits[name.partition(":")[2]] += count - a.cache.hits.get(name, 0)
    wall_s = (max(stream.end_ns for stream in streams) - min(stream.sent_ns for stream in streams)) / 1e9
    ttft_ms = tuple(stream.ttft_s * 1e3 for stream in streams)
    return Crowd(computed or (told,), requests or (len(streams),), told, wall_s, ttft_ms, dict(+hits))


def _computed(stats: EngineStats) -> int:
    return stats.counts.prompt_tokens - stats.counts.cached_tokens


def all_up(remote: RemoteModel, n_replicas: int) -> None:
    """Wait until every replica answers: the server is ready when one does."""
    deadline = time.monotonic() + START_S
    while len(remote.stats()) < n_replicas:
        if time.monotonic() > deadline:
            raise ServerFailed(f"{len(remote.stats())} of {n_replicas} replicas after {START_S:.0f} s")
        time.sleep(0.2)


def drive(spec: dict[str, Any], tiers: Sequence[dict[str, Any]], plan: Plan, port: int) -> list[Crowd]:
    """All rounds on our server."""
    crowds = []
    maker = PromptMaker(plan.n_vocab)
    with Ours({"models": [spec], "store": {"tiers": list(tiers)}}, port=port) as server, server.connected():
        remote = RemoteModel.connect(MODEL_ID)
        all_up(remote, spec["num_replicas"])
        ask_all(
            port,
            MODEL_ID,
            [maker.make(WARM_UP_TOKENS) for _ in range(4 * spec["n_parallel"] * spec["num_replicas"])],
            4,
        )
        for turn in range(plan.rounds):
            before = remote.stats()  # in an order that stays while no replica comes or goes
            streams = ask_all(port, MODEL_ID, plan.prompts(maker), plan.gen)
            crowds.append(crowd_of(streams, before, remote.stats()))
            say_crowd(f"{spec['num_replicas']} replicas, round {turn + 1}", crowds[-1])
    return crowds


def drive_peer(args: Any, path: str, n_ctx: int, plan: Plan) -> list[Crowd]:
    """All rounds on llama-server."""
    maker = PromptMaker(plan.n_vocab)
    with tempfile.TemporaryDirectory(prefix="bench-shared-") as slot_dir:
        server = Peer(
            args.peer, path, threads=args.threads, slots=args.n_parallel, n_ctx=n_ctx, port=args.port + 1, slot_dir=slot_dir
        )  # fmt: skip
        with server:
            ask_all(server.port, MODEL_ID, [maker.make(WARM_UP_TOKENS) for _ in range(args.n_parallel)], 4)
            crowds = []
            for turn in range(plan.rounds):
                crowds.append(crowd_of(ask_all(server.port, MODEL_ID, plan.prompts(maker), plan.gen), (), ()))
                say_crowd(f"peer, round {turn + 1}", crowds[-1])
    return crowds


def say_crowd(who: str, crowd: Crowd) -> None:
    say(f"  {who}: {crowd.computed} tokens of {crowd.requests} requests in {crowd.wall_s:.2f} s, hits {crowd.hits}")


def summarise(figures: Figures, name: str, crowds: Sequence[Crowd], plan: Plan) -> None:
    figures.add(f"{name}.prefilled", median(sum(crowd.computed) for crowd in crowds), "tokens")
    figures.add(f"{name}.prefilled.most", median(max(crowd.computed) for crowd in crowds), "tokens")
    figures.add(f"{name}.requests.least", median(min(crowd.requests) for crowd in crowds), "1")
    figures.add(f"{name}.wall", median(crowd.wall_s for crowd in crowds), "s")
    figures.add(f"{name}.ttft_p50", median(percentile(crowd.ttft_ms, 50) for crowd in crowds), "ms")
    figures.add(f"{name}.ttft_max", median(max(crowd.ttft_ms) for crowd in crowds), "ms")
    for where in sorted({where for crowd in crowds for where in crowd.hits}):
        figures.add(f"{name}.hits.{where}", median(crowd.hits.get(where, 0) for crowd in crowds), "1")
    figures.add_ratio(f"ratio.{name}/ideal", figures.get(f"{name}.prefilled"), plan.ideal)
    figures.extra.setdefault("rounds", {})[name] = [asdict(crowd) for crowd in crowds]


def problems_of(name: str, crowds: Sequence[Crowd]) -> list[str]:
    """Engines and usage must agree: else something was computed that nobody was told of, or the
    other way round.
    """
    return [
        f"{name}: the engines computed {sum(c.computed)} tokens, usage says {c.told}"
        for c in crowds
        if sum(c.computed) != c.told
    ]


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file, or demo")
    parser.add_argument("--peer", help="the llama-server binary; without it only ours is measured")
    parser.add_argument("--conversations", type=int, default=50)
    parser.add_argument("--system", type=int, default=2000, help="tokens that all share (default 2000)")
    parser.add_argument("--question", type=int, default=50, help="tokens of its own (default 50)")
    parser.add_argument("--gen", type=int, default=16, help="tokens of a reply (default 16)")
    parser.add_argument("--replicas", type=int_list, default=[1, 2])
    parser.add_argument("--n-parallel", type=int, default=8, help="sequences of a replica (default 8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads of all replicas together (default 2)")
    add_place_options(parser, ram=True)
    parser.add_argument("--port", type=int, default=8250)
    args = parser.parse_args()

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    plan = Plan(args.conversations, args.system, args.question, args.gen, args.rounds, inspect_gguf(path).n_vocab)
    n_ctx = -(-(args.system + args.question + args.gen + 8) // 256) * 256
    figures = Figures()
    figures.add("ideal", plan.ideal, "tokens")
    figures.add("naive", plan.naive, "tokens")
    failures: list[str] = []
    for n_replicas in args.replicas:
        spec = {
            "id": MODEL_ID, "path": path, "n_ctx": n_ctx, "n_parallel": args.n_parallel, "num_replicas": n_replicas, "num_cpus": 0.5,
            "n_threads": max(1, args.threads // n_replicas), "type_k": "f16", "type_v": "f16",
        }  # fmt: skip
        with (
            tempfile.TemporaryDirectory(prefix="bench-shared-", dir=args.ram_dir) as ram,
            tempfile.TemporaryDirectory(prefix="bench-shared-", dir=args.disk_dir) as disk,
        ):
            crowds = in_new_process(drive, spec, [{"url": ram}, {"url": disk}], plan, args.port)
        summarise(figures, f"r{n_replicas}", crowds, plan)
        failures += problems_of(f"r{n_replicas}", crowds)
    if args.peer:
        summarise(figures, "peer", drive_peer(args, path, n_ctx, plan), plan)
        for n_replicas in args.replicas:
            for name in ("prefilled", "wall", "ttft_p50"):
                figures.add_ratio(
                    f"ratio.r{n_replicas}/peer.{name}",
                    figures.get(f"r{n_replicas}.{name}"),
                    figures.get(f"peer.{name}"),
                )
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
