"""Two tenants on the real engine: a prompt of the one is cold for the other, by counters and by time,
while it runs, after it has run, and after a restart from the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_store import StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.events import CacheHitKind, RequestStats
from erllama.request import GenerationRequest, SamplingParams

pytestmark = pytest.mark.model

POLICY = CachePolicy(min_tokens=16, cold_min_tokens=16, restore_min_tokens=1, restore_always=True)
N_PROMPT = 900


@contextmanager
def model(folder: Path | None = None) -> Iterator[Model]:
    store = None if folder is None else StoreConfig(tiers=(TierConfig(str(folder / "kv")),), min_probe_tokens=1)
    with Model(path="demo", n_ctx=1024, n_parallel=8, n_threads=1, store=store, policy=POLICY) as one:
        yield one


def prompt(seed: int) -> tuple[int, ...]:
    return tuple((seed * 7919 + i * 31) % 1000 for i in range(N_PROMPT))


def request(name: str, salt: str, seed: int = 0, **more: object) -> GenerationRequest:
    greedy = SamplingParams(temperature=0.0, seed=1)
    return GenerationRequest(name, prompt(seed), greedy, max_tokens=4, salt=salt, **more)  # type: ignore[arg-type]


def ask(one: Model, name: str, salt: str, seed: int = 0) -> RequestStats:
    return one.submit(request(name, salt, seed)).result().stats


def is_cold(stats: RequestStats) -> bool:
    return (stats.cached_tokens, stats.cache_hit_kind, stats.computed_tokens) == (0, CacheHitKind.COLD, N_PROMPT)


def test_in_one_context_a_prompt_of_another_tenant_is_cold_and_ones_own_is_warm():
    with model() as one:
        texts = {}
        for name, salt in (("first", "a"), ("other", "b"), ("unsalted", "")):
            reply = one.submit(request(name, salt)).result()
            assert is_cold(reply.stats), name
            texts[name] = reply.tokens
        assert len(set(texts.values())) == 1
        again = ask(one, "again", "a")
        assert (again.cached_tokens >= N_PROMPT - 1, again.cache_tier) == (True, "live")
        assert one.stats().cache.misses == 3
        assert one.stats().cache.hits == {"exact:live": 1}


def test_beside_a_running_prompt_of_another_tenant_nothing_is_waited_for_or_copied():
    with model() as one:
        streams = [one.submit(request(f"{salt}{i}", salt)) for i, salt in enumerate("aabb")]
        told = [stream.result().stats for stream in streams]
        assert sum(stats.computed_tokens >= N_PROMPT for stats in told) == 2
        assert [is_cold(stats) for stats in told] == [True, False, True, False]


def test_after_a_restart_the_store_gives_each_tenant_its_own(tmp_path: Path):
    with model(tmp_path) as one:
        assert is_cold(ask(one, "first", "a"))
    with model(tmp_path) as one:
        assert one.store is not None
        assert one.store.wait_loaded(20)
        assert is_cold(ask(one, "other", "b"))
        assert one.store.stats().hit_tokens == 0
        again = ask(one, "again", "a")
        assert (again.cached_tokens >= N_PROMPT - 1, again.cache_tier) == (True, "disk")
        assert one.store.stats().hit_tokens >= N_PROMPT - 1


def test_the_time_to_the_first_token_tells_nothing_of_another_tenants_prompts():
    """Ratios of the shortest of some: a busy machine makes single ones longer, none shorter."""
    cold, other, warm = [], [], []
    with model() as one:
        for seed in range(6):
            cold.append(ask(one, f"cold {seed}", "a", seed).prefill_ms)
            other.append(ask(one, f"other {seed}", "b", seed).prefill_ms)
            warm.append(ask(one, f"warm {seed}", "a", seed).prefill_ms)
    assert min(warm) < 0.3 * min(cold)  # else the time would tell nothing anyhow
    assert min(other) > 0.6 * min(cold)
