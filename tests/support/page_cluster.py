"""A cluster for the page to show: snapshots that a test changes, in front of a real application."""

from __future__ import annotations

import copy
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tests.support.admin_site import TEXT, Site, site

GIB = 1 << 30
CLUSTER: dict[str, Any] = {
    "object": "cluster",
    "time": 1_790_000_000.0,
    "nodes": [
        {
            "id": "n1", "address": "10.0.0.1", "alive": True, "cpus": 16, "gpus": 1, "memory_bytes": 64 * GIB,
            "memory_used_bytes": 40 * GIB, "gpu_memory_bytes": 24 * GIB,
            "gpu_memory_used_bytes": 9 * GIB, "pressure": "none",
        },
        {
            "id": "n2", "address": "10.0.0.2", "alive": True, "cpus": 16, "gpus": 0, "memory_bytes": 64 * GIB,
            "memory_used_bytes": 58 * GIB, "gpu_memory_bytes": None, "pressure": "high",
        },
    ],
    "models": [
        {
            "id": "demo", "aliases": ["small"], "from": "config", "state": "ready", "reason": "",
            "replicas": [
                {
                    "id": "a", "node": "n1", "state": "generating", "n_running": 2, "n_queued": 1, "n_parallel": 4, "n_ctx": 4096,
                    "sequences": [
                        {"request_id": "req-1", "state": "generating", "n_tokens": 812, "n_cached": 700},
                        {"request_id": "req-2", "state": "prefilling", "n_tokens": 90, "n_cached": 0},
                    ],
                    "weights_bytes": 3_300_000, "context_bytes": 12_000_000, "prompt_tokens": 9000, "cached_tokens": 7000,
                    "completion_tokens": 1200, "hits": {"exact:live": 20, "partial:disk": 4, "cold": 3}, "saves": {"final": 9, "cold": 2},
                    "evictions": 0, "prefill_tokens_per_s": 812.5, "prefill_seconds_saved": 42.0,
                },
                {"id": "b", "node": "n2", "state": "idle", "n_running": 0},
            ],
        },
        {"id": "big", "from": "hub", "state": "not_loaded"},
        {"id": "broken", "state": "failed", "reason": "its file is damaged: tensor 12 ends behind the end of the file"},
    ],
    "tiers": [
        {"model": "demo", "replica": "a", "name": "ram_file", "bytes": 1 * GIB, "budget_bytes": 2 * GIB, "objects": 40},
        {"model": "demo", "replica": "b", "name": "ram_file", "bytes": 1 * GIB, "budget_bytes": 2 * GIB, "objects": 40},
        {"model": "demo", "replica": "a", "name": "s3", "bytes": 5 * GIB, "budget_bytes": None, "objects": 400},
        {"model": "demo", "replica": "b", "name": "s3", "bytes": 5 * GIB, "budget_bytes": None, "objects": 400},
    ],
    "scheduler": {"evictions": 0, "evicted_bytes": 0, "last": []},
    "unanswered": [],
}  # fmt: skip


WHY = {
    "object": "request.why", "id": "req-1", "model": "demo", "tenant": None, "time": 1_790_000_000.0, "prompt_tokens": 900,
    "cached_tokens": 300, "computed_tokens": 600, "cached_share": 0.3333, "tier": "live", "cause": "noise:date", "position": 301,
    "cost_ms": 1520.5, "detail": "Both sides have a day there.", "known_in": "ram_file",
    "before": {"text": "Today's date: ", "tokens": [1]},
    "prompt": {"text": "Tuesday, and <b>more</b>", "tokens": [2]},
    "stored": {"text": "Monday, and <b>more</b>", "tokens": [3]},
}  # fmt: skip
REQUESTS = {"object": "list", "data": [WHY, WHY | {"id": "req-2", "cause": "extended", "cost_ms": None}]}


class WithCluster:
    """An app that answers `GET /erllama/v1/cluster` with the `snapshot` of now, if a `key` is set to its bearer
    alone, and other paths as `answers` has them.
    """

    def __init__(self, app: Any, snapshot: dict[str, Any], *, key: str = "", **answers: dict[str, Any]) -> None:
        self._app = app
        self.snapshot = snapshot
        self._key = key
        self._answers = {f"/erllama/v1/{name}": answer for name, answer in answers.items()}
        self.n_polls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (answer := self._answers.get(scope["path"])) is not None:
            await _answer(send, 200, answer)
            return
        if scope["type"] != "http" or scope["path"] != "/erllama/v1/cluster":
            await self._app(scope, receive, send)
            return
        self.n_polls += 1
        given = dict(scope["headers"]).get(b"authorization", b"").decode()
        refused = bool(self._key) and given != f"Bearer {self._key}"
        refusal = {"error": {"message": "It needs an admin's key.", "code": "admin_key_required"}}
        await _answer(send, 403 if refused else 200, refusal if refused else self.snapshot)


async def _answer(send: Any, status: int, body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


class StubSite:
    """An app over a real replica on the stub backend, with two prefixes that begin alike stored. It lives as
    long as the server does: serve it with its lifespan.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.site: Site | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            assert self.site is not None
            await self.site.app(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        async with AsyncExitStack() as stack:
            await receive()
            self.site = await stack.enter_async_context(site(self._folder))
            for text in (TEXT[:600] + "x" * 200, TEXT[:60] + "y" * 700):
                await self.site.kept(text)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


def after_eviction() -> dict[str, Any]:
    """`CLUSTER` two seconds on: the scheduler has taken half of the RAM tier of each node, and requests went on."""
    later = copy.deepcopy(CLUSTER)
    later["time"] += 2
    for tier in later["tiers"][:2]:
        tier["bytes"] //= 2
    later["scheduler"] = {
        "evictions": 3, "evicted_bytes": GIB,
        "last": [{"time": later["time"] - 1, "model": "demo", "reason": "pressure", "kind": "store", "bytes": GIB, "outcome": "done"}],
    }  # fmt: skip
    replica = later["models"][0]["replicas"][0]
    replica["hits"]["exact:live"] += 5
    replica["saves"]["evict"] = 2
    replica["evicted"] = {"budget": 7}
    replica |= {"prompt_tokens": 9900, "cached_tokens": 7800, "prefill_seconds_saved": 43.5}
    return later
