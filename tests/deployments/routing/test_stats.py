"""What a replica publishes: chains of hashes, thinned to a bound, and what its engine really
holds.
"""

import asyncio
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.config import ModelSpec, RoutingSpec
from deployments.model.replica import ModelReplica
from deployments.routing.prompt import (
    RoutedPrompt,
    chunk_chain,
    chunk_hashes,
    pack_hashes,
    prompt_of,
    session_hash,
    unpack_hashes,
)
from deployments.routing.stats import Published, RoutingStats, thinned
from erllama.cache.live import LivePrefixes
from erllama.errors import EngineStopped
from erllama.model import Model
from erllama.request import GenerationRequest
from erllama.stats import EngineStats
from tests.support.gated_stub import GatedStub
from tests.support.replica_kit import complete

CHUNK = 8
ROUTING = RoutingSpec(chunk_tokens=CHUNK, max_published=64)
STATS = EngineStats(n_parallel=2, n_free_seq_ids=0, n_queued=1, n_generating=2)

tokens_strategy = st.lists(st.integers(0, 2**32 - 1), max_size=40)


@given(tokens_strategy, tokens_strategy, st.integers(1, 9))
def test_chains_are_equal_exactly_as_far_as_tokens_are(a, b, chunk):
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))) // chunk
    ours, theirs = chunk_hashes(chunk_chain(a, chunk)), chunk_hashes(chunk_chain(b, chunk))
    assert len(ours) == len(a) // chunk
    assert ours[:common] == theirs[:common]
    assert set(ours[common:]).isdisjoint(theirs)


@given(tokens_strategy, st.integers(0, 40), st.integers(1, 9))
def test_a_chain_may_be_made_in_parts(tokens, at, chunk):
    whole = chunk_hashes(chunk_chain(tokens, chunk))
    part = chunk_chain(tokens[:at], chunk)
    chunk_hashes(part)
    assert chunk_hashes(part.extended(tokens[at:])) == whole


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_hashes_survive_the_way(hashes):
    assert unpack_hashes(pack_hashes(hashes)) == frozenset(hashes)


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=50, unique=True), max_size=8), st.integers(1, 40))
def test_thinned_chains_keep_the_bound_and_all_hashes_where_they_fit(chains, limit):
    everything = {h for chain in chains for h in chain}
    kept = thinned(chains, limit)
    assert len(kept) == len(set(kept)) <= limit
    assert set(kept) <= everything
    assert len(everything) > limit or set(kept) == everything
    assert len(kept) >= min(limit, sum(bool(chain) for chain in chains), len(everything)) // 2


def test_every_second_hash_goes_before_any_chain_loses_its_end():
    chains = [list(range(10, 20)), list(range(20, 27))]
    assert thinned(chains, 10) == [11, 13, 15, 17, 19, 21, 23, 25, 26]


@pytest.mark.parametrize(
    ("method", "args", "expected"),
    [
        ("generate", (GenerationRequest("q~r3", (1,) * 17, session_id="s", resumed=(2,) * 8),), (25, 3, "s", "q", 3)),
        ("generate", (GenerationRequest("q", (1,) * 17, affinity="key"),), (17, 2, None, "q", 1)),
        ("continue_", ("s", [1], None, {}, "id"), (0, 0, "s", "", 1)),
        ("continue_", ("s", [1], None, {"salt": "a"}, "id"), (0, 0, "a\0s", "", 1)),
        ("continue_", ("s", [1], None, {"salt": None}, "id"), (0, 0, "s", "", 1)),
        ("answer", ("c~r2", "embed", ([[1, 2]],), {}), (0, 0, None, "c", 2)),
        ("tokenize", ("text",), None),
        ("status", (), None),
        ("generate", ("not a request",), None),
    ],
)
def test_the_prompt_of_a_call(method, args, expected):
    prompt = prompt_of(method, list(args), CHUNK)
    if expected is None:
        assert prompt is None
        return
    n_tokens, n_chunks, session, request, attempt = expected
    assert prompt is not None
    assert (prompt.n_tokens, len(prompt.chain), prompt.request, prompt.attempt) == (
        n_tokens,
        n_chunks,
        request,
        attempt,
    )
    assert prompt.affinity == (session_hash("key") if request == "q" and session is None else None)
    assert prompt.session == (None if session is None else session_hash(session))


def live(*idle: np.ndarray, **more: object) -> LivePrefixes:
    return LivePrefixes(
        **{"running": (), "idle": tuple(enumerate(idle)), "n_empty": 1, "sessions": (), "whole": False, **more}
    )


def done(snapshot: LivePrefixes) -> Future[LivePrefixes]:
    future: Future[LivePrefixes] = Future()
    future.set_result(snapshot)
    return future


