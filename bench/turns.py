"""A conversation of twenty turns on one model in this process: what each turn reuses, how soon it
answers, what the store writes.

    python bench/turns.py --model MODEL.gguf [--peer LLAMA_SERVER] [--turns 20] [--user 300]
    [--reply 100] [--json FILE]

A turn sends the whole transcript and `--user` new tokens and takes `--reply` tokens, greedy. The
conversation runs twice, with different tokens: `live` keeps it in the context from turn to turn,
`store` gives the context back before every turn (`Model.evict`), so that each turn is read from the
disk tier, the only one. TTFT here is from the call of `Model.infer` to the first token: no HTTP.

HOLD.hit.tNN, HOLD.ttft.tNN   cached tokens / prompt tokens, and time to the first token, of turn NN
HOLD.reuse                    cached tokens of all turns / tokens that earlier turns had computed
HOLD.prefilled                prompt tokens that were computed, all turns together
HOLD.kv, HOLD.written         KV bytes of the final transcript; bytes written to the tier.
                              HOLD.ratio.written is their ratio, aim <= 1.1
HOLD.stored.KIND              bytes and number of the objects that lie there at the end, by kind
HOLD.branch.*                 a branch at turn `--branch-at`: other words of the user,
                              `--branch-turns` turns on. HOLD.ratio.branch is what was written / KV
                              bytes of the tokens in which it differs, aim <= 1.1
peer.hit, .ttft               llama-server over HTTP with one slot that it keeps; TTFT is the time
                              of the reply less that of its generation
peer.saved                    bytes of its slot saved to a file after every turn, its way to keep a
                              conversation over a restart

Fails when a turn reuses less than all but 2 tokens of what earlier turns computed, or from
elsewhere than it should. `store` cannot reuse a first turn that is shorter than the policy's
`min_tokens`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from harness import Figures, PromptMaker, add_place_options, make_parser, median, say, with_server_threads
from servers import Peer
from stream_client import Reply, encode_request, fetch

from cache_store import BlockId, Kind, Store, StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.demo import demo_model_path
from erllama.events import Done, Failed, Tokens
from erllama.gguf.check import inspect_gguf

FLUSH_S = 60.0
# the last token of a reply was never decoded, and the last of a prompt may be computed again for
# its logits
SPARE_TOKENS = 2
HOLDS = {"live": "live", "store": "disk"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: `computed` tokens of its prompt had been computed by earlier ones, `cached` of them
    were taken over, from `tier`.
    """

    prompt_tokens: int
    computed: int
    cached: int
    ttft_ms: float
    reply: tuple[int, ...]
    tier: str

    @property
    def hit_ratio(self) -> float:
        return self.cached / self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a turn: what the user says, what the model answers."""

    user: int
    reply: int


def problem_of(turn: Turn, number: int, tier: str) -> str | None:
    """None when everything that could be reused was, from `tier`."""
    if tier != "live" and turn.computed < CachePolicy().min_tokens:
        return None
    if turn.cached < turn.computed - SPARE_TOKENS:
        return f"turn {number}: {turn.cached} of {turn.computed} tokens reused"
    if turn.computed and turn.tier != tier:
        return f"turn {number}: from {turn.tier or 'nowhere'}, not from {tier}"
    return None


# --- ours -----------------------------------------------------------------------------------------


def take_turn(model: Model, transcript: Sequence[int], computed: int, n_reply: int) -> Turn:
    """The next reply, and what the request cost."""
    started = time.monotonic_ns()
    ids: list[int] = []
    first_ns, done = 0, None
    for event in model.infer(transcript, response_tokens=n_reply, temperature=0, ignore_eos=True):
        match event:
            case Tokens():
                first_ns = first_ns or time.monotonic_ns()
                ids += event.ids
            case Done():
                done = event.stats
            case Failed(error):
                raise error
    assert done is not None
    return Turn(
        len(transcript), computed, done.cached_tokens, (first_ns - started) / 1e6, tuple(ids), done.cache_tier or ""
    )


def settle(model: Model, store: Store) -> int:
    """Wait until what is due is written; the bytes written so far."""
    model.list_adapters()  # answered between two steps: the save at the end of the last reply has been handed over
    if not store.flush(FLUSH_S):
        raise TimeoutError(f"the store did not write everything within {FLUSH_S:.0f} s")
    return store.stats().tiers[0].written_bytes


def converse(
    model: Model, store: Store, transcript: list[int], words: PromptMaker, sizes: Sizes, n_turns: int, hold: str
) -> list[Turn]:
    """`n_turns` more turns; `transcript` grows."""
    turns = []
    for number in range(n_turns):
        computed = len(transcript)
        transcript += words.make(sizes.user)
        if hold == "store":
            model.evict()
        turns.append(take_turn(model, transcript, computed, sizes.reply))
        transcript += turns[-1].reply
        settle(model, store)
        say(
            f"  {hold} turn {number + 1}: {turns[-1].cached}/{turns[-1].prompt_tokens} cached, {turns[-1].ttft_ms:.1f} ms"
        )
    return turns


def stored_by_kind(directory: Path) -> dict[Kind, list[int]]:
    """Sizes of the objects that lie in a tier's directory."""
    sizes: dict[Kind, list[int]] = {kind: [] for kind in Kind}
    for path in directory.rglob("*.arrow"):
        id = BlockId.parse(path.relative_to(directory).as_posix())
        if id is not None:
            sizes[id.kind].append(path.stat().st_size)
    return sizes


