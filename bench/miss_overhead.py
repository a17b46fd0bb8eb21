"""What the store costs a request that it cannot help: cold prompts with the store against none; and
what saves do to running neighbours.

    python bench/miss_overhead.py --model MODEL.gguf [--rounds 4] [--requests 2] [--prompt-tokens
    2000] [--gen 32] [--json FILE]

Two models of this process, one with a store (a ram_file and a disk tier), one without, answer the
same prompts, which nobody has seen. They take turns: off on on off, so that a machine whose speed
drifts treats both alike. A turn is `--requests` requests one after the other, so what the first one
saves is written while the second computes; the next turn begins when everything is written.

off.wall, on.wall   seconds of a turn, the median; .spread is (max - min) / median. ratio.wall is
                    the median over the pairs, aim <= 1.03
off.cpu, on.cpu     CPU seconds of this process per turn, writing included
on.flush            seconds from the last reply of a turn until everything was in both tiers
on.stall.mean, .max milliseconds for which saves held the engine thread: per request in sum, and the longest

Then, unless `--no-neighbours`: `--neighbours` sequences of `--neighbour-tokens` tokens generate at
once, and a cold request comes in.

step                   milliseconds of a decode step of these neighbours alone
stall.prefill          the longest hold of the engine thread while the first neighbour's prompt was
                       computed and saved
stall.finish           the hold of a save at the end of a neighbour, the mean
stall.max              the longest of all, copies of the shared prompt from sequence to sequence
                       included
ratio.stall/step       stall.prefill / step

Fails when the store helped after all, or saved nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import Figures, PromptMaker, add_place_options, make_parser, median, say, spread, with_server_threads

from cache_store import Store, StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import SaveReason
from erllama.demo import demo_model_path
from erllama.events import Tokens
from erllama.gguf.check import inspect_gguf
from erllama.stats import CacheCounters

FLUSH_S = 120.0
WARM_UP_TOKENS = 300
ORDER = ("off", "on", "on", "off")


@dataclass(frozen=True, slots=True)
class TurnCost:
    """One turn of one model; seconds. `stall_ms` is the sum over its requests."""

    kind: str
    wall_s: float
    cpu_s: float
    flush_s: float = 0.0
    stall_ms: float = 0.0


@contextmanager
def new_store(args: Any) -> Iterator[Store]:
    """A store with the default kinds of tiers, in directories that go when it is closed."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-miss-", dir=args.ram_dir) as ram,
        tempfile.TemporaryDirectory(prefix="bench-miss-", dir=args.disk_dir) as disk,
        Store(StoreConfig(tiers=(TierConfig(ram), TierConfig(disk)))) as store,
    ):
        yield store


def settle(model: Model, store: Store | None) -> None:
    """Wait until the engine has handed over what is due and the store has written it."""
    model.list_adapters()  # answered between two steps
    if store is not None and not store.flush(FLUSH_S):
        raise TimeoutError(f"the store did not write everything within {FLUSH_S:.0f} s")


def take_turn(kind: str, model: Model, store: Store | None, prompts: Sequence[list[int]], n_gen: int) -> TurnCost:
    """Cold requests one after the other."""
    stall_before = model.stats().cache.stall_ms
    cpu_before, started = time.process_time(), time.monotonic()
    for prompt in prompts:
        cached = model.complete(prompt, response_tokens=n_gen, temperature=0, ignore_eos=True).stats.cached_tokens
        if cached > len(prompt) // 10:
            raise ValueError(f"a cold prompt had {cached} tokens cached")
    ended = time.monotonic()
    settle(model, store)
    flush_s = time.monotonic() - ended
    return TurnCost(
        kind, ended - started, time.process_time() - cpu_before, flush_s, model.stats().cache.stall_ms - stall_before
    )


def compare(settings: dict[str, Any], args: Any, prompts: PromptMaker, figures: Figures) -> list[str]:
    """The turns of both models; why they prove nothing, if so."""
    turns: list[TurnCost] = []
    n_ctx = args.prompt_tokens + args.gen + 8
    with (
        new_store(args) as store,
        Model(**settings, n_ctx=n_ctx) as off,
        Model(**settings, n_ctx=n_ctx, store=store) as on,
    ):
        models = {"off": (off, None), "on": (on, store)}
        for kind in ORDER[:2]:
            take_turn(kind, *models[kind], [prompts.make(min(WARM_UP_TOKENS, args.prompt_tokens))], args.gen)
        for number in range(args.rounds):
            batches = [[prompts.make(args.prompt_tokens) for _ in range(args.requests)] for _ in range(2)]
            for kind, batch in zip(ORDER, (0, 0, 1, 1), strict=True):
                turns.append(take_turn(kind, *models[kind], batches[batch], args.gen))
                say(f"  round {number + 1} {kind}: {turns[-1].wall_s:.3f} s, cpu {turns[-1].cpu_s:.3f} s")
        counters = on.stats().cache
        dropped = store.stats().dropped
    add_turns(figures, turns, args.requests)
    figures.add("on.stall.max", counters.max_stall_ms, "ms")
    figures.add("on.saves", sum(counters.saves.values()), "1")
    figures.extra["turns"] = [asdict(turn) for turn in turns]
    figures.extra["dropped"] = dropped
    problems = [] if counters.saves else ["nothing was saved"]
    return problems + ([f"the store dropped {dropped}"] if dropped else [])


