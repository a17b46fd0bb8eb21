"""What the index of the store costs: lookups, adds, evictions, memory, snapshots. No model, no
server, no device.

    python bench/index.py [--blocks 1000,100000,1000000,10000000] [--files 100000] [--json FILE]

The objects are those of conversations of 1 to 60 blocks: a tenth of the system prompts serve most
of them, every turn ends inside a block and leaves a tail, one conversation in five branches off an
earlier one. Every size is measured in a process of its own.

N.add                   objects added per second, tokens known
N.memory                bytes of resident memory per object, tokens of hot ones included; only where
                        the process's own noise does not show
N.memory.tokens         how many of these are the bounded cache of tokens
N.memory.keys           the same of an index that keeps no tokens at all
N.lookup.CASE.p50, p99  microseconds for a prompt of 8192 tokens that is stored (full), stored up to
                        token 5000 (part), or not at all (none)
N.lookup.CASE.cpu99     the p99 of CPU time in a second round: without the neighbours' turns on the
                        processor
N.chain                 microseconds to hash the 32 blocks of such a prompt: what a lookup by keys
                        alone would begin with
N.touch                 microseconds to count a hit on its objects; N.pin: to pin and unpin them
N.victims.one           microseconds to find what frees one block, and to remove it; 1000 objects
                        are pinned
N.victims.first         milliseconds to find the first one, which scans all objects
N.victims.percent       milliseconds to find what frees one percent of the bytes
N.gc                    milliseconds of one full garbage collection: the pause that many objects can
                        cause
N.save, N.load          seconds to make a snapshot, and an index from it; N.size: its bytes per
                        object
FILES.listing           seconds to list a directory of FILES small files and add their names
FILES.lookup.unknown.p50  microseconds for a stored prompt then, when no tokens are known and every
                          block is hashed
FILES.reading           seconds to read their tokens too, from the page cache: what a snapshot saves
                        at least
FILES.load              seconds to make the same index from a snapshot
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figure, Figures, int_list, make_parser, percentile, say
from numpy.typing import NDArray

from cache_store.format.block import BlockId, Kind
from cache_store.format.keys import BLOCK_TOKENS, ChainKey, TokenChain, root_key
from cache_store.index.index import TOKENS_KEPT, Index
from cache_store.index.snapshot import decode, encode
from cache_store.index.walk import Hop

ROOT = root_key("bench")
N_VOCAB = 151_936
PROMPT_TOKENS = 8192
PART_TOKENS = 5000
BLOCK_BYTES = 3 << 20
WARM_UP = 30_000  # objects
N_TIERS = 3  # two, and what is staged in memory
ROUNDS = 400
MEMORY_FROM = 100_000  # objects: 50 MB with their hot tokens

Tokens = NDArray[np.uint32]
Object = tuple[BlockId, Tokens]


class Traffic:
    """An endless stream of the objects that saves of conversations make. `samples` are
    conversations of more than 8192 tokens.
    """

    def __init__(self, n_blocks: int, seed: int = 1) -> None:
        self._random = random.Random(seed)
        self._numbers = np.random.default_rng(seed)
        self._systems = [self._fresh(self._random.randrange(200, 4000)) for _ in range(max(1, n_blocks // 3000))]
        self._earlier: list[Tokens] = []
        self.samples: list[Tokens] = []

    def _fresh(self, n_tokens: int) -> Tokens:
        return self._numbers.integers(0, N_VOCAB, n_tokens, dtype=np.uint32)

    def prompt(self, beginning: Tokens) -> Tokens:
        return np.concatenate([beginning, self._fresh(PROMPT_TOKENS - len(beginning))])

    def objects(self) -> Iterator[Object]:
        """Some come again: what a conversation shares with another."""
        while True:
            tokens, turns = self._conversation()
            if len(tokens) > PROMPT_TOKENS:
                self.samples.append(tokens)
                self.samples = self.samples[-200:]
            yield from cut(tokens, turns)

    def _conversation(self) -> tuple[Tokens, list[int]]:
        if self._earlier and self._random.random() < 0.2:
            earlier = self._random.choice(self._earlier)
            begin = earlier[: self._random.randrange(1, len(earlier))]
        else:
            begin = self._systems[int(len(self._systems) * self._random.random() ** 4)]
        n_tokens = len(begin) + self._random.randrange(1, max(2, 60 * BLOCK_TOKENS - len(begin)))
        tokens = np.concatenate([begin, self._fresh(n_tokens - len(begin))])
        self._earlier = [*self._earlier[-99:], tokens]
        turns = sorted(self._random.randrange(len(begin), n_tokens) for _ in range((n_tokens - len(begin)) // 1500))
        return tokens, [len(begin), *turns, n_tokens]


def cut(tokens: Tokens, turns: list[int]) -> Iterator[Object]:
    """The ROWS objects of a conversation that was saved at the end of every turn."""
    stops = sorted({*turns, *range(BLOCK_TOKENS, len(tokens), BLOCK_TOKENS)} - {0})
    boundary = parent = bytes.fromhex(ROOT)
    start = begin = 0
    for stop in stops:
        key = hashlib.sha256(boundary + tokens[begin:stop].tobytes()).digest()
        yield (
            BlockId(ROOT, Kind.ROWS, ChainKey(parent.hex()), ChainKey(key.hex()), start, stop - start),
            tokens[start:stop],
        )
        if stop % BLOCK_TOKENS == 0:
            boundary, begin = key, stop
        parent, start = key, stop


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds(action: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begun = clock()
    action()
    return clock() - begun


def each_us(
    action: Callable[[Any], object], arguments: Iterable[Any], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Microseconds of `action` with each of `arguments`."""
    return [seconds(partial(action, argument), clock) * 1e6 for argument in arguments]


