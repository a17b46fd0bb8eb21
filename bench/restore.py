"""What restoring a stored prefix costs beside plain reads of the same bytes; without a model, and
beside one that decodes.

    python bench/restore.py [--tokens 8192] [--layers 24] [--row-bytes 256] [--rounds 9] [--no-s3]
    [--model MODEL.gguf] [--json FILE]

A prefix of `--tokens` tokens in blocks of 256 lies on one tier: by default rows as those of a 0.5B
model, 12 kB per token. All bytes are in the page cache, or in the memory of moto's server. Ways to
read them take turns, and a round begins with another one than the round before.

ram.*, disk.*      a local tier in `--ram-dir` and in `--disk-dir`, MB/s
    plain          the same files into as much memory, which was touched before: one thread
    restore        `Store.read` into an image that llama.cpp takes: every byte is verified
    consumed       the same, block by block through `consume`, as without a destination
zstd.*             the same on a tier with compression, MB/s of KV; plain reads and decompresses
s3.*               moto's server on this machine; plain is s3fs's own parallel download of the same
                   keys (`cat` of all of them), alone is one object after the other
*.cpu              CPU seconds of this process per GB
ratio.*            restore / plain, aim 0.8

With `--model`: one stream decodes while a thread restores prefixes, one right after the other, and
while nothing is restored; by turns.

decode.alone, decode.beside     tokens per second
decode.restored                 MB/s that were restored meanwhile
decode.lost                     decoding time that a restored GB cost, s
engine.ram                      MB/s of a request's `restore_ms`: lookup, reading, the way to the engine's
                                thread (for a model of the shape above)
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from harness import Figures, PromptMaker, add_place_options, make_parser, median, say, spread, with_server_threads
from servers import S3Server
from store_speed import copier

from cache_store import Block, Plan, Store, StoreConfig, TierConfig, TokenChain, root_key
from cache_store.format.file import proven_head
from erllama import Model
from erllama.events import Tokens
from erllama.gguf.check import inspect_gguf
from erllama.kv.codec import KvCodec, ModelTraits
from erllama.kv.image import BufferPool, StateImage
from erllama.kv.layout import KvKind, KvLayout
from erllama.kv.state_bytes import CacheShape, Field

DEADLINE_S = 60.0
S3_PORT = 8957
F16 = 1
ROOT = root_key("bench", "")
Job = Callable[[], int]  # gives the bytes that it moved


def codec_of(n_layer: int, row_bytes: int) -> KvCodec:
    """The layout of a model with `n_layer` layers whose K and V have rows of so many bytes."""
    columns = tuple(f"{part}{layer}" for layer in range(n_layer) for part in "kv")
    layout = KvLayout(KvKind.ATTENTION, columns, (row_bytes,) * len(columns))
    shape = CacheShape(n_layer, (Field(F16, row_bytes),) * len(columns))
    return KvCodec(layout, ModelTraits(n_stream=1), shape)


def filled_store(tier: TierConfig, chain: TokenChain, codec: KvCodec) -> Store:
    """A store with the prefix on its one tier."""
    store = Store(StoreConfig(tiers=(tier,), queue_bytes=1 << 30))
    store.wait_loaded(DEADLINE_S)
    random = np.random.default_rng(1)
    for id in store.missing(chain):
        # like f16: half of each value is noise
        values = random.standard_normal((id.n_tokens, sum(codec.layout.row_bytes) // 2)).astype(np.float16)
        rows = tuple(np.ascontiguousarray(part) for part in np.hsplit(values.view(np.uint8), len(codec.layout.columns)))
        block = Block(id, chain.ids[id.start : id.start + id.n_tokens], codec.layout.columns, rows)
        assert store.save([block], wait_s=DEADLINE_S) == 1
    assert store.flush(DEADLINE_S)
    return store


class Restores:
    """Restores of one prefix into an image from a pool, as a reader of the engine does them."""

    def __init__(self, store: Store, plan: Plan, codec: KvCodec) -> None:
        self._store, self._plan, self._codec = store, plan, codec
        self._pool = BufferPool()
        self.n_bytes = plan.n_tokens * codec.layout.bytes_per_token

    def restore(self) -> int:
        image = StateImage(self._codec, self._plan.n_tokens, self._pool)
        try:
            fetched = self._store.read(self._plan, put_into(image), DEADLINE_S, image)
            assert fetched.n_tokens == self._plan.n_tokens
            image.view(fetched.n_tokens)
        finally:
            image.close()
        return self.n_bytes

    def consume(self, memory: np.ndarray) -> int:
        fetched = self._store.read(self._plan, copier(memory), DEADLINE_S)
        assert fetched.n_tokens == self._plan.n_tokens
        return self.n_bytes


def put_into(image: StateImage) -> Callable[[Block, int], None]:
    return lambda block, n_use: image.put(block.id.start, block.columns, tuple(rows[:n_use] for rows in block.rows))


def by_turns(name: str, jobs: Mapping[str, Job], rounds: int, figures: Figures) -> None:
    """Each job once per round, after one round that touches fresh memory."""
    speeds: dict[str, list[float]] = {kind: [] for kind in jobs}
    costs: dict[str, list[float]] = {kind: [] for kind in jobs}
    kinds = list(jobs)
    for turn in range(rounds + 1):
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            cpu, started = time.process_time(), time.monotonic_ns()
            n_bytes = jobs[kind]()
            seconds = (time.monotonic_ns() - started) / 1e9
            if turn:
                speeds[kind].append(n_bytes / 1e6 / seconds)
                costs[kind].append((time.process_time() - cpu) / (n_bytes / 1e9))
    for kind in kinds:
        figures.add(f"{name}.{kind}", median(speeds[kind]), "MB/s")
        figures.add(f"{name}.{kind}.spread", spread(speeds[kind]), "1")
        figures.add(f"{name}.{kind}.cpu", median(costs[kind]), "s/GB")
    ratios = [ours / plain for ours, plain in zip(speeds["restore"], speeds["plain"], strict=True)]
    figures.add_ratio(f"ratio.{name}", median(ratios), 1.0)
    figures.add_ratio(f"ratio.{name}.cpu", median(costs["restore"]), median(costs["plain"]))


def read_plain(files: Sequence[Path], memory: np.ndarray) -> int:
    """One file after the other into `memory`, one behind the other."""
    view, at = memory.data, 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while n_read := file.readinto(view[at:]):
                at += n_read
    return at


def unpack_plain(plan: Plan, files: Sequence[Path], memory: np.ndarray) -> int:
    """Like `read_plain`, and each payload is decompressed into memory of its own."""
    at = 0
    for hop, path in zip(plan.hops, files, strict=True):
        size = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            file.readinto(memory.data[:size])
        header, _, body_at = proven_head(memory.data[:size].toreadonly(), hop.id)
        stored = memory.data[body_at + header.payload_at : body_at + header.payload_end]
        pa.Codec(header.compression).decompress(stored, header.payload_bytes)
        at += header.payload_bytes
    return at


@contextmanager
def directory_in(place: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-restore-", dir=place) as path:
        yield Path(path)


def measure_local(name: str, directory: Path, compression: Any, chain: TokenChain, args: Any, figures: Figures) -> None:
    codec = codec_of(args.layers, args.row_bytes)
    with filled_store(TierConfig(str(directory), compression=compression), chain, codec) as store:
        plan = store.lookup(chain, deadline_s=DEADLINE_S)
        assert plan.n_tokens == len(chain)
        restores = Restores(store, plan, codec)
        files = [directory / hop.id.name for hop in plan.hops]
        memory = np.ones(sum(file.stat().st_size for file in files) + restores.n_bytes, np.uint8)
        jobs: dict[str, Job] = {
            "plain": lambda: read_plain(files, memory) if compression is None else unpack_plain(plan, files, memory),
            "restore": restores.restore,
            "consumed": lambda: restores.consume(memory),
        }
        by_turns(name, jobs, args.rounds, figures)


def measure_s3(chain: TokenChain, args: Any, figures: Figures) -> None:
    codec = codec_of(args.layers, args.row_bytes)
    with S3Server(port=S3_PORT) as server, filled_store(TierConfig(**server.tier()), chain, codec) as store:
        plan = store.lookup(chain, deadline_s=DEADLINE_S)
        assert plan.n_tokens == len(chain)
        restores = Restores(store, plan, codec)
        client = fsspec.filesystem("s3", skip_instance_cache=True, **server.storage_options())
        keys = [f"{server.BUCKET}/kv/{hop.id.name}" for hop in plan.hops]
        jobs: dict[str, Job] = {
            "plain": lambda: sum(map(len, client.cat(keys).values())),
            "restore": restores.restore,
            "alone": lambda: sum(len(client.cat_file(key)) for key in keys),
        }
        by_turns("s3", jobs, args.rounds, figures)


# --- beside a model -------------------------------------------------------------------------------


def measure_model(directory: Path, chain: TokenChain, args: Any, figures: Figures) -> None:
    codec = codec_of(args.layers, args.row_bytes)
    n_ctx = min(len(chain), args.model_tokens) + args.gen + 64
    with (
        filled_store(TierConfig(str(directory)), chain, codec) as store,
        Model(path=args.model, n_ctx=n_ctx, n_parallel=2, n_threads=args.threads, store=store) as model,
    ):
        restores = Restores(store, store.lookup(chain, deadline_s=DEADLINE_S), codec)
        measure_decode(model, restores, args, figures)
        measure_engine(model, store, args, figures)


def measure_decode(model: Model, restores: Restores, args: Any, figures: Figures) -> None:
    prompts = PromptMaker(inspect_gguf(args.model).n_vocab, seed=2)
    rates: dict[str, list[float]] = {"alone": [], "beside": []}
    restored: list[float] = []
    restores.restore()
    decode(model, prompts.make(32), args.gen)
    for turn in range(2 * args.model_rounds):
        kind = ("alone", "beside", "beside", "alone")[turn % 4]
        with loop_of(restores.restore, runs=kind == "beside", pause_s=args.pause_s) as moved:
            seconds = decode(model, prompts.make(32), args.gen)
        rates[kind].append(args.gen / seconds)
        if kind == "beside":
            restored.append(sum(moved) / 1e6 / seconds)
        say(f"  {kind}: {rates[kind][-1]:.1f} tok/s")
    for kind, values in rates.items():
        figures.add(f"decode.{kind}", median(values), "tok/s")
        figures.add(f"decode.{kind}.spread", spread(values), "1")
    figures.add("decode.restored", median(restored), "MB/s")
    alone, beside = median(rates["alone"]), median(rates["beside"])
    figures.add("decode.lost", (1 - beside / alone) / (median(restored) / 1e3), "s/GB")
    figures.add_ratio("ratio.decode", beside, alone)


def decode(model: Model, prompt: list[int], n_gen: int) -> float:
    """Seconds from the first tokens of a reply to its last."""
    first = last = 0
    for event in model.infer(prompt, response_tokens=n_gen, temperature=0, ignore_eos=True):
        if isinstance(event, Tokens):
            last = time.monotonic_ns()
            first = first or last
    return (last - first) / 1e9


@contextmanager
def loop_of(job: Job, *, runs: bool, pause_s: float) -> Iterator[list[int]]:
    """Does `job` again and again on a thread, if it `runs`; gives what it moved."""
    stop, moved = threading.Event(), list[int]()

    def work() -> None:
        while not stop.is_set():
            moved.append(job())
            stop.wait(pause_s)

    thread = threading.Thread(target=work)
    if runs:
        thread.start()
    try:
        yield moved
    finally:
        stop.set()
        if runs:
            thread.join()


def measure_engine(model: Model, store: Store, args: Any, figures: Figures) -> None:
    """A prompt that was computed once is restored after its context was given back."""
    prompt = PromptMaker(inspect_gguf(args.model).n_vocab, seed=3).make(args.model_tokens)
    model.complete(prompt, response_tokens=1, temperature=0)
    speeds = []
    for _ in range(args.model_rounds):
        model.evict()
        assert store.flush(DEADLINE_S)
        model.complete(prompt[:8], response_tokens=1, temperature=0)  # makes the context anew
        stats = model.complete(prompt, response_tokens=1, temperature=0).stats
        assert stats.cache_tier == "ram_file", stats
        speeds.append(stats.cached_tokens * 2 * args.layers * args.row_bytes / 1e3 / stats.restore_ms)
    figures.add("engine.ram", median(speeds), "MB/s")
    figures.add("engine.ram.spread", spread(speeds), "1")


def main() -> int:
    parser = make_parser(__doc__)
    add_place_options(parser, ram=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--row-bytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-s3", action="store_true")
    parser.add_argument("--model", help="a GGUF to decode beside restores; none: without")
    parser.add_argument("--model-tokens", type=int, default=2048, help="of the prompt that the engine restores")
    parser.add_argument("--model-rounds", type=int, default=4)
    parser.add_argument("--gen", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--pause-s", type=float, default=0.0, help="between two restores beside the decode")
    args = parser.parse_args()
    if args.model:
        with_server_threads()
    figures = Figures()
    ids = np.asarray(PromptMaker(150_000).make(args.tokens), dtype=np.uint32)
    for name, place, compression in (
        ("ram", args.ram_dir, None),
        ("disk", args.disk_dir, None),
        ("zstd", args.disk_dir, "zstd"),
    ):
        with directory_in(place) as directory:
            measure_local(name, directory, compression, TokenChain(ROOT, ids), args, figures)
        say(f"{name} is done")
    if not args.no_s3:
        measure_s3(TokenChain(ROOT, ids), args, figures)
    if args.model:
        with directory_in(args.ram_dir) as directory:
            measure_model(directory, TokenChain(ROOT, ids), args, figures)
    return figures.conclude(args.json, [])


if __name__ == "__main__":
    sys.exit(main())