def kv_bytes_per_token(directory: Path) -> int:
    """What a row of all KV columns weighs, as the stored files have it."""
    with pa.ipc.open_file(next(directory.rglob("*.rows.arrow"))) as file:
        return sum(json.loads(file.schema.metadata[b"erllama.block"])["row_bytes"])


def run_hold(
    settings: dict[str, Any], hold: str, words: PromptMaker, sizes: Sizes, args: Any, figures: Figures
) -> list[str]:
    """The conversation and its branch; why it failed."""
    with tempfile.TemporaryDirectory(prefix="bench-turns-", dir=args.disk_dir) as name:
        store = Store(StoreConfig(tiers=(TierConfig(name),)))
        with store, Model(**settings, store=store) as model:
            transcript: list[int] = []
            turns = converse(model, store, transcript, words, sizes, args.turns, hold)
            written = settle(model, store)
            per_token = kv_bytes_per_token(Path(name))
            add_turns(figures, hold, turns)
            add_bytes(figures, f"{hold}.", "written", len(transcript) * per_token, written)
            for kind, objects in stored_by_kind(Path(name)).items():
                figures.add(f"{hold}.stored.{kind}", sum(objects) / 1e6, "MB")
                figures.add(f"{hold}.objects.{kind}", len(objects), "1")
            branch_at = args.branch_at * (sizes.user + sizes.reply)
            branch = transcript[:branch_at]
            say(f"  branch at turn {args.branch_at}, token {branch_at}")
            more = converse(model, store, branch, words, sizes, args.branch_turns, hold)
            add_bytes(
                figures,
                f"{hold}.branch.",
                "branch",
                (len(branch) - branch_at) * per_token,
                settle(model, store) - written,
            )
            figures.add(f"{hold}.branch.hit", more[0].hit_ratio, "1")
            figures.add(f"{hold}.branch.ttft", more[0].ttft_ms, "ms")
    figures.extra[hold] = [asdict(turn) | {"reply": len(turn.reply)} for turn in [*turns, *more]]
    problems = [problem_of(turn, number, HOLDS[hold]) for number, turn in enumerate(turns, start=1)]
    problems += [
        problem_of(turn, number, turn.tier if number == 1 else HOLDS[hold]) for number, turn in enumerate(more, start=1)
    ]
    return [f"{hold} {problem}" for problem in problems if problem]


def add_turns(figures: Figures, who: str, turns: Sequence[Turn]) -> None:
    for number, turn in enumerate(turns, start=1):
        figures.add(f"{who}.hit.t{number:02}", turn.hit_ratio, "1")
        figures.add(f"{who}.ttft.t{number:02}", turn.ttft_ms, "ms")
    figures.add(f"{who}.ttft", median(turn.ttft_ms for turn in turns[1:]), "ms")
    figures.add(f"{who}.reuse", sum(turn.cached for turn in turns) / max(1, sum(turn.computed for turn in turns)), "1")
    figures.add(f"{who}.prefilled", sum(turn.prompt_tokens - turn.cached for turn in turns), "tokens")


