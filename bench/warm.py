"""What a stored prefix is worth: time to the first token of prefix + 16 fresh tokens, by where the
prefix is found. Over HTTP.

    python bench/warm.py --model MODEL.gguf --peer LLAMA_SERVER [--lengths 512,2048,8192] [--rounds
    3] [--no-s3] [--drop-caches]

Prompts are token ids for both servers, one sequence (slot) each, one token generated. Every round
and length has a prefix of its own.

ours.ttft.cold_N        nobody has seen the prefix
ours.ttft.live_N        the request before had it: it is in the context
ours.ttft.ram_N         another prompt has taken its place in the context; it is read from the
                        ram_file tier
ours.ttft.evicted_N     the same after `evict`, which gives the context's memory back: a new context
                        is made, too
ours.ttft.other_N       asked of another replica process on this machine, which reads what the first
                        one wrote
ours.ttft.disk_N        after shutdown and a new start, with the disk tier alone
ours.ttft.disk_first_N  the very first request of that start
ours.ttft.s3_N          after another start with an S3 tier alone (moto, on this machine and its
                        cores)
peer.ttft.cold_N, hit_N llama-server: not seen; in the slot
peer.ttft.saved_N       after slot save, a new start and slot restore, without the restore call;
                        peer.restore_N is that call alone, peer.ttft.saved_incl_N the sum of both;
                        saved_incl_first_N for the first of that start
*.spread                (max - min) / median over the rounds
*.cached_N              cached_tokens of the usage, the least of all rounds
read.store_N, .plain_N  speed of `Store.read` on the disk tier in this process, checksums verified,
                        and of `readinto` of the same files into one small buffer; read.restore also
                        copies the rows into an image of the whole prefix, read.whole reads the
                        files one behind the other into as much memory
reported.disk, .s3      what the replica's store_stats say about reading a file of the tier
lookup.disk, .disk+s3   milliseconds of `Store.lookup` for such a prompt, in this process: its
                        suffix is looked for in every tier there is
upload.s3               speed at which a store on both tiers copies what is on disk to S3

The run fails when any warm request was not served from where it should be: `cached_tokens` must
cover the prefix, and the engine must have counted a hit in that tier. Speeds are not judged here;
the aims are ratio.disk/hit <= 1.5, ratio.cold/disk >= 100 (both at 8192) and ratio.restore_8192 >=
0.5. The page cache stays warm over a restart, for both servers alike; `--drop-caches` empties it
before every request that reads from disk (root only; weights that are mapped stay). Policies are as
shipped, except that a restore is always done, however slow the tier, and that it may take a minute.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from completions import ask
from harness import Figures, PromptMaker, add_place_options, int_list, make_parser, median, say, spread
from servers import Ours, Peer, S3Server, ServerFailed, in_new_process
from store_speed import measure_lookups, measure_reads, upload

from deployments.jobs.remote_model import RemoteModel
from erllama.demo import demo_model_path
from erllama.gguf.check import inspect_gguf

MODEL_ID, OTHER_ID = "bench", "other"
SUFFIX = 16
WARM_UP_TOKENS = 64
COLD_SHARE = 0.1  # random prompts may share a token or two
SETTLE_S = 60.0
QUIET_S = 0.4  # a file of 256 tokens reaches any of the tiers in less
POLICY = {"restore_always": True, "read_timeout_s": 60.0}
TIERS = {"live": "live", "ram": "ram_file", "evicted": "ram_file", "other": "ram_file", "disk": "disk", "s3": "s3"}

Key = tuple[int, int]  # length of a prefix, round


@dataclass(frozen=True, slots=True)
class Shot:
    """One request: `case` is where its prefix should have been, `tier` where the engine says it was
    ("" for the peer).
    """

    case: str
    n_tokens: int
    turn: int
    ttft_ms: float
    cached: int
    tier: str = ""
    restore_ms: float = 0.0


def problem_of(shot: Shot) -> str | None:
    """Why this figure would be a lie: None when the prefix was found where the case says."""
    who, _, case = shot.case.partition(".")
    where = f"{shot.case} of {shot.n_tokens} tokens, round {shot.turn}"
    if case == "cold":
        return None if shot.cached <= COLD_SHARE * shot.n_tokens else f"{where}: {shot.cached} tokens were cached"
    if not shot.n_tokens <= shot.cached < shot.n_tokens + SUFFIX // 2:
        return f"{where}: {shot.cached} tokens were cached"
    wanted = TIERS[case.removesuffix("_first")] if who == "ours" else ""
    return None if shot.tier == wanted else f"{where}: came from {shot.tier or 'nowhere'}, not from {wanted}"


def tier_of_hit(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """The tier of the hit that was counted between two snapshots of `CacheCounters.hits`; ""
    without any.
    """
    grown = [name for name, count in after.items() if count > before.get(name, 0)]
    return grown[0].partition(":")[2] if grown else ""


class Prompts:
    """The prefixes of a run, and prompts that begin with them; every suffix is fresh, also over the
    processes of a run (`session`).
    """

    def __init__(
        self, n_vocab: int, lengths: Sequence[int], rounds: int, session: int = 0, suffix: int = SUFFIX
    ) -> None:
        prefix = PromptMaker(n_vocab, seed=0).make
        self.keys: list[Key] = [(n, turn) for turn in range(rounds) for n in lengths]
        self.longest: Key = (max(lengths), 0)
        self.prefixes = {key: prefix(key[0]) for key in self.keys}
        self._make = PromptMaker(n_vocab, seed=1 + session).make
        self._suffix = suffix

    def prompt(self, key: Key) -> list[int]:
        return self.prefixes[key] + self._make(self._suffix)

    def one_each(self) -> list[list[int]]:
        return [self.prompt(key) for key in self.keys]

    def unrelated(self) -> list[int]:
        return self._make(WARM_UP_TOKENS)


class Asker:
    """Requests to one model of a running server. `remote` tells what the engine counted and is
    absent for the peer.
    """

    def __init__(
        self, port: int, model: str, prompts: Prompts, shots: list[Shot], remote: RemoteModel | None = None
    ) -> None:
        self._port, self._model, self._prompts, self._shots, self._remote = port, model, prompts, shots, remote

    def ask(self, case: str, key: Key, *, restore_ms: float = 0.0) -> None:
        before = self._hits()
        stream = ask(self._port, self._model, self._prompts.prompt(key))
        tier = tier_of_hit(before, self._hits())
        shot = Shot(case, *key, stream.ttft_s * 1e3, stream.cached_tokens, tier, restore_ms)
        say(f"  {case} {key[0]} round {key[1]}: {shot.ttft_ms:.1f} ms, {shot.cached} cached {tier}")
        self._shots.append(shot)
        self._settle()

    def displace(self) -> None:
        """A short prompt takes the only sequence, so that nothing of interest is left in the
        context.
        """
        ask(self._port, self._model, self._prompts.unrelated())
        self._settle()

    def _settle(self) -> None:
        """Wait until nothing is written to any tier any more: copying must not run beside what is
        measured next.

        The peer gets the same pause: caches cool down, threads fall asleep, and the next request
        pays for it.
        """
        if self._remote is None:
            time.sleep(QUIET_S)
            return
        deadline = time.monotonic() + SETTLE_S
        written, since = -1, time.monotonic()
        while time.monotonic() < since + QUIET_S:
            stats = self._remote.store_stats()[0]
            assert stats is not None
            now = sum(tier.written_bytes for tier in stats.tiers) + stats.pending
            if now != written or stats.pending:
                written, since = now, time.monotonic()
            if since > deadline:
                raise ServerFailed(f"the store still writes after {SETTLE_S:.0f} s: {stats}")
            time.sleep(0.05)

    def _hits(self) -> Mapping[str, int]:
        return {} if self._remote is None else self._remote.stats()[0].cache.hits


# --- ours -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setup:
    """What all servers of a run have in common."""

    path: str
    n_ctx: int
    threads: int
    port: int
    peer: str | None
    drop_caches: bool

    def args(self, ids: Sequence[str], tiers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The config of our application: one replica process per id, all alike, on one store."""
        spec = {
            "path": self.path, "n_ctx": self.n_ctx, "n_parallel": 1, "n_threads": self.threads, "num_cpus": 0.5,
            "flash_attn": True, "type_k": "f16", "type_v": "f16",
        }  # fmt: skip
        return {"models": [{"id": id, **spec} for id in ids], "store": {"tiers": list(tiers)}, "policy": POLICY}

    def make_peer(self, slot_dir: str) -> Peer:
        assert self.peer is not None
        return Peer(
            self.peer, self.path, threads=self.threads, slots=1, n_ctx=self.n_ctx, port=self.port + 1, slot_dir=slot_dir
        )

    def before_disk(self) -> None:
        if self.drop_caches:
            os.sync()
            Path("/proc/sys/vm/drop_caches").write_text("3\n")


