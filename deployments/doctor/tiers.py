"""The store's tiers: reached, written, read, emptied again, and how fast that was."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise

from cache_store import TierConfig, TierError, open_tier
from cache_store.tiers.base import ReadBuffer, Tier
from deployments.doctor.finding import Finding, fail, gib, ok, warn

_PROBE_BYTES = 8 << 20  # about what a block of an 8B model has
_TIMEOUT_S = 30.0
_SLOW_BYTES_S = 20 << 20
_SKEW_S = 30.0


@dataclass(frozen=True, slots=True)
class TierFacts:
    """A tier after its probe; speeds in bytes per second, `skew_s` by how much its clock is ahead of
    ours, `free_bytes` of the file system, None for what is not known. `unusable`: not even opened.
    """

    url: str
    label: str = ""
    problem: str = ""
    unusable: bool = False
    write_bytes_s: float | None = None
    read_bytes_s: float | None = None
    delete_s: float | None = None
    skew_s: float | None = None
    max_bytes: int | None = None
    free_bytes: int | None = None
    used_bytes: int = 0


def tier_findings(tiers: Sequence[TierFacts], kv_bytes_per_token: dict[str, float]) -> Iterator[Finding]:
    """`kv_bytes_per_token` of each model says what a speed means."""
    if not tiers:
        yield ok("store", "none is configured: what is computed is lost when its process ends")
    for number, tier in enumerate(tiers):
        check = f"tier {number}"
        if tier.problem:
            todo = "look at its URL, credentials (storage_options, the environment of the driver) and permissions"
            why = "what is computed is not kept there; requests are served all the same"
            if tier.unusable:
                why = "no store can be opened with it, and models do not load"
            yield fail(check, f"{tier.url}: {tier.problem}", why, todo)
            continue
        yield _speed(check, tier, kv_bytes_per_token)
        yield from _room(check, tier)
        if tier.skew_s is not None and abs(tier.skew_s) > _SKEW_S:
            told = f"{tier.url}: its clock is {abs(tier.skew_s):.0f} s {'ahead' if tier.skew_s > 0 else 'behind'}"
            why = "claims and what dead writers left are judged by age; S3 refuses requests from 15 minutes on"
            yield warn(check, told, why, "synchronise the clocks (NTP)")
    yield from _order(tiers)


def _speed(check: str, tier: TierFacts, kv_bytes_per_token: dict[str, float]) -> Finding:
    read, write = tier.read_bytes_s or 0.0, tier.write_bytes_s or 0.0
    cached = " from the page cache" if tier.label == "disk" else ""
    told = f"{tier.url} ({tier.label}): reads {_rate(read)}{cached}, writes {_rate(write)}"
    told += f", deletes in {tier.delete_s or 0:.3f} s"
    rates = [f"{read / size:,.0f} tok/s of {model}" for model, size in kv_bytes_per_token.items() if size]
    if rates:
        told += f"; restores up to {', '.join(rates[:4])}"
    if read >= _SLOW_BYTES_S:
        return ok(check, told)
    why = "below 20 MiB/s a prompt is mostly computed faster than its KV is read, and the tier is of little use"
    return warn(check, told, why, "a tier nearer by, compression: zstd, or none")


def _room(check: str, tier: TierFacts) -> Iterator[Finding]:
    """What the store holds already counts as room: it is within the budget."""
    if tier.max_bytes is None or tier.free_bytes is None or tier.free_bytes + tier.used_bytes >= tier.max_bytes:
        return
    told = f"{tier.url}: max_bytes is {gib(tier.max_bytes)}, and {gib(tier.free_bytes)} are free"
    why = "the disk is full before the store evicts; writes fail then, and others' do, too"
    yield warn(check, told, why, f"max_bytes of at most {gib((tier.free_bytes + tier.used_bytes) * 0.9)}")


def _order(tiers: Sequence[TierFacts]) -> Iterator[Finding]:
    """By writes: what was just written to a disk is read from memory."""
    known = [(number, tier.write_bytes_s) for number, tier in enumerate(tiers) if tier.write_bytes_s]
    for (first, speed), (second, faster) in pairwise(known):
        if faster > 3 * speed:
            told = f"tier {second} takes writes {faster / speed:.1f} times as fast as tier {first}"
            why = "writes go to the first tier, and reads prefer it"
            yield warn("order of tiers", told, why, "list the fastest first")


def _rate(bytes_s: float) -> str:
    return f"{gib(bytes_s)}/s"


def collect_tiers(configs: Iterable[TierConfig]) -> list[TierFacts]:
    """One after another, so that they do not slow each other down; each within `_TIMEOUT_S`."""
    return [_bounded(config) for config in configs]


def _bounded(config: TierConfig) -> TierFacts:
    """A tier that hangs is left behind with its thread, which ends with this process."""
    found = [TierFacts(config.url, problem=f"does not answer within {_TIMEOUT_S:.0f} s")]
    thread = threading.Thread(target=lambda: found.append(probe_tier(config)), daemon=True)
    thread.start()
    thread.join(_TIMEOUT_S)
    return found[-1]


def probe_tier(config: TierConfig) -> TierFacts:
    """Blocks as long as the tier does. Its object is removed also when reading it failed."""
    facts = TierFacts(config.url, max_bytes=config.budget_bytes)
    try:
        tier = open_tier(config)
    except TierError as error:
        return replace(facts, problem=str(error), unusable=True)
    try:
        return _measured(tier, replace(facts, label=tier.label))
    except TierError as error:
        return replace(facts, problem=str(error))
    finally:
        tier.close()


def _measured(tier: Tier, facts: TierFacts) -> TierFacts:
    """The content is random, so that no file system compresses it."""
    name, content = f"doctor-{secrets.token_hex(8)}", os.urandom(_PROBE_BYTES)
    buffer = ReadBuffer()
    buffer.take(_PROBE_BYTES)[:] = bytes(_PROBE_BYTES)  # its memory was touched before, as the store's is
    try:
        writing = _seconds(lambda: tier.publish(name, memoryview(content)))
    except TierError:
        with suppress(TierError):  # the object may be there nonetheless; why it failed matters more
            tier.delete(name)
        raise
    try:
        stat = tier.stat(name)
        now = time.time()
        began = time.perf_counter()
        data = tier.read(name, buffer)
        reading = time.perf_counter() - began
        if data is None or data != content:
            return replace(facts, problem="what was written is not what is read")
    finally:
        deleting = _seconds(lambda: tier.delete(name))
    free, used = _space(facts, tier)
    return replace(
        facts,
        write_bytes_s=_PROBE_BYTES / writing,
        read_bytes_s=_PROBE_BYTES / max(reading, 1e-9),
        delete_s=deleting,
        skew_s=stat.modified_s - now if stat else None,
        free_bytes=free,
        used_bytes=used,
    )


def _seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return max(time.perf_counter() - began, 1e-9)


def _space(facts: TierFacts, tier: Tier) -> tuple[int | None, int]:
    """Free bytes, and what the tier holds: that is looked up only where the rest does not do."""
    if not tier.local:
        return None, 0
    free = shutil.disk_usage(os.path.expanduser(facts.url.removeprefix("file://"))).free
    enough = facts.max_bytes is None or free >= facts.max_bytes
    return free, 0 if enough else sum(stat.n_bytes for stat in tier.list())