def add_turns(figures: Figures, turns: Sequence[TurnCost], n_requests: int) -> None:
    """Medians per kind, then ratios of neighbouring turns: the n-th of one kind has the same
    prompts as the n-th of the other.
    """
    off, on = ([turn for turn in turns if turn.kind == kind] for kind in ORDER[:2])
    for kind, group in (("off", off), ("on", on)):
        walls = [turn.wall_s for turn in group]
        figures.add(f"{kind}.wall", median(walls), "s")
        figures.add(f"{kind}.wall.spread", spread(walls), "1")
        figures.add(f"{kind}.cpu", median(turn.cpu_s for turn in group), "s")
    figures.add("on.flush", median(turn.flush_s for turn in on), "s")
    figures.add("on.stall.mean", median(turn.stall_ms for turn in on) / n_requests, "ms")
    figures.add_ratio("ratio.wall", median(b.wall_s / a.wall_s for a, b in zip(off, on, strict=True)), 1.0)
    figures.add_ratio("ratio.cpu", median(b.cpu_s / a.cpu_s for a, b in zip(off, on, strict=True)), 1.0)


# --- neighbours -----------------------------------------------------------------------------------


def measure_neighbours(settings: dict[str, Any], args: Any, prompts: PromptMaker, figures: Figures) -> None:
    """Stalls of the engine thread against the step of long neighbours."""
    gen = args.neighbour_gen
    n_ctx = args.neighbour_tokens + gen + 8
    with new_store(args) as store, Model(**settings, n_ctx=n_ctx, n_parallel=args.neighbours + 1, store=store) as model:
        long = prompts.make(args.neighbour_tokens)
        say(f"  prefill of {len(long)} tokens")
        model.prefill_only(long)
        settle(model, store)
        prefilled = model.stats().cache
        figures.add("stall.prefill", prefilled.max_stall_ms, "ms")
        say(f"  {args.neighbours} neighbours")
        streams = [
            model.infer([*long, *prompts.make(4)], response_tokens=gen, temperature=0, ignore_eos=True)
            for _ in range(args.neighbours)
        ]
        for stream in streams:
            next(event for event in stream if isinstance(event, Tokens))
        figures.add("step", step_ms(model, gen // 4), "ms")
        model.complete(prompts.make(args.prompt_tokens), response_tokens=2, temperature=0)
        running = model.stats().cache
        for stream in streams:
            stream.result()
        settle(model, store)
        ended = model.stats().cache
    figures.add("stall.finish", mean_stall(running, ended), "ms")
    figures.add("stall.max", ended.max_stall_ms, "ms")
    figures.add_ratio("ratio.stall/step", figures.get("stall.prefill"), figures.get("step"))
    figures.add_ratio("ratio.finish/step", figures.get("stall.finish"), figures.get("step"))
    figures.extra["neighbours"] = {"prefilled": asdict(prefilled), "running": asdict(running), "ended": asdict(ended)}


def step_ms(model: Model, n_steps: int) -> float:
    """Milliseconds per decode of the next `n_steps` or so, while only neighbours generate."""
    before = model.stats().counts
    while (after := model.stats().counts).steps < before.steps + n_steps:
        time.sleep(0.01)  # stats are a snapshot that the engine replaces after every step
    return (after.decode_ms - before.decode_ms) / (after.steps - before.steps)


def mean_stall(before: CacheCounters, after: CacheCounters) -> float:
    """Milliseconds per save at the end of a reply; nan when there was none between the
    snapshots.
    """
    finish = SaveReason.FINISH
    n_saves = after.saves.get(finish, 0) - before.saves.get(finish, 0)
    return (after.stall_ms - before.stall_ms) / n_saves if n_saves else float("nan")


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file, or demo")
    parser.add_argument("--rounds", type=int, default=4, help="of off, on, on, off (default 4)")
    parser.add_argument("--requests", type=int, default=2, help="requests of one turn (default 2)")
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--gen", type=int, default=32)
    parser.add_argument("--no-neighbours", action="store_true", help="leave the second part out")
    parser.add_argument("--neighbours", type=int, default=4)
    parser.add_argument("--neighbour-tokens", type=int, default=8192)
    parser.add_argument("--neighbour-gen", type=int, default=256, help="tokens of each neighbour (default 256)")
    parser.add_argument("--threads", type=int, default=2)
    add_place_options(parser, ram=True)
    args = parser.parse_args()
    with_server_threads()

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    settings = {"path": path, "n_threads": args.threads, "type_k": "f16", "type_v": "f16"}
    figures = Figures()
    figures.extra["model"] = Path(path).name
    prompts = PromptMaker(inspect_gguf(path).n_vocab)
    failures = compare({**settings, "n_parallel": 1}, args, prompts, figures)
    if not args.no_neighbours:
        measure_neighbours(settings, args, prompts, figures)
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