@contextlib.contextmanager
def our_server(setup: Setup, ids: Sequence[str], tiers: Sequence[Mapping[str, Any]]) -> Iterator[Ours]:
    with Ours(setup.args(ids, tiers), port=setup.port) as server, server.connected():
        yield server


def fill(setup: Setup, tiers: Sequence[Mapping[str, Any]], prompts: Prompts) -> list[Shot]:
    """Compute every prefix once, then find it in the context, in RAM, and in RAM from another
    process.
    """
    shots: list[Shot] = []
    with our_server(setup, (MODEL_ID, OTHER_ID), tiers) as server:
        remote = RemoteModel.connect(MODEL_ID)
        asker = Asker(server.port, MODEL_ID, prompts, shots, remote)
        other = Asker(server.port, OTHER_ID, prompts, shots, RemoteModel.connect(OTHER_ID))
        asker.displace()
        other.displace()
        for key in prompts.keys:
            asker.ask("ours.cold", key)
            asker.ask("ours.live", key)
        for key in prompts.keys:
            asker.displace()
            asker.ask("ours.ram", key)
            remote.evict()
            asker.ask("ours.evicted", key)
            other.displace()
            other.ask("ours.other", key)
    return shots


def revive(setup: Setup, case: str, tier: Mapping[str, Any], prompts: Prompts) -> tuple[list[Shot], float]:
    """A new start that has nothing but one tier, and what it believes about the tier's bytes per
    second.
    """
    shots: list[Shot] = []
    with our_server(setup, (MODEL_ID,), [tier]) as server:
        remote = RemoteModel.connect(MODEL_ID)
        asker = Asker(server.port, MODEL_ID, prompts, shots, remote)
        setup.before_disk()
        asker.ask(f"ours.{case}_first", prompts.longest)
        for key in prompts.keys:
            asker.displace()
            setup.before_disk()
            asker.ask(f"ours.{case}", key)
        stats = remote.store_stats()[0]
        assert stats is not None
    return shots, stats.tiers[0].read_bytes_per_s


