"""An app with one model over real replicas on the stub backend, without Ray."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from cache_store import StoreConfig, TierConfig
from deployments.config import ModelSpec
from deployments.http.ports import ServedModel
from deployments.model.client import ModelClient
from deployments.model.replica import ModelReplica
from erllama.cache.policy import CachePolicy
from erllama.model import Model
from erllama.testing.stub_backend import StubBackend
from tests.support.http_fakes import FakePrompts, app_of, http_client
from tests.support.local_handle import HANGS, LocalHandle

POLICY = CachePolicy(min_tokens=64, cold_min_tokens=256, share_wait_s=0, restore_always=True)
URL = "/erllama/v1/prefixes"
TEXT = "".join(random.Random(1).choices("abcdefgh ", k=900))

ENDLESS = partial(StubBackend, reply_tokens=0)  # what it writes never ends by itself


@dataclass
class Site:
    """An app with one model, and the replicas below it."""

    http: httpx.AsyncClient
    replicas: list[ModelReplica]
    handle: LocalHandle
    app: Any

    async def kept(self, text: str = TEXT, **more: object) -> dict:
        """A prefix that was computed ahead."""
        reply = await self.http.post(URL, json={"prompt": text, **more})
        assert reply.status_code == 200, reply.text
        for replica in self.replicas:
            await replica.evict()
        for replica in self.replicas:  # as gossip, or time, would have it
            await asyncio.to_thread(replica._model.store.rescan)
        return reply.json()

    async def listed(self, **query: object) -> list[dict]:
        reply = await self.http.get(URL, params=query)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]


@asynccontextmanager
async def site(
    folder: Path,
    *,
    n: int = 1,
    hangs: bool = False,
    store: str = "kv",
    backend: Callable[[int, int], StubBackend] = ENDLESS,
    settings: dict | None = None,
    headers: dict[str, str] | None = None,
    **options: object,
) -> AsyncIterator[Site]:
    if not (folder / "model.gguf").exists():  # "trusted" looks at the time of the last change
        (folder / "model.gguf").touch()
    spec = ModelSpec(id="demo", path=str(folder / "model.gguf"), fingerprint="trusted", n_ctx=4096, n_parallel=3)
    tier = TierConfig(str(folder / store), max_bytes="1GiB")
    config = StoreConfig(tiers=(tier,), retry_s=0.01, **(settings or {}))

    def make_model(config, **more):
        return Model(config, make_backend=lambda c: backend(c.n_ctx, c.n_parallel), **more)

    def start() -> ModelReplica:
        return ModelReplica(spec, n_cpus=1, store=config, policy=POLICY, make_model=make_model)

    replicas = [await asyncio.to_thread(start) for _ in range(n)]
    handle = LocalHandle(*replicas, *[HANGS] * hangs)
    model = ServedModel("demo", ModelClient.of(handle), FakePrompts(), 1_700_000_000)
    try:
        app = app_of(model, **options)
        async with http_client(app, **(headers or {})) as http:
            yield Site(http, replicas, handle, app)
    finally:
        for replica in replicas:
            await asyncio.to_thread(replica.close)
