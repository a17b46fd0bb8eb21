"""The site that the pictures show: a model over a real replica with a real store, and a cluster of the tests."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from docs.generate.screenshots.speaker import SpeakingBackend
from tests.support.admin_site import site
from tests.support.http_site import serving
from tests.support.hub_fakes import LOADED, FakeLibrary, manifest
from tests.support.page_cluster import CLUSTER, GIB, WithCluster

MODEL = "demo"
DAYS = ("2026-11-23", "2026-11-24")
QUESTION = "Which file has the defaults?"
N_SNAPSHOTS = 14
SNAPSHOT_S = 5
_STORED_S = 20.0
AGENT = (
    "You are the agent of a repository. Answer in one sentence, and name files by their path.\nToday is {day}.\n"
    + ("Read a file before you change it, run its tests afterwards, and tell what you have not tried. " * 3)
)


class LiveSite:
    """An app over a replica that lives as long as the server does: serve it with its lifespan."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        library = FakeLibrary(manifest("qwen:0.5b"))
        library.standings["qwen:0.5b"] = LOADED
        async with AsyncExitStack() as stack:
            await receive()
            opened = site(self._folder, backend=SpeakingBackend, library=library)
            self._app = (await stack.enter_async_context(opened)).app
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


@contextmanager
def picture_site() -> Iterator[tuple[str, WithCluster]]:
    """Its URL, and the cluster whose snapshot may be changed. Nothing is stored as yet."""
    with tempfile.TemporaryDirectory() as folder:
        cluster = WithCluster(LiveSite(Path(folder)), CLUSTER)
        with serving(cluster, lifespan="on") as url:
            yield url, cluster


def ask_on_two_days(url: str) -> None:
    """The requests `monday` and `tuesday` of an agent whose system text has the date."""
    for request_id, day in zip(("monday", "tuesday"), DAYS, strict=True):
        _ask(url, request_id, day)


def _ask(url: str, request_id: str, day: str) -> None:
    messages = [
        {"role": "system", "content": AGENT.format(day=day)},
        {"role": "user", "content": QUESTION},
    ]
    body = {"model": MODEL, "messages": messages}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-request-id": request_id}, timeout=30)
    reply.raise_for_status()


def wait_stored(url: str, n: int) -> None:
    """Until the store lists `n` prefixes: they are written behind the replies."""
    until = time.monotonic() + _STORED_S
    while len(httpx.get(f"{url}/erllama/v1/prefixes", params={"model": MODEL}, timeout=30).json()["data"]) < n:
        if time.monotonic() > until:
            raise TimeoutError(f"the store does not list {n} prefixes")
        time.sleep(0.05)


def snapshots() -> Iterator[dict[str, Any]]:
    """The cluster of the tests, `SNAPSHOT_S` apart, while requests are served and the scheduler makes room once."""
    for step in range(N_SNAPSHOTS):
        told = copy.deepcopy(CLUSTER)
        told["time"] += SNAPSHOT_S * step
        busy = step % 5
        replica = told["models"][0]["replicas"][0]
        replica["hits"] = {"exact:live": 20 + 3 * step, "partial:disk": 4 + step // 2, "cold": 3 + step // 4}
        replica["prompt_tokens"] += 900 * step + 120 * busy
        replica["cached_tokens"] += 800 * step + 60 * busy
        replica["saves"] = {"final": 9 + 2 * step, "cold": 2 + step // 3}
        replica["prefill_seconds_saved"] += 0.9 * step + 0.1 * busy
        told["nodes"][0]["memory_used_bytes"] += busy * GIB // 2
        freed = step > N_SNAPSHOTS // 2
        for tier in told["tiers"]:
            tier["bytes"] += step * GIB // 40
            if freed and tier["name"] == "ram_file":
                tier["bytes"] -= GIB // 2
        if freed:
            told["scheduler"] = {
                "evictions": 2,
                "evicted_bytes": GIB,
                "last": [
                    {
                        "time": CLUSTER["time"] + SNAPSHOT_S * (N_SNAPSHOTS // 2 + 1),
                        "model": MODEL,
                        "reason": "pressure",
                        "kind": "store",
                    }
                    | {"bytes": GIB, "outcome": "done"}
                ],
            }
        yield told