def revive_alone(setup: Setup, case: str, tier: Mapping[str, Any], prompts: Prompts, figures: Figures) -> list[Shot]:
    shots, bytes_per_s = in_new_process(revive, setup, case, tier, prompts)
    figures.add(f"reported.{case}", bytes_per_s / 1e6, "MB/s")
    return shots


# --- the peer -------------------------------------------------------------------------------------


def slot_file(key: Key) -> str:
    return f"{key[0]}-{key[1]}.bin"


def fill_peer(setup: Setup, slot_dir: str, prompts: Prompts, shots: list[Shot]) -> None:
    with setup.make_peer(slot_dir) as server:
        asker = Asker(server.port, MODEL_ID, prompts, shots)
        asker.displace()
        for key in prompts.keys:
            asker.ask("peer.cold", key)
            asker.ask("peer.hit", key)
            server.slot("save", slot_file(key))


def revive_peer(setup: Setup, slot_dir: str, prompts: Prompts, shots: list[Shot]) -> None:
    with setup.make_peer(slot_dir) as server:
        asker = Asker(server.port, MODEL_ID, prompts, shots)

        def restore_and_ask(case: str, key: Key) -> None:
            setup.before_disk()
            started = time.monotonic_ns()
            server.slot("restore", slot_file(key))
            restore_ms = (time.monotonic_ns() - started) / 1e6
            asker.ask(case, key, restore_ms=restore_ms)

        restore_and_ask("peer.saved_first", prompts.longest)
        for key in prompts.keys:
            asker.displace()
            restore_and_ask("peer.saved", key)


# --- the report -----------------------------------------------------------------------------------


def summarise(figures: Figures, shots: Sequence[Shot], lengths: Sequence[int]) -> None:
    """Medians over the rounds, the least cached tokens, then the ratios of the medians."""
    for case in dict.fromkeys(shot.case for shot in shots):
        for n in lengths:
            group = [shot for shot in shots if (shot.case, shot.n_tokens) == (case, n)]
            if group:
                _add_case(figures, case, n, group)
    for n in lengths:
        _add_ratios(figures, n)
    figures.extra["shots"] = [asdict(shot) for shot in shots]


def _add_case(figures: Figures, case: str, n: int, group: Sequence[Shot]) -> None:
    who, _, where = case.partition(".")
    times = [shot.ttft_ms for shot in group]
    figures.add(f"{who}.ttft.{where}_{n}", median(times), "ms")
    if len(group) > 1:
        figures.add(f"{who}.ttft.{where}_{n}.spread", spread(times), "1")
    if where.startswith("saved"):
        figures.add(f"{who}.{where.replace('saved', 'restore')}_{n}", median(shot.restore_ms for shot in group), "ms")
        figures.add(
            f"{who}.ttft.{where.replace('saved', 'saved_incl')}_{n}",
            median(shot.ttft_ms + shot.restore_ms for shot in group),
            "ms",
        )
    figures.add(f"{who}.cached.{where}_{n}", min(shot.cached for shot in group), "tokens")


