"""Replies that repeat their prompt, and replies that do not: ours with and without computing ahead,
beside llama-server with and without its n-gram modes, over HTTP.

    python -m erllama.testing.random_gguf --shape qwen2-0.5b --counts MODEL.gguf
    python bench/speculation.py --model MODEL.gguf [--peer LLAMA_SERVER] [--rounds 2] [--json FILE]

The model counts: behind each token it writes that of the next id, at the cost of the 0.5B shape. So
the prompt decides what can be copied:

quote   the prompt holds what the reply will be
edit    it does, but every 25th token is another one (code with a changed name)
prose   the reply shares nothing with the prompt
decoys  nor here, but the prompt holds every other pair of its tokens with another one behind it

Figures are tokens/s of all streams together while all of them run; each is the best of the rounds, because a shared machine only ever makes one slower. `same` is the share of replies that
are those without computing ahead. Ratios: `gain` ours over ours
without, `peer_gain` llama-server's best mode over it without one, `ratio` ours over its best.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from harness import Figures, int_list, make_parser, say
from servers import Ours, Peer, Server
from stream_client import steady_rate
from throughput import MODEL_ID, complete

from erllama.gguf.check import inspect_gguf

CASES = ("quote", "edit", "prose", "decoys")
PEER_MODES = ("none", "ngram-simple", "ngram-mod", "ngram-map-k")
OFF, ON = "off", "on"
FIRST_ID = 300  # below are control tokens and bytes


def prompts_of(case: str, n_streams: int, n_prompt: int, n_gen: int, n_vocab: int, seed: int) -> list[list[int]]:
    """Prompts whose replies are the ids behind their last one."""
    numbers = random.Random(f"{case} {n_streams} {seed}")
    span = n_vocab - FIRST_ID
    prompts = []
    for _ in range(n_streams):
        start = numbers.randrange(span)
        reply = [FIRST_ID + (start + i) % span for i in range(n_gen + 1)]
        strangers = [FIRST_ID + (start - 2 * numbers.randrange(1, span // 4)) % span for _ in range(n_prompt)]
        text = reply
        if case == "edit":
            text = [strangers[i] if i % 25 == 12 else token for i, token in enumerate(reply)]
        elif case == "decoys":
            pairs = zip(reply[::2], reply[1::2], strict=False)
            text = [token for i, (a, b) in enumerate(pairs) for token in (a, b, strangers[i % n_prompt])]
        elif case == "prose":
            text = []
        prompts.append([*strangers[: max(0, n_prompt - len(text))], *text, strangers[0], reply[0]][-n_prompt:])
    return prompts


class Runs:
    """Rates and texts by (server and mode, case, streams)."""

    def __init__(self) -> None:
        self.rates: dict[tuple[str, str, int], list[float]] = defaultdict(list)
        self.texts: dict[tuple[str, str, int, int], list[str]] = {}

    def best(self, kind: str, case: str, n: int) -> float:
        return max(self.rates[kind, case, n])

    def measure(
        self, kind: str, server: Server, model_id: str, args: argparse.Namespace, n_vocab: int, turn: int
    ) -> None:
        for case in CASES:
            for n in args.streams:
                prompts = prompts_of(case, n, args.prompt_tokens, args.gen, n_vocab, turn)
                streams = asyncio.run(complete(server.port, prompts, args.gen, {"model": model_id}))
                self.rates[kind, case, n].append(steady_rate(streams))
                self.texts[kind, case, n, turn] = [stream.text for stream in streams]
                say(f"  {kind} {case} {n}: {self.rates[kind, case, n][-1]:.1f} tok/s")

    def same(self, kind: str, other: str, case: str, n: int) -> float:
        pairs = [
            pair
            for (k, c, m, turn), texts in self.texts.items()
            if (k, c, m) == (kind, case, n)
            for pair in zip(texts, self.texts[other, case, n, turn], strict=True)
        ]
        return sum(a == b for a, b in pairs) / len(pairs)


@contextmanager
def ours(args: argparse.Namespace, path: str) -> Iterator[Server]:
    """One model of each mode: they run one after the other, and one that rests takes no core."""
    spec = {
        "path": path, "n_ctx": args.n_ctx, "n_parallel": max(args.streams), "n_threads": args.threads, "num_cpus": 0.5,
        "type_k": args.kv, "type_v": args.kv, "idle_prefill": False,
    }  # fmt: skip
    models = [{**spec, "id": OFF, "speculation": "off"}, {**spec, "id": ON, "speculation": args.mode}]
    with Ours({"models": models}, port=args.port) as server:
        yield server


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a GGUF that counts")
    parser.add_argument("--peer", help="the llama-server binary; without it only ours is measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int_list, default=[1, 4])
    parser.add_argument("--n-ctx", type=int, default=2048)
    parser.add_argument("--prompt-tokens", type=int, default=400)
    parser.add_argument("--gen", type=int, default=200)
    parser.add_argument("--kv", default="q8_0", help="type of K and V (default q8_0: exact at any length)")
    parser.add_argument("--mode", default="exact", choices=["exact", "always"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--port", type=int, default=8200)
    args = parser.parse_args()

    path = os.path.abspath(args.model)
    n_vocab = inspect_gguf(path).n_vocab
    runs, figures = Runs(), Figures()
    for turn in range(args.rounds):
        with ours(args, path) as server:
            for _ in range(2):  # the first pass warms up and lets the costs be learned
                for kind in (OFF, ON):
                    runs.measure(f"ours.{kind}", server, kind, args, n_vocab, turn)
        for mode in PEER_MODES if args.peer else ():
            more = ("--spec-type", mode)
            slots = max(args.streams)
            with Peer(args.peer, path, threads=args.threads, slots=slots, n_ctx=args.n_ctx, port=args.port + 1,
                      kv=args.kv, more=more) as server:  # fmt: skip
                runs.measure(f"peer.{mode}", server, MODEL_ID, args, n_vocab, turn)
    report(runs, figures, args)


def report(runs: Runs, figures: Figures, args: argparse.Namespace) -> None:
    for case in CASES:
        for n in args.streams:
            on, off = (runs.best(f"ours.{mode}", case, n) for mode in (ON, OFF))
            figures.add(f"ours.off.{case}.s{n}", off, "tok/s")
            figures.add(f"ours.on.{case}.s{n}", on, "tok/s")
            figures.add(f"same.{case}.s{n}", runs.same("ours.on", "ours.off", case, n), "1")
            figures.add(f"gain.{case}.s{n}", on / off, "1")
            if args.peer:
                modes = {mode: runs.best(f"peer.{mode}", case, n) for mode in PEER_MODES}
                for mode, value in modes.items():
                    figures.add(f"peer.{mode}.{case}.s{n}", value, "tok/s")
                best = max(modes.values())
                figures.add(f"peer_gain.{case}.s{n}", best / modes["none"], "1")
                figures.add(f"ratio.{case}.s{n}", on / best, "1")
                figures.add(f"ratio_plain.{case}.s{n}", on / modes["none"], "1")
    figures.extra["rates"] = {" ".join(map(str, key)): values for key, values in runs.rates.items()}
    figures.report(args.json)


if __name__ == "__main__":
    main()
