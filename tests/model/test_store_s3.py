"""A real engine over S3 (moto's server): a bucket outlives the machine, and a dead endpoint costs
hits only.
"""

from __future__ import annotations

import logging
import random
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pytest
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from cache_store import StoreConfig, StoreStats, TierConfig
from cache_store.tiers import guarded
from erllama import Model
from erllama.cache.policy import CachePolicy
from erllama.events import Completion

pytestmark = pytest.mark.model

POLICY = CachePolicy(
    min_tokens=32,
    cold_min_tokens=32,
    cold_step_tokens=256,
    restore_min_tokens=1,
    restore_always=True,
    logits_share=1e9,
    read_timeout_s=5.0,
    evict_save_timeout_s=5.0,
)
PROMPTS = [random.Random(seed).choices(range(1000), k=600) for seed in range(4)]
WHOLE_BLOCKS = 512  # before the bucket has been listed, nobody looks for less there
SAMPLED = {
    "response_tokens": 12,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "seed": 5,
    "ignore_eos": True,
}
FEW_SECONDS = 10.0  # two or three attempts of the driver, at most


class S3:
    """An endpoint that can be taken away and brought back, with what it holds."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.port = 0
        self.bucket = f"kv-{secrets.token_hex(4)}"  # what moto holds outlives its servers
        self.start()
        # One session: each of its own reads the whole description of S3 again (0.4 s).
        self.options: dict[str, Any] = {
            "endpoint_url": self.url,
            "key": "test",
            "secret": "test",
            "session": AioSession(),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def tier(self, **options: object) -> TierConfig:
        return TierConfig(f"s3://{self.bucket}/kv", storage_options={**self.options, **options})

    def stop(self) -> None:
        self._server.stop()
        self._server._server.server_close()


@pytest.fixture
def s3() -> Iterator[S3]:
    server = S3()
    fsspec.filesystem("s3", skip_instance_cache=True, **server.options).mkdir(server.bucket)
    yield server
    server.stop()


@contextmanager
def model(*tiers: TierConfig) -> Iterator[Model]:
    store = StoreConfig(tiers=tiers, min_probe_tokens=1, retry_s=0.05) if tiers else None
    with Model(
        path="demo", n_ctx=1024, n_parallel=2, n_threads=1, type_k="q8_0", type_v="q8_0", store=store, policy=POLICY
    ) as one:
        yield one


def ask(one: Model, tokens: list[int]) -> Completion:
    return one.complete(tokens, **SAMPLED)


def stats(one: Model) -> StoreStats:
    found = one.store_stats()
    assert found is not None
    return found


@pytest.fixture(scope="module")
def cold() -> list[tuple[int, ...]]:
    """The replies to `PROMPTS` of an engine without a store."""
    with model() as one:
        return [ask(one, tokens).tokens for tokens in PROMPTS]


def test_a_machine_that_lost_its_disk_restores_from_the_bucket(s3, cold, tmp_path):
    local, remote = TierConfig(str(tmp_path / "fast")), s3.tier()
    with model(local, remote) as one:
        assert one.model_info().tier == "disk+s3"
        assert ask(one, PROMPTS[0]).tokens == cold[0]
    shutil.rmtree(tmp_path / "fast")
    with model(local, remote) as one:
        again = ask(one, PROMPTS[0])
        assert (again.tokens, again.stats.cache_tier) == (cold[0], "s3")
        assert again.stats.cached_tokens >= WHOLE_BLOCKS
    with model(local) as one:
        promoted = ask(one, PROMPTS[0])
        assert (promoted.tokens, promoted.stats.cache_tier) == (cold[0], "disk")


@pytest.mark.parametrize("with_disk", [False, True], ids=["alone", "below a disk"])
def test_a_bucket_that_goes_away_while_it_serves_costs_hits_and_is_used_when_it_is_back(
    s3, cold, tmp_path, monkeypatch, with_disk
):
    monkeypatch.setattr(guarded, "FIRST_S", 0.01)  # a dead tier is tried again at once
    monkeypatch.setattr(guarded, "LONGEST_S", 0.01)
    remote = s3.tier(config_kwargs={"retries": {"max_attempts": 0}})
    tiers = [TierConfig(str(tmp_path / "fast")), remote] if with_disk else [remote]
    with model(*tiers) as one:
        assert ask(one, PROMPTS[0]).tokens == cold[0]
        s3.stop()
        for i in (1, 2, 0):
            began = time.monotonic()
            assert ask(one, PROMPTS[i]).tokens == cold[i]
            one.evict()
            assert time.monotonic() - began < FEW_SECONDS
        assert stats(one).tiers[-1].errors > 0
        assert with_disk or sum(stats(one).dropped.values()) > 0
        s3.start()
        while not stats(one).tiers[-1].available:
            time.sleep(0.001)
        assert ask(one, PROMPTS[3]).tokens == cold[3]
    shutil.rmtree(tmp_path / "fast", ignore_errors=True)
    with model(remote) as one:
        again = ask(one, PROMPTS[3])
        assert (again.tokens, again.stats.cache_tier) == (cold[3], "s3")
        assert again.stats.cached_tokens >= WHOLE_BLOCKS


def test_a_model_whose_only_tier_refuses_connections_starts_serves_and_stops(cold):
    """With the driver settings that everybody gets."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    dead = TierConfig(
        "s3://bucket/kv", storage_options={"endpoint_url": f"http://127.0.0.1:{port}", "key": "test", "secret": "test"}
    )
    began = time.monotonic()
    with model(dead) as one:
        assert time.monotonic() - began < FEW_SECONDS
        for i in range(2):
            began = time.monotonic()
            assert ask(one, PROMPTS[i]).tokens == cold[i]
            assert time.monotonic() - began < FEW_SECONDS
        began = time.monotonic()
    assert time.monotonic() - began < FEW_SECONDS