def add_bytes(figures: Figures, prefix: str, ratio: str, kv_bytes: int, written: int) -> None:
    figures.add(f"{prefix}kv", kv_bytes / 1e6, "MB")
    figures.add(f"{prefix}written", written / 1e6, "MB")
    figures.add_ratio(f"{prefix.partition('.')[0]}.ratio.{ratio}", written, kv_bytes)


# --- the peer -------------------------------------------------------------------------------------


def peer_turn(reply: Reply, computed: int) -> Turn:
    """llama-server's own endpoint tells all token ids, which the transcript needs, only when it
    does not stream.
    """
    if reply.status != 200:
        raise ValueError(f"HTTP {reply.status}: {reply.body[:300]!r}")
    answer = json.loads(reply.body)
    timings = answer["timings"]
    ttft_ms = (reply.done_ns - reply.sent_ns) / 1e6 - timings["predicted_ms"]
    return Turn(
        timings["prompt_n"] + timings["cache_n"], computed, timings["cache_n"], ttft_ms, tuple(answer["tokens"]), "live"
    )


def run_peer(args: Any, path: str, n_ctx: int, words: PromptMaker, sizes: Sizes, figures: Figures) -> list[Turn]:
    """The same conversation on llama-server, its slot saved after every turn."""
    turns: list[Turn] = []
    written = 0
    with tempfile.TemporaryDirectory(prefix="bench-turns-", dir=args.disk_dir) as slot_dir:
        server = Peer(args.peer, path, threads=args.threads, slots=1, n_ctx=n_ctx, port=args.port, slot_dir=slot_dir)
        with server:
            transcript: list[int] = []
            for number in range(args.turns):
                computed = len(transcript)
                transcript += words.make(sizes.user)
                body = {
                    "prompt": transcript, "n_predict": sizes.reply, "temperature": 0, "ignore_eos": True,
                    "return_tokens": True, "cache_prompt": True,
                }  # fmt: skip
                reply = asyncio.run(fetch(server.port, encode_request("POST", "/completion", body)))
                turns.append(peer_turn(reply, computed))
                transcript += turns[-1].reply
                written += server.slot("save", f"{number}.bin")["n_written"]
                say(
                    f"  peer turn {number + 1}: {turns[-1].cached}/{turns[-1].prompt_tokens} cached, {turns[-1].ttft_ms:.1f} ms"
                )
    add_turns(figures, "peer", turns)
    figures.add("peer.saved", written / 1e6, "MB")
    return turns


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file, or demo")
    parser.add_argument("--peer", help="the llama-server binary; without it only ours is measured")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--user", type=int, default=300, help="new tokens of a turn's prompt (default 300)")
    parser.add_argument("--reply", type=int, default=100, help="tokens of a reply (default 100)")
    parser.add_argument("--branch-at", type=int, default=10, help="turns that the branch shares (default 10)")
    parser.add_argument("--branch-turns", type=int, default=4)
    parser.add_argument("--hold", choices=sorted(HOLDS), action="append", help="only this one (default: both)")
    parser.add_argument("--threads", type=int, default=2)
    add_place_options(parser)
    parser.add_argument("--port", type=int, default=8240)
    args = parser.parse_args()
    with_server_threads()

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    sizes = Sizes(args.user, args.reply)
    n_ctx = -(-(args.turns * (args.user + args.reply) + 8) // 256) * 256
    info = inspect_gguf(path)
    if args.peer and n_ctx > info.n_ctx_train:
        parser.error(
            f"--peer: llama-server gives a slot no more than the {info.n_ctx_train} tokens that the model was trained with"
        )
    settings = {
        "path": path,
        "n_ctx": n_ctx,
        "n_parallel": 1,
        "n_threads": args.threads,
        "type_k": "f16",
        "type_v": "f16",
    }
    figures = Figures()
    figures.add("n_ctx", n_ctx, "tokens")
    failures: list[str] = []
    words = PromptMaker(info.n_vocab)
    for hold in args.hold or list(HOLDS):
        failures += run_hold(settings, hold, words, sizes, args, figures)
    if args.peer:
        run_peer(args, path, n_ctx, words, sizes, figures)
        for hold in args.hold or list(HOLDS):
            figures.add_ratio(f"{hold}.ratio.ttft/peer", figures.get(f"{hold}.ttft"), figures.get("peer.ttft"))
            figures.add_ratio(f"peer.ratio.saved/{hold}.kv", figures.get("peer.saved"), figures.get(f"{hold}.kv"))
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
