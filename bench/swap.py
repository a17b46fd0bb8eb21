"""Models that take turns in memory: how long a request waits for its first token when its model has to be
brought back. Over HTTP, three models of a hub and memory for two.

    python bench/swap.py --model MODEL.gguf [--peer LLAMA_SERVER] [--tokens 2000] [--rounds 4]
    [--threads 0] [--json FILE]

Three copies of MODEL, each with one weight changed, so that nobody's KV is another's. Each has a
conversation of `--tokens` tokens; in each round each is asked to go on with it, one after the other,
so that every request meets a model that has just been put to sleep for another.

ours.first     seconds to the first token of a model that has never run: a process, its weights, the
               whole prompt
ours.swapped   ... of one that sleeps: its weights again, and its KV from the store
ours.awake     ... of one that is in memory, for comparison
peer.swapped   llama-swap's and Ollama's way: llama-server is started, and computes the whole prompt
ours.asleep    MiB that the process of a model takes that sleeps (proportional set size)
ratio.swapped  peer / ours
beside.alone   ms between two pieces of a stream of the first model, the 99th percentile, with one thread
beside.other   ... while the second model, which has never run, is started, loaded and used, with one thread
ratio.beside   other / alone

Medians. Fails when ours is not at least `--least` times as fast, when the prompt of a model that was
brought back was computed, or when fewer models were put to sleep than requests came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from harness import Figures, PromptMaker, add_place_options, make_parser, median, percentile, say
from servers import Ours, Peer
from stream_client import Stream, encode_request, fetch, parse_stream

from deployments.config import HubSpec
from deployments.hub.specs import loadable_of
from erllama.gguf.check import inspect_gguf
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub

NAMES = ("one", "two", "three")
NEW_TOKENS = 16  # of each turn


def variants(model: str, folder: Path) -> list[Path]:
    """Copies with another last weight each."""
    found = []
    for number, name in enumerate(NAMES):
        path = folder / f"{name}.gguf"
        shutil.copyfile(model, path)
        with path.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ number]))
        found.append(path)
    return found


def ask(port: int, model: str, prompt: Sequence[int], n_tokens: int = 4) -> Stream:
    body = {
        "model": model, "prompt": list(prompt), "max_tokens": n_tokens, "stream": True, "temperature": 0, "ignore_eos": True,
        "stream_options": {"include_usage": True}, "cache_prompt": True,
    }  # fmt: skip
    return parse_stream(asyncio.run(fetch(port, encode_request("POST", "/v1/completions", body))))


def standings(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/erllama/v1/hub", timeout=30) as reply:
        return {model["id"]: model["standing"] for model in json.load(reply)["data"]}


class Conversations:
    """What each model is asked next: all that was said, and new words."""

    def __init__(self, n_vocab: int, n_tokens: int) -> None:
        self._make = PromptMaker(n_vocab).make
        self.said = {name: self._make(n_tokens) for name in NAMES}

    def next(self, name: str) -> list[int]:
        self.said[name] = self.said[name] + self._make(NEW_TOKENS)
        return self.said[name]


def measure_ours(args: argparse.Namespace, hub_dir: Path, talks: Conversations, figures: Figures) -> list[str]:
    defaults = {"n_ctx": args.n_ctx, "n_parallel": 1, "n_threads": args.threads}
    one = loadable_of(Hub(HubConfig(dir=hub_dir)), HubSpec(dir=hub_dir, defaults=defaults), NAMES[0], 1 << 40)
    room = 2 * one.need_bytes + one.process_bytes + (one.need_bytes - one.process_bytes) // 2
    hub = {"enabled": True, "dir": str(hub_dir), "memory_bytes": room, "max_models": 3, "keep_alive_s": None}
    with tempfile.TemporaryDirectory(prefix="erllama-bench-", dir=args.disk_dir) as store:
        tiers = [{"url": f"file://{store}", "max_bytes": "8GiB"}]
        config = {"hub": {**hub, "defaults": defaults}, "store": {"tiers": tiers}}
        with Ours(config, port=args.port) as server:
            return _turns(args, server, talks, figures)


def _turns(args: argparse.Namespace, server: Ours, talks: Conversations, figures: Figures) -> list[str]:
    first = [ask(server.port, name, talks.said[name]).ttft_s for name in NAMES]
    swapped, awake, failures = [], [], []
    for turn in range(args.rounds):
        for name in NAMES:
            phase = standings(server.port)[name]["phase"]
            if phase != "sleeping":
                failures.append(f"{name} was {phase} before turn {turn} instead of asleep")
            prompt = talks.next(name)
            stream = ask(server.port, name, prompt)
            if stream.cached_tokens < len(prompt) - 2 * NEW_TOKENS:
                failures.append(f"{name} computed {len(prompt) - stream.cached_tokens} tokens in turn {turn}")
            swapped.append(stream.ttft_s)
            awake.append(ask(server.port, name, talks.next(name)).ttft_s)
            say(f"turn {turn} {name}: {swapped[-1]:.2f} s, awake {awake[-1]:.3f} s")
    figures.add("ours.first", median(first), "s")
    figures.add("ours.swapped", median(swapped), "s")
    figures.add("ours.awake", median(awake), "s")
    asleep = [name for name, standing in standings(server.port).items() if standing["phase"] == "sleeping"]
    sizes = [use.pss for use in server.usage(with_pss=True) if any(f"hub.{name}." in use.name for name in asleep)]
    if sizes:
        figures.add("ours.asleep", max(sizes) / (1 << 20), "MiB")
    return failures


def measure_beside(args: argparse.Namespace, hub_dir: Path, talks: Conversations, figures: Figures) -> None:
    """A stream of one model, alone and while another one comes."""
    defaults = {"n_ctx": args.n_ctx + 2048, "n_parallel": 2, "n_threads": 1}
    hub = {"enabled": True, "dir": str(hub_dir), "keep_alive_s": None, "defaults": defaults}
    with Ours({"hub": hub}, port=args.port) as server, ThreadPoolExecutor(1) as pool:
        ask(server.port, NAMES[0], talks.said[NAMES[0]][:8])
        for case in ("alone", "other"):
            stream = pool.submit(ask, server.port, NAMES[0], talks.said[NAMES[0]][:64], 300)
            if case == "other":
                ask(server.port, NAMES[1], talks.said[NAMES[1]][:512])
                figures.extra["other_came_in_time"] = not stream.done()
            gaps = stream.result().gaps_ms
            figures.add(f"beside.{case}", percentile(gaps, 99), "ms")
    figures.add_ratio("ratio.beside", figures.get("beside.other"), figures.get("beside.alone"))


def measure_peer(args: argparse.Namespace, paths: Sequence[Path], talks: Conversations, figures: Figures) -> None:
    swapped = []
    for turn in range(args.rounds):
        for name, path in zip(NAMES, paths, strict=True):
            began = time.perf_counter()
            with Peer(
                args.peer, str(path), threads=args.threads, slots=1, n_ctx=args.n_ctx, port=args.port + 1
            ) as server:
                ready_s = time.perf_counter() - began
                swapped.append(ready_s + ask(server.port, name, talks.said[name]).ttft_s)
            say(f"peer turn {turn} {name}: {swapped[-1]:.2f} s, of which {ready_s:.2f} s to start")
    figures.add("peer.swapped", median(swapped), "s")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--peer", help="the llama-server binary; without it only ours is measured")
    parser.add_argument("--tokens", type=int, default=2000, help="of each conversation (default 2000)")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each model (default 4)")
    parser.add_argument("--threads", type=int, default=0, help="of each model (default: all cores)")
    parser.add_argument("--least", type=float, default=5.0, help="how many times as fast ours must be (default 5)")
    parser.add_argument("--port", type=int, default=18100)
    add_place_options(parser)
    args = parser.parse_args(argv)
    args.threads = args.threads or os.cpu_count() or 1
    args.n_ctx = (args.tokens + args.rounds * 3 * NEW_TOKENS) // 1024 * 1024 + 1024
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="erllama-bench-", dir=args.disk_dir) as folder:
        paths = variants(args.model, Path(folder))
        hub = Hub(HubConfig(dir=Path(folder, "hub")))
        for name, path in zip(NAMES, paths, strict=True):
            list(hub.pull(str(path), name))
        talks = Conversations(inspect_gguf(args.model).n_vocab, args.tokens)
        failures = measure_ours(args, Path(folder, "hub"), talks, figures)
        measure_beside(args, Path(folder, "hub"), talks, figures)
        if args.peer:
            measure_peer(args, paths, talks, figures)
    ours, peer = figures.get("ours.swapped"), figures.get("peer.swapped")
    figures.add_ratio("ratio.swapped", peer, ours)
    if ours is not None and peer is not None and peer < args.least * ours:
        failures.append(f"a swap is {peer / ours:.1f} times as fast as the peer's, not {args.least:g}")
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
