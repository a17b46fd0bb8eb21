"""What the store alone does with the files of a run: finding, reading, copying to S3. In this
process, without a model.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import Figures, median, spread
from numpy.typing import NDArray
from servers import ServerFailed

from cache_store import Block, ChainKey, Plan, Store, StoreConfig, StoreStats, TierConfig, TokenChain

DEADLINE_S = 60.0
UPLOAD_S = 300.0
Image = NDArray[np.uint8]


def root_in(disk: Path) -> ChainKey:
    """The one chain root of a tier's directory: all replicas of a run have the same namespace."""
    (root,) = (ChainKey(entry.name) for entry in disk.iterdir() if re.fullmatch(r"[0-9a-f]{64}", entry.name))
    return root


def measure_reads(
    disk: Path, prefixes: Sequence[list[int]], repeats: int, before_read: Callable[[], None], figures: Figures
) -> None:
    """`Store.read` of stored prefixes against plain reads of the same files, in turns; by the
    length of the prefix.
    """
    root = root_in(disk)
    rates: dict[tuple[int, str], list[float]] = defaultdict(list)
    with Store(StoreConfig(tiers=(TierConfig(str(disk)),))) as store:
        store.wait_loaded(DEADLINE_S)
        for repeat in range(repeats + 1):
            for prefix in prefixes:
                plan = store.lookup(TokenChain(root, np.asarray(prefix, dtype=np.uint32)), deadline_s=DEADLINE_S)
                assert plan.n_tokens == len(prefix), (plan.n_tokens, len(prefix))
                files = [disk / hop.id.name for hop in plan.hops]
                n_bytes = sum(file.stat().st_size for file in files)
                jobs = read_jobs(store, plan, files, np.ones(n_bytes, dtype=np.uint8))
                for name, job in jobs if repeat % 2 else reversed(jobs):
                    before_read()
                    seconds = job()
                    if repeat:  # the first one touches fresh memory on all sides
                        rates[len(prefix), name].append(n_bytes / 1e6 / seconds)
    for (n_tokens, name), values in sorted(rates.items()):
        figures.add(f"read.{name}_{n_tokens}", median(values), "MB/s")
        figures.add(f"read.{name}_{n_tokens}.spread", spread(values), "1")
    for n_tokens in sorted({n_tokens for n_tokens, _ in rates}):
        figures.add_ratio(
            f"ratio.read_{n_tokens}", figures.get(f"read.store_{n_tokens}"), figures.get(f"read.plain_{n_tokens}")
        )
        figures.add_ratio(
            f"ratio.restore_{n_tokens}", figures.get(f"read.restore_{n_tokens}"), figures.get(f"read.whole_{n_tokens}")
        )


def read_jobs(store: Store, plan: Plan, files: Sequence[Path], image: Image) -> list[tuple[str, Callable[[], float]]]:
    """The four ways of reading that are compared; each gives seconds. `image` is memory in use, as
    large as all files together.
    """
    one = max(file.stat().st_size for file in files) + 1  # a read that is full would be followed by another one
    return [
        ("store", lambda: store.read(plan, lambda block, n_use: None, DEADLINE_S).seconds),
        ("plain", lambda: read_plain(files, image[:one], 0)),
        ("restore", lambda: store.read(plan, copier(image), DEADLINE_S).seconds),
        ("whole", lambda: read_plain(files, image, 1)),
    ]


def read_plain(files: Sequence[Path], memory: Image, step: int) -> float:
    """Seconds to read whole files one after the other, with `step` 1 one behind the other, with 0
    all into the same place.
    """
    view = memory.data
    start = 0
    started = time.monotonic_ns()
    for path in files:
        at = start
        with path.open("rb", buffering=0) as file:
            while n_read := file.readinto(view[at:]):
                at += n_read
        start += step * (at - start)
    return (time.monotonic_ns() - started) / 1e9


def copier(image: Image) -> Callable[[Block, int], None]:
    """A consumer that puts rows one behind the other, as much work as filling the image that goes
    into a context.
    """
    at = 0

    def consume(block: Block, n_use: int) -> None:
        nonlocal at
        for rows in block.rows:
            used = rows[:n_use]
            image[at : at + used.nbytes].reshape(used.shape)[:] = used
            at += used.nbytes

    return consume


def measure_lookups(disk: Path, prompts: Sequence[list[int]], figures: Figures) -> None:
    """The way to a plan on the disk tier alone, for prompts whose last tokens nobody has seen."""
    with Store(StoreConfig(tiers=(TierConfig(str(disk)),))) as store:
        store.wait_loaded(DEADLINE_S)
        figures.add("lookup.disk", lookup_ms(store, root_in(disk), prompts), "ms")


def lookup_ms(store: Store, root: ChainKey, prompts: Sequence[list[int]]) -> float:
    """Median milliseconds of a lookup that finds something."""
    times = []
    for prompt in prompts:
        started = time.monotonic_ns()
        plan = store.lookup(TokenChain(root, np.asarray(prompt, dtype=np.uint32)), deadline_s=DEADLINE_S)
        times.append((time.monotonic_ns() - started) / 1e6)
        assert plan.n_tokens > 0
    return median(times)


def upload(disk: Path, s3: Mapping[str, Any], prompts: Sequence[list[int]], figures: Figures) -> None:
    """Let a store with both tiers find that S3 lacks what is on disk, then look prompts up in
    it.
    """
    started = time.monotonic()
    with Store(StoreConfig(tiers=(TierConfig(str(disk)), TierConfig(**s3)))) as store:
        while not _agree(stats := store.stats()):
            if time.monotonic() > started + UPLOAD_S:
                raise ServerFailed(f"S3 has not got everything after {UPLOAD_S:.0f} s: {stats}")
            time.sleep(0.1)
        figures.add("upload.s3", stats.tiers[1].written_bytes / 1e6 / (time.monotonic() - started), "MB/s")
        figures.add("lookup.disk+s3", lookup_ms(store, root_in(disk), prompts), "ms")


def _agree(stats: StoreStats) -> bool:
    return stats.tiers[0].objects == stats.tiers[1].objects > 0
