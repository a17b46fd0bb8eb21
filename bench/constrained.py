"""What a JSON schema costs: tokens/s of constrained replies against unconstrained ones, ours beside
llama-server. Over HTTP.

    python bench/constrained.py --model MODEL.gguf --peer LLAMA_SERVER [--rounds 3] [--json FILE]

The model should have a real vocabulary, since masks cost by its size (152 k tokens: `python -m
erllama.testing.random_gguf` with `--vocab`). Each round starts both servers in turn (the order
alternates), with the settings of bench/throughput.py. Within a round replies with and without the
schema alternate, over the same prompts of random token ids; all are greedy and ignore the end of
text. The schema asks for a list that cannot end within `--gen` tokens, so that every reply is
equally long; the run fails when one is not.

With random weights hardly any token that a model draws fits the schema: every position is masked,
which is the worst case for both servers.

*.free.sK, .json.sK   tokens/s of all of K streams together while all generate, without and with the
                      schema: the median over rounds
*.first.json          milliseconds to the first token of the first constrained reply after the
                      start, *.ttft.json of later ones
ratio.*.sK            with the schema / without it, per server: the aim is at least 0.97 for ours
ratio.json.sK         ours / peer, both with the schema: the aim is at least 1.2
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import Figures, PromptMaker, median, say, spread
from servers import Server
from stream_client import Stream, steady_rate
from throughput import comparison_parser, complete, make_server, our_spec

from erllama.demo import demo_model_path
from erllama.gguf.check import inspect_gguf

TOKENS_PER_ITEM = 8  # fewer than any item of the list takes
OURS_AIM, PEER_AIM = 0.97, 1.2


@dataclass(frozen=True, slots=True)
class Plan:
    """What one round does to a server."""

    streams: tuple[int, ...]
    prompt_tokens: int
    gen: int
    repeats: int


def list_schema(n_tokens: int) -> dict[str, Any]:
    """A list of small objects, of more items than `n_tokens` tokens can spell."""
    item = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "kind": {"enum": ["apple", "pear", "plum"]},
            "amount": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        },
        "required": ["name", "kind", "amount", "tags"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": item, "minItems": n_tokens // TOKENS_PER_ITEM + 1}


def schema_field(kind: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """How each server is asked for it at `/v1/completions`."""
    if kind == "ours":
        return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    return {"json_schema": schema}


def problem_of(streams: Sequence[Stream], gen: int, *, constrained: bool) -> str | None:
    """What is wrong with replies that should all be `gen` tokens long, and begin as JSON lists if
    they are constrained.
    """
    for stream in streams:
        if stream.completion_tokens != gen:
            return f"a reply has {stream.completion_tokens} tokens, not {gen}"
        if constrained and not stream.text.startswith("["):
            return f"a constrained reply begins with {stream.text[:20]!r}"
    return None


def measure(server: Server, plan: Plan, prompts: PromptMaker) -> tuple[dict[str, float], list[str]]:
    """One round on a running server: values by name, and what was wrong."""
    fields = {"free": {}, "json": schema_field(server.kind, list_schema(plan.gen))}
    problems: list[str] = []

    def go(mode: str, n: int, gen: int) -> list[Stream]:
        asked = [prompts.make(plan.prompt_tokens) for _ in range(n)]
        streams = asyncio.run(complete(server.port, asked, gen, fields[mode]))
        problem = problem_of(streams, gen, constrained=mode == "json")
        problems.extend([f"{server.kind}, {mode}: {problem}"] if problem else [])
        return streams

    say("  warm up")
    go("free", max(plan.streams), 8)
    values = {"first.json": 1e3 * go("json", 1, 8)[0].ttft_s}
    values["ttft.json"] = 1e3 * median(go("json", 1, 8)[0].ttft_s for _ in range(plan.repeats))
    for n in plan.streams:
        say(f"  {n} streams")
        rates: dict[str, list[float]] = defaultdict(list)
        for repeat in range(plan.repeats):
            for mode in ("free", "json") if repeat % 2 == 0 else ("json", "free"):
                rates[mode].append(steady_rate(go(mode, n, plan.gen)))
        values |= {f"{mode}.s{n}": median(values) for mode, values in rates.items()}
    return values, problems


def summarise(figures: Figures, rounds: Mapping[str, Sequence[Mapping[str, float]]], streams: Sequence[int]) -> None:
    """Medians over the rounds per server, then the ratios of the medians."""
    for kind, measured in rounds.items():
        for name in measured[0]:
            values = [one[name] for one in measured]
            rate = name.partition(".")[2].startswith("s")
            figures.add(f"{kind}.{name}", median(values), "tok/s" if rate else "ms")
            if rate and len(values) > 1:
                figures.add(f"{kind}.{name}.spread", spread(values), "1")
    for n in streams:
        for kind in rounds:
            figures.add_ratio(f"ratio.{kind}.s{n}", figures.get(f"{kind}.json.s{n}"), figures.get(f"{kind}.free.s{n}"))
        figures.add_ratio(f"ratio.json.s{n}", figures.get(f"ours.json.s{n}"), figures.get(f"peer.json.s{n}"))
    figures.extra["aims"] = {"ratio.ours": OURS_AIM, "ratio.json": PEER_AIM}


def main() -> int:
    parser = comparison_parser(__doc__, streams=[1, 4], slots=4, n_ctx=1024, prompt_tokens=64, gen=256)
    args = parser.parse_args()

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    n_vocab = inspect_gguf(path).n_vocab
    plan = Plan(tuple(args.streams), args.prompt_tokens, args.gen, args.repeats)
    if max(plan.streams) > args.slots or plan.prompt_tokens + plan.gen > args.n_ctx:
        parser.error(
            f"--slots must be at least {max(plan.streams)} and --n-ctx at least {plan.prompt_tokens + plan.gen}"
        )

    spec = our_spec(args, path)

    def make(kind: str) -> Server:
        return make_server(kind, args, path, spec)

    figures = Figures()
    figures.extra["settings"] = {"ours": spec, "peer": args.peer and os.path.basename(args.peer), "n_vocab": n_vocab}
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    failures: list[str] = []
    kinds = ["ours", "peer"] if args.peer else ["ours"]
    for turn in range(args.rounds):
        for kind in kinds if turn % 2 == 0 else reversed(kinds):
            say(f"round {turn + 1} of {args.rounds}: {kind}")
            with make(kind) as server:
                values, problems = measure(server, plan, PromptMaker(n_vocab, seed=turn))
            rounds[kind].append(values)
            failures += problems
    summarise(figures, {kind: rounds[kind] for kind in kinds}, plan.streams)
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
