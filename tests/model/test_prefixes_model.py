"""Prefixes and sessions of the demo model: what moved to another store, or was forked, goes on exactly
as it would have.

With a q8_0 KV cache it is exact (see test_exactness.py).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache_store import StoreConfig, TierConfig
from erllama import Model
from erllama.cache.policy import CachePolicy

pytestmark = pytest.mark.model

POLICY = CachePolicy(min_tokens=64, cold_min_tokens=64, restore_min_tokens=1, restore_always=True)
SAMPLED = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 7, "ignore_eos": True}


@contextmanager
def opened(folder: Path, **settings: object) -> Iterator[Model]:
    store = StoreConfig(tiers=(TierConfig(str(folder)),), min_probe_tokens=1)
    defaults: dict[str, object] = {"path": "demo", "n_ctx": 2048, "n_parallel": 4, "n_threads": 1}
    with Model(store=store, policy=POLICY, type_k="q8_0", type_v="q8_0", **{**defaults, **settings}) as model:
        yield model


def text(n_chars: int) -> str:
    words = ["the", "river", "a", "stone", "bread", "and", "winter", "seven", "quiet", "lamp", "of", "green", "paper"]
    return " ".join(random.Random(3).choices(words, k=n_chars // 5))[:n_chars]


def test_an_exported_prefix_is_warm_and_exact_in_a_new_store(tmp_path: Path):
    with opened(tmp_path / "old") as model:
        tokens = model.tokenize(text(3000))
        cold = model.complete(tokens, response_tokens=40, logprobs=3, **SAMPLED)
        model.evict()
        key = max(model.list_cached_prefixes(), key=lambda prefix: prefix.n_tokens).key
        file = list(model.export_prefix(key))
    with opened(tmp_path / "new") as model:
        report = model.import_prefix(file)
        assert report.n_tokens >= len(tokens)
        warm = model.complete(tokens, response_tokens=40, logprobs=3, **SAMPLED)
        assert (cold.stats.cached_tokens, warm.stats.cache_tier) == (0, "disk")
        assert warm.stats.cached_tokens >= len(tokens) - 1
        assert warm.tokens == cold.tokens
        assert [row.logprob for row in warm.logprobs] == [row.logprob for row in cold.logprobs]


@pytest.mark.parametrize("n_parallel", [1, 4])
def test_two_ways_from_one_session_do_not_disturb_each_other(tmp_path: Path, n_parallel: int):
    """Each is what a session that was never forked says: with the copy in the context, and through the
    store when there is one sequence only.
    """
    with opened(tmp_path / "kv", n_parallel=n_parallel) as model:
        tokens = model.tokenize(text(1500))
        suffixes = {name: model.tokenize(suffix) for name, suffix in (("old", " The end."), ("new", " Once more,"))}
        model.infer(tokens, session_id="old", response_tokens=20, **SAMPLED).result()
        committed = model.transcript("old")
        assert model.fork_session("old", "new") is (n_parallel > 1)
        streams = {n: model.continue_(n, s, response_tokens=30, **SAMPLED) for n, s in suffixes.items()}
        replies = {name: stream.result() for name, stream in streams.items()}
        assert all(reply.stats.cached_tokens > len(tokens) for reply in replies.values())
        again = {n: model.continue_(n, [], response_tokens=20, **SAMPLED).result() for n in suffixes}
    with opened(tmp_path / "other") as alone:
        for name, suffix in suffixes.items():
            said = alone.complete([*committed, *suffix], response_tokens=30, **SAMPLED)
            assert said.tokens == replies[name].tokens
            more = alone.complete([*committed, *suffix, *said.tokens], response_tokens=20, **SAMPLED)
            assert more.tokens == again[name].tokens
    assert replies["old"].tokens != replies["new"].tokens
