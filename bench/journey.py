"""Which of our files a prompt passes on its way, as a number: how far a stranger has to read.

    python bench/journey.py [--names]

One chat request goes to the ingress's application. A replica answers it that is called directly
instead of through Serve, with the demo model; the router's own decision, which Serve makes in the
caller's process, is asked for as the router asks. Every file of ours in which a function was
entered on the way counts, in whichever thread; what only ran at import or while loading does not.

    compute   HTTP -> prompt -> engine -> llama_decode -> reply, and its KV -> a block on disk
    restore   the same prompt after the context is gone: found, read, verified, put back
    evict     an order of the memory scheduler: saved, the context released
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from cache_store import StoreConfig, TierConfig
from deployments.config import ModelSpec, RoutingSpec
from deployments.http.ports import ServedModel
from deployments.ingress.http_app import make_http_app
from deployments.ingress.prompts import PromptSource
from deployments.memory.messages import ReleaseKind, ReleaseOrder
from deployments.model.client import ModelClient
from deployments.model.replica import ModelReplica
from deployments.routing.prompt import prompt_of
from deployments.routing.score import RouteWeights, ranked
from deployments.routing.table import RouteTable
from erllama.cache.setup import transcript_root
from erllama.chat.transcript_book import TranscriptBook
from erllama.config import EngineConfig

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cache_store", "erllama", "deployments")
ROUTER = "deployments/routing/router.py"  # Serve constructs it; what it calls is called here
PROMPT = "Tell me what you know about the sea, the wind and the ships. " * 60
BODY = {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "stream": True, "max_tokens": 32, "seed": 1}


@contextmanager
def traced() -> Iterator[set[str]]:
    """Our files in which a function is entered within the block, also in threads that run
    already.
    """
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            files.add(frame.f_code.co_filename)

    threading.setprofile_all_threads(note) if sys.version_info >= (3, 12) else _profile_all(note)
    try:
        yield files
    finally:
        threading.setprofile_all_threads(None) if sys.version_info >= (3, 12) else _profile_all(None)


NOTES: list[Any] = [None]


def _forward(frame: FrameType, event: str, arg: Any) -> None:
    if NOTES[0] is not None:
        NOTES[0](frame, event, arg)


def _profile_all(note: Any) -> None:
    NOTES[0] = note


def ours(files: set[str]) -> list[str]:
    """Those below our packages, relative to the root."""
    paths = [Path(file).relative_to(ROOT).as_posix() for file in files if file.startswith(f"{ROOT}/")]
    return sorted(path for path in paths if path.split("/")[0] in PACKAGES)


class Method:
    """What `handle.method` is: `remote` calls the replica, with the router's decision before it."""

    def __init__(self, replica: ModelReplica, name: str) -> None:
        self._call, self._name = getattr(replica, name), name
        self._table: RouteTable[str] = RouteTable(chunk_tokens=32, n_parallel=1, lag_s=1.0, node_min_tokens=0)

    def remote(self, *args: Any) -> Any:
        prompt = prompt_of(self._name, args, 32)
        if prompt is not None:
            views = self._table.views(prompt, ["replica"])
            self._table.chosen("request", prompt, ranked(views, prompt.n_tokens, RouteWeights())[0])
        return self._call(*args)


class Handle:
    """As much of a Serve handle as the client uses."""

    def __init__(self, replica: ModelReplica) -> None:
        self._replica = replica

    def options(self, **_: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Method:
        return Method(self._replica, name)


async def ask(app: Any) -> str:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ingress") as client:
        reply = await client.post("/v1/chat/completions", json=BODY, timeout=120)
        assert reply.status_code == 200, reply.text
        return reply.text


async def journeys(folder: str) -> dict[str, list[str]]:
    spec = ModelSpec(id="demo", path="demo", n_ctx=2048, n_parallel=1)
    store = StoreConfig(tiers=(TierConfig(folder),))
    replica = ModelReplica(spec, n_cpus=1, store=store, routing=RoutingSpec())
    prompts = PromptSource(
        EngineConfig(path="demo", n_ctx=2048), root=transcript_root("demo", ""), book=TranscriptBook(None)
    )
    prompts.load()
    model = ServedModel(id="demo", client=ModelClient.of(Handle(replica)), prompts=prompts, created=0)
    app = make_http_app([model])
    passed: dict[str, list[str]] = {}
    try:
        with traced() as files:
            await ask(app)
            assert replica._model.store.flush(30)
        passed["compute"] = sorted({*ours(files), ROUTER})
        order = ReleaseOrder("local", "demo", "local", "ram", ReleaseKind.CONTEXT, 1)
        await asyncio.sleep(0)
        with traced() as files:
            await replica.release(order)
        passed["evict"] = ours(files)
        with traced() as files:
            await ask(app)
        passed["restore"] = sorted({*ours(files), ROUTER})
    finally:
        replica.close()
        prompts.close()
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="name the files")
    args = parser.parse_args()
    sys.setprofile(_forward)
    threading.setprofile(_forward)
    with tempfile.TemporaryDirectory() as folder:
        passed = asyncio.run(journeys(folder))
    sys.setprofile(None)
    for name, files in passed.items():
        by_package = ", ".join(f"{p} {sum(file.startswith(f'{p}/') for file in files)}" for p in reversed(PACKAGES))
        print(f"{name}: {len(files)} files ({by_package})")
        if args.names:
            print(*(f"  {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