def size_of(id: BlockId) -> int:
    return BLOCK_BYTES * id.n_tokens // BLOCK_TOKENS


def fill(index: Index, objects: Iterator[Object], n_blocks: int) -> float:
    """Add objects until there are `n_blocks`; the seconds that `add` took."""
    spent = 0.0
    while batch := list(islice(objects, min(10_000, n_blocks - len(index)))):
        batch = [(id, tokens) for id, tokens in batch if not index.has(id)]
        begun = time.perf_counter()
        for id, tokens in batch:
            index.add(id, 0, size_of(id), tokens)
        spent += time.perf_counter() - begun
    return spent


def measure(n_blocks: int) -> list[Figure]:
    """All figures of one size."""
    out = Figures()
    traffic = Traffic(n_blocks)
    index = Index(N_TIERS, time.time)
    objects = traffic.objects()
    for _ in islice(objects, WARM_UP):  # the stream has what it keeps of its own before memory is looked at
        pass
    before = resident_bytes()
    out.add("add", n_blocks / fill(index, objects, n_blocks), "objects/s")
    gc.collect()
    if n_blocks >= MEMORY_FROM:
        out.add("memory", (resident_bytes() - before) / n_blocks, "bytes")
        out.add("memory.tokens", min(TOKENS_KEPT, 1500 * n_blocks) / n_blocks, "bytes")
    measure_lookups(out, index, traffic)
    measure_use(out, index, traffic)
    out.add("gc", seconds(gc.collect) * 1e3, "ms")
    index = measure_snapshot(out, index)
    measure_victims(out, index, traffic)
    return [Figure(f"{n_blocks}.{figure.name}", figure.value, figure.unit) for figure in out.figures]


def measure_keys(n_blocks: int) -> list[Figure]:
    """What the objects of one size take without any tokens."""
    index, objects = Index(N_TIERS, time.time, token_bytes=0), Traffic(n_blocks).objects()
    for _ in islice(objects, WARM_UP):
        pass
    before = resident_bytes()
    fill(index, objects, n_blocks)
    gc.collect()
    return [Figure(f"{n_blocks}.memory.keys", (resident_bytes() - before) / n_blocks, "bytes")]


def measure_lookups(out: Figures, index: Index, traffic: Traffic) -> None:
    stored = [traffic.samples[i % len(traffic.samples)] for i in range(ROUNDS)]
    cases = {
        "full": [tokens[:PROMPT_TOKENS] for tokens in stored],
        "part": [traffic.prompt(tokens[:PART_TOKENS]) for tokens in stored],
        "none": [traffic.prompt(tokens[:0]) for tokens in stored],
    }
    for case, prompts in cases.items():
        times = each_us(partial(hops_of, index), prompts)
        out.add(f"lookup.{case}.p50", percentile(times, 50), "us")
        out.add(f"lookup.{case}.p99", percentile(times, 99), "us")
        out.add(
            f"lookup.{case}.cpu99", percentile(each_us(partial(hops_of, index), prompts, time.thread_time), 99), "us"
        )
    times = each_us(lambda prompt: TokenChain(ROOT, prompt).block_keys(), cases["full"])
    out.add("chain", percentile(times, 50), "us")