def _add_ratios(figures: Figures, n: int) -> None:
    def ttft(name: str) -> float | None:
        return figures.get(f"{name.partition('.')[0]}.ttft.{name.partition('.')[2]}_{n}")

    for case in ("live", "ram", "evicted", "other", "disk", "disk_first", "s3"):
        figures.add_ratio(f"ratio.cold/{case}_{n}", ttft("ours.cold"), ttft(f"ours.{case}"))
    figures.add_ratio(f"ratio.peer.cold/hit_{n}", ttft("peer.cold"), ttft("peer.hit"))
    figures.add_ratio(f"ratio.cold/peer.cold_{n}", ttft("ours.cold"), ttft("peer.cold"))
    for case in ("live", "ram", "other", "disk"):
        figures.add_ratio(f"ratio.{case}/peer.hit_{n}", ttft(f"ours.{case}"), ttft("peer.hit"))
    figures.add_ratio(f"ratio.disk/peer.saved_incl_{n}", ttft("ours.disk"), ttft("peer.saved_incl"))
    figures.add_ratio(
        f"ratio.disk_first/peer.saved_incl_first_{n}", ttft("ours.disk_first"), ttft("peer.saved_incl_first")
    )


def run(setup: Setup, prompts: Callable[[int], Prompts], args: Any, figures: Figures) -> list[Shot]:
    """All servers of a run, one after the other."""
    shots: list[Shot] = []
    with (
        tempfile.TemporaryDirectory(prefix="bench-warm-", dir=args.ram_dir) as ram,
        tempfile.TemporaryDirectory(prefix="bench-warm-", dir=args.disk_dir) as disk,
        contextlib.ExitStack() as stack,
    ):
        shots += in_new_process(fill, setup, [{"url": ram}, {"url": disk}], prompts(0))
        shots += revive_alone(setup, "disk", {"url": disk}, prompts(1), figures)
        measure_lookups(Path(disk), prompts(2).one_each(), figures)
        measure_reads(Path(disk), list(prompts(2).prefixes.values()), args.reads, setup.before_disk, figures)
        if not args.no_s3:
            s3 = stack.enter_context(S3Server(port=args.port + 2)).tier()
            upload(Path(disk), s3, prompts(3).one_each(), figures)
            shots += revive_alone(setup, "s3", s3, prompts(4), figures)
    if setup.peer:
        with tempfile.TemporaryDirectory(prefix="bench-warm-", dir=args.disk_dir) as slot_dir:
            fill_peer(setup, slot_dir, prompts(0), shots)
            revive_peer(setup, slot_dir, prompts(1), shots)
    return shots


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--model", required=True, help="a GGUF file, or demo")
    parser.add_argument("--peer", help="the llama-server binary; without it only ours is measured")
    parser.add_argument(
        "--lengths", type=int_list, default=[512, 2048, 8192], help="tokens of the prefixes, 512 or more"
    )
    parser.add_argument("--rounds", type=int, default=3, help="prefixes of each length (default 3)")
    parser.add_argument(
        "--reads", type=int, default=9, help="reads of each prefix in this process, each way (default 9)"
    )
    parser.add_argument("--suffix", type=int, default=SUFFIX, help=f"fresh tokens after the prefix (default {SUFFIX})")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-s3", action="store_true", help="leave the S3 tier out")
    parser.add_argument(
        "--drop-caches", action="store_true", help="empty the page cache before every read from disk; needs root"
    )
    add_place_options(parser, ram=True)
    parser.add_argument("--port", type=int, default=8230)
    args = parser.parse_args()
    if min(args.lengths) < 512:
        parser.error("--lengths must be 512 or more: shorter sequences are not saved")
    if args.drop_caches and not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        parser.error("--drop-caches: this user may not write /proc/sys/vm/drop_caches")

    path = str(demo_model_path()) if args.model == "demo" else os.path.abspath(args.model)
    n_ctx = -(-(max(args.lengths) + args.suffix + 8) // 256) * 256
    setup = Setup(path, n_ctx, args.threads, args.port, args.peer, args.drop_caches)
    info = inspect_gguf(path)
    if args.peer and n_ctx > info.n_ctx_train:
        parser.error(
            f"--peer: llama-server gives a slot no more than the {info.n_ctx_train} tokens that the model was trained with"
        )
    figures = Figures()
    figures.add("page_cache_dropped", int(args.drop_caches), "1")
    shots = run(
        setup, lambda session: Prompts(info.n_vocab, args.lengths, args.rounds, session, args.suffix), args, figures
    )
    summarise(figures, shots, args.lengths)
    failures = [problem for shot in shots if (problem := problem_of(shot)) is not None]
    return figures.conclude(args.json, failures)


if __name__ == "__main__":
    sys.exit(main())
