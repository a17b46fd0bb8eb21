"""The hub as an ingress sees it: the real `ModelLibrary`."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from deployments.access.tenant import Tenant
from deployments.http.errors import AdminKeyRequired
from deployments.http.model_library import LibraryModel, ModelStanding
from deployments.http.ports import ModelPort, ServedModel
from deployments.hub.link import HubLink
from deployments.hub.messages import ModelPulling
from erllama.errors import ErllamaError, InvalidParameter, ModelNotFound
from erllama.events import Failed
from erllama.gguf.header import read_header
from erllama.hub.events import PullEvent
from erllama.hub.hub import Hub
from erllama.hub.manifest import Manifest
from erllama.hub.name import ModelName
from erllama.hub.pull import Prospect
from erllama.hub.sources.source import name_of, parse_source
from erllama.request import build_request

log = logging.getLogger(__name__)

_RETRY_S = 5  # when to ask again for a model that is being fetched

MakeServed = Callable[[str, Manifest], ServedModel]
"""The model of an id and its manifest, as the ingress serves it. Its client loads it."""


@dataclass(slots=True)
class _Card:
    version: tuple[int, ...]
    served: ServedModel


class HubLibrary:
    """`configured` tells the file of a configured model, which `create` may take as a base."""

    is_there = True

    def __init__(self, hub: Hub, link: HubLink, make: MakeServed, configured: Mapping[str, str]) -> None:
        self._hub = hub
        self._link = link
        self._make = make
        self._configured = configured
        self._cards: dict[str, _Card] = {}
        self._pulls: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, PullEvent] = {}
        self._failed_pulls: dict[str, ErllamaError] = {}

    def find(self, name: str, tenant: Tenant) -> ServedModel | None:
        """See `ModelLibrary`."""
        parsed = _named(name)
        version = None if parsed is None else self._hub.version(parsed)
        if parsed is None or version is None:
            if tenant.pull and parsed is not None:
                self._fetch(name, parsed)
            return None
        card = self._cards.get(parsed.short)
        if card is None or card.version != version:
            try:
                manifest = self._hub.show(str(parsed))
            except ModelNotFound:  # deleted since
                return None
            card = self._cards[parsed.short] = _Card(version, self._make(parsed.short, manifest))
        return card.served

    def near(self, name: str, tenant: Tenant) -> list[str]:
        return [known for known in self._hub.near(name) if tenant.may_use(known)]

    def clients(self) -> Iterator[ModelPort]:
        """Of the models that somebody has asked for."""
        return (card.served.client for card in self._cards.values())

    async def models(self) -> list[LibraryModel]:
        manifests = await asyncio.to_thread(self._hub.list)
        standings = await self._standings()
        return [self._told(one, standings) for one in manifests if isinstance(one, Manifest)]

    async def show(self, name: str) -> LibraryModel:
        manifest = await asyncio.to_thread(self._hub.show, name)
        return self._told(manifest, await self._standings())

    async def metadata(self, name: str) -> dict[str, Any]:
        def read() -> dict[str, Any]:
            return read_header(self._hub.path_of(name)).plain()

        return await asyncio.to_thread(read)

    async def has_blob(self, digest: str) -> bool:
        return self._hub.has_blob(digest)

    async def keep(self, name: str, seconds: float | None) -> None:
        """A manager that is just being replaced costs the wish, and not the reply that comes with it."""
        model_id = self._id(name)
        try:
            async with asyncio.timeout(_RETRY_S):
                await self._link.ask("keep", model_id, seconds)
        except (TimeoutError, ErllamaError) as error:
            log.warning("event=hub_keep_alive_lost model=%s error=%r", model_id, error)

    async def load(self, name: str) -> None:
        await _have_loaded(self._client(name))

    async def unload(self, name: str) -> bool:
        done: bool = await self._link.ask("unload", self._id(name))
        return done

    def pull(self, source: str, name: str | None, tenant: Tenant) -> AsyncGenerator[PullEvent, None]:
        if not (tenant.admin or tenant.pull):
            raise AdminKeyRequired("This API key may not pull models: it needs pull: true or admin: true.")
        cancel = threading.Event()
        return _read(self._hub.pull(source, name, trusted=False, cancel=cancel, accept=self._acceptor()), cancel)

    async def copy(self, source: str, target: str) -> None:
        def work() -> None:
            self._hub.copy(self._based(target, source), target)

        await asyncio.to_thread(work)

    async def create(
        self,
        name: str,
        base: str,
        *,
        template: str | None = None,
        system: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        def work() -> None:
            self._hub.create(name, self._based(name, base), template=template, system=system, parameters=parameters)

        await asyncio.to_thread(work)

    async def delete(self, name: str, *, force: bool = False) -> None:
        parsed = ModelName.parse(name)
        if self._hub.version(parsed) is None:
            self._hub.show(name)  # raises what there is to say
        await self._link.ask("forget", parsed.short, force=force)
        await asyncio.to_thread(self._hub.delete, name)
        self._cards.pop(parsed.short, None)

    def _based(self, name: str, base: str) -> str:
        """The model of the hub that `base` means. The file of a configured model is taken into the hub."""
        file = self._configured.get(base)
        if file is None or self._hub.version(ModelName.parse(base)) is not None:
            return base
        for _ in self._hub.pull(file, name):
            pass
        return name

    def _id(self, name: str) -> str:
        """Raises `ModelNotFound` with near names."""
        return self._hub.resolve(name).short

    def _client(self, name: str) -> ModelPort:
        served = self.find(name, Tenant("-"))
        if served is None:
            self._hub.show(name)  # raises what there is to say
            raise ModelNotFound(f"model {name[:200]!r} is not in the hub", param="model")
        return served.client

    async def _standings(self) -> dict[str, ModelStanding]:
        """Empty while the manager cannot be asked: what the hub has is told all the same."""
        try:
            async with asyncio.timeout(_RETRY_S):
                told: dict[str, ModelStanding] = await self._link.ask("standings")
                return told
        except (TimeoutError, ErllamaError) as error:
            log.info("event=hub_standings_unknown error=%r", error)
            return {}

    def _told(self, manifest: Manifest, standings: Mapping[str, ModelStanding]) -> LibraryModel:
        model_id = ModelName.parse(manifest.name).short
        return LibraryModel(model_id, manifest, standings.get(model_id, ModelStanding()))

    def _acceptor(self) -> Callable[[Prospect], None]:
        """What refuses, in the thread of a pull, a model that has room nowhere."""
        loop = asyncio.get_running_loop()

        def accept(prospect: Prospect) -> None:
            asked = asyncio.run_coroutine_threadsafe(self._link.ask("check_room", prospect.total_bytes), loop)
            try:
                asked.result(_RETRY_S)
            except TimeoutError:  # the manager is just being replaced: the load will tell
                asked.cancel()

        return accept

    # --- pulled because a request names it ----------------------------------------------------------

    def _fetch(self, name: str, as_name: ModelName) -> None:
        """Begin to fetch the model of a name, or say how far that is. Raises `ModelPulling`, and once
        what a fetch that failed has raised.
        """
        failed = self._failed_pulls.pop(name, None)
        if failed is not None:
            raise failed
        if name not in self._pulls:
            events = self._hub.pull(name, str(as_name), trusted=False, accept=self._acceptor())
            self._pulls[name] = asyncio.get_running_loop().create_task(self._fetched(name, events))
        event = self._progress.get(name)
        share = f": {event.completed / event.total:.0%} of a file" if event is not None and event.total else ""
        raise ModelPulling(f"The model '{name[:200]}' is being fetched{share}", param="model", retry_after_s=_RETRY_S)

    async def _fetched(self, name: str, events: Iterator[PullEvent]) -> None:
        try:
            async for event in _read(events, threading.Event()):
                self._progress[name] = event
        except ErllamaError as error:
            self._failed_pulls[name] = error
        finally:
            self._pulls.pop(name, None)
            self._progress.pop(name, None)


async def _have_loaded(client: ModelPort) -> None:
    """Returns when the model's weights are in memory: a token is computed, since what computes loads."""
    info = await client.model_info()
    if info.generates:
        async with aclosing(client.generate(build_request(uuid.uuid4().hex, [0], {"response_tokens": 0}))) as lists:
            async for events in lists:
                if isinstance(last := events[-1], Failed):
                    raise last.error
    elif info.embeds:
        await client.embed([[0]])
    else:
        await client.rank([[0]])


def _named(text: str) -> ModelName | None:
    """The name of a model, or of what a source would be called; None for what is neither."""
    for parse in (ModelName.parse, lambda source: name_of(parse_source(source))):
        with suppress(InvalidParameter):
            return parse(text)
    return None


async def _read(events: Iterator[PullEvent], cancel: threading.Event) -> AsyncGenerator[PullEvent, None]:
    """The events of a pull, which blocks, on an event loop. Closing it cancels the pull."""
    try:
        # a thread that reads the pull cannot be stopped; it ends soon after the pull is cancelled
        while (event := await asyncio.shield(asyncio.to_thread(next, events, None))) is not None:
            yield event
    finally:
        cancel.set()