def test_a_router_takes_a_request_of_one_salt_only_to_what_has_it():
    tokens = np.arange(40, dtype=np.uint32)
    snapshots = [live(tokens, tokens, salts={1: "a"}), live(tokens, tokens, salts={0: "a"})]
    stats = RoutingStats(lambda: done(snapshots.pop(0)), ROUTING)

    def asked(salt: str, **more: object) -> RoutedPrompt:
        request = GenerationRequest("q", tuple(tokens.tolist()), salt=salt, session_id="s", affinity="key", **more)
        prompt = prompt_of("generate", [request], CHUNK)
        assert prompt is not None
        return prompt

    async def collect() -> list[Published]:
        return [Published.parse(await stats.gather(STATS)) for _ in range(2)]

    for published in asyncio.run(collect()):  # the second: the ids have changed hands
        assert published.prefixes == {*asked("").chain, *asked("a").chain}
        assert published.prefixes.isdisjoint(asked("b").chain)
    prompts = [asked(salt) for salt in ("", "a", "b")]
    for part in (lambda p: p.session, lambda p: p.affinity, lambda p: p.chain[-1]):
        assert len(set(map(part, prompts))) == 3


def test_published_stats_are_equal_while_nothing_changes_and_follow_what_does():
    tokens = np.arange(40, dtype=np.uint32)
    snapshots = [live(tokens), live(tokens.copy()), live(np.append(tokens[:24], np.full(16, 7, np.uint32))), live()]
    stats = RoutingStats(lambda: done(snapshots.pop(0)), ROUTING)

    async def collect() -> list[dict]:
        return [await stats.gather(STATS) for _ in range(4)]

    first, again, branched, empty = asyncio.run(collect())
    assert first == again
    assert unpack_hashes(first["prefixes"]) == set(chunk_hashes(chunk_chain(tokens, CHUNK)))
    assert unpack_hashes(branched["prefixes"]) == set(chunk_hashes(chunk_chain([*range(24), *[7] * 16], CHUNK)))
    assert Published.parse(empty) == Published(load=3, n_parallel=2, n_empty=1)


def test_a_model_whose_kv_cannot_be_cut_publishes_ends_alone():
    stats = RoutingStats(lambda: done(live(np.arange(40, dtype=np.uint32), whole=True)), ROUTING)
    published = Published.parse(asyncio.run(stats.gather(STATS)))
    assert published.prefixes == published.tails == {chunk_hashes(chunk_chain(range(40), CHUNK))[-1]}


def test_sessions_beyond_the_bound_are_left_out_and_the_replica_says_so():
    stats = RoutingStats(lambda: done(live(sessions=tuple(f"s{i}" for i in range(65)))), ROUTING)
    published = Published.parse(asyncio.run(stats.gather(STATS)))
    assert len(published.sessions) == 64
    assert session_hash("s0") in published.sessions
    assert not published.all_sessions


def test_an_engine_in_a_long_step_delays_nothing_and_its_answer_is_taken_when_it_comes():
    waiting: Future[LivePrefixes] = Future()
    stats = RoutingStats(lambda: waiting, ROUTING.model_copy(update={"stats_period_s": 0.01}))

    async def run() -> tuple[dict, dict]:
        early = await stats.gather(STATS)
        waiting.set_result(live(np.arange(8, dtype=np.uint32)))
        return early, await stats.gather(STATS)

    early, late = asyncio.run(run())
    assert early == {"load": 3, "n_parallel": 2}
    assert len(late["prefixes"]) == 8


def test_an_engine_that_has_stopped_publishes_that_it_holds_nothing():
    def stopped() -> Future[LivePrefixes]:
        raise EngineStopped("it died")

    assert asyncio.run(RoutingStats(stopped, ROUTING).gather(STATS)) == {"load": 3, "n_parallel": 2}


def test_a_replica_publishes_what_its_context_holds(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"not read by the stub")
    spec = ModelSpec(id="stub", path=str(tmp_path / "model.gguf"), fingerprint="trusted", n_ctx=256, n_parallel=2)

    async def run() -> tuple[Published, list[int]]:
        backends: list[GatedStub] = []

        def backend(config: object) -> GatedStub:
            backends.append(GatedStub(config.n_ctx, config.n_parallel))  # type: ignore[attr-defined]
            return backends[-1]

        replica = ModelReplica(spec, n_cpus=1, routing=ROUTING, make_model=partial(Model, make_backend=backend))
        try:
            backends[0].release()
            ids = [97 + i % 20 for i in range(50)]
            reply = await complete(replica, ids, response_tokens=20, temperature=0, session_id="s", ignore_eos=True)
            published = Published.parse(await replica.record_routing_stats())
            return published, [*ids, *reply.tokens]
        finally:
            await asyncio.to_thread(replica.close)

    published, tokens = asyncio.run(run())
    chain = chunk_hashes(chunk_chain(tokens[:-1], CHUNK))  # the last token was sampled and is in no context
    assert published.prefixes == set(chain)
    assert published.tails == {chain[-1]}
    assert published.sessions == {session_hash("s")}
    assert (published.load, published.n_parallel, published.n_empty) == (0, 2, 1)