def hops_of(index: Index, prompt: NDArray[np.uint32]) -> tuple[Hop, ...]:
    return index.longest_prefix(TokenChain(ROOT, prompt)).hops


def measure_use(out: Figures, index: Index, traffic: Traffic) -> None:
    paths = [[hop.id for hop in hops_of(index, tokens[:PROMPT_TOKENS])] for tokens in traffic.samples]
    out.add("touch", percentile(each_us(index.touch, paths), 50), "us")

    def pin_and_unpin(ids: list[BlockId]) -> None:
        index.pin(ids)
        index.unpin(ids)

    out.add("pin", percentile(each_us(pin_and_unpin, paths), 50), "us")


def measure_snapshot(out: Figures, index: Index) -> Index:
    """The index that came back: evictions are measured on it."""
    n_objects = len(index)
    begun = time.perf_counter()
    data = encode(index.columns(0))
    out.add("save", time.perf_counter() - begun, "s")
    out.add("size", len(data) / n_objects, "bytes")
    again = Index(N_TIERS, time.time)
    del index
    gc.collect()
    out.add("load", seconds(lambda: again.load_columns(decode(data), 0)), "s")
    return again


def measure_victims(out: Figures, index: Index, traffic: Traffic) -> None:
    pinned = [hop.id for tokens in traffic.samples for hop in hops_of(index, tokens)]
    index.pin(pinned[:1000])
    percent = index.bytes_in(0) // 100
    out.add("victims.first", seconds(lambda: index.victims(0, 1)) * 1e3, "ms")
    out.add("victims.percent", seconds(lambda: index.victims(0, percent)) * 1e3, "ms")

    def evict_one() -> None:
        for victim in index.victims(0, BLOCK_BYTES):
            index.remove(victim.id, 0)

    times = [seconds(evict_one) * 1e6 for _ in range(min(ROUNDS, len(index) // 10))]
    out.add("victims.one", percentile(times, 50), "us")


def measure_files(n_files: int) -> list[Figure]:
    """Names from a directory, then tokens from the files, against a snapshot of the same
    objects.
    """
    out = Figures()
    traffic = Traffic(n_files)
    with tempfile.TemporaryDirectory() as folder:
        for id, tokens in islice(traffic.objects(), n_files):
            path = os.path.join(folder, id.name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(tokens.tobytes())
        say(f"{n_files} files written")
        index = Index(N_TIERS, time.time)
        out.add("listing", seconds(lambda: add_names(index, folder)), "s")
        times = each_us(partial(hops_of, index), [tokens[:PROMPT_TOKENS] for tokens in traffic.samples])
        out.add("lookup.unknown.p50", percentile(times, 50), "us")
        out.add("reading", seconds(lambda: read_tokens(index, folder)), "s")
    data = encode(index.columns(0))
    again = Index(N_TIERS, time.time)
    out.add("load", seconds(lambda: again.load_columns(decode(data), 0)), "s")
    out.add_ratio("listing_and_reading/load", (out.get("listing") or 0) + (out.get("reading") or 0), out.get("load"))
    return [
        Figure(f"files.{n_files}.{figure.name}", figure.value, figure.unit) for figure in [*out.figures, *out.ratios]
    ]


def add_names(index: Index, folder: str) -> None:
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(path, name)
            id = BlockId.parse(os.path.relpath(file, folder))
            if id is not None:
                index.add(id, 0, os.stat(file).st_size)


def read_tokens(index: Index, folder: str) -> None:
    for row in index.rows(0):
        with open(os.path.join(folder, row.id.name), "rb") as file:
            index.learn(row.id, np.frombuffer(file.read(), np.uint32))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--blocks", type=int_list, default=[1000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--files", type=int, default=100_000, help="0 leaves the directory out")
    args = parser.parse_args()
    out = Figures()
    context = multiprocessing.get_context("spawn")
    jobs: list[tuple[Callable[[int], list[Figure]], int]] = [(measure, n) for n in args.blocks] + (
        [(measure_files, args.files)] if args.files else []
    )
    jobs += [(measure_keys, n) for n in args.blocks if n >= MEMORY_FROM]
    for job, n in jobs:
        say(job.__name__, n)
        with context.Pool(1) as pool:  # freed memory of one size must not hide what the next one takes
            out.figures += pool.apply(job, (n,))
    out.report(args.json)


if __name__ == "__main__":
    main()
