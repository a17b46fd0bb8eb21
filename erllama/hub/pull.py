"""A pull from its first question to the manifest."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

from pydantic import JsonValue

from erllama.gguf.check import GgufInfo
from erllama.gguf.header import GgufHeader, read_header
from erllama.hub.blobs import Blobs
from erllama.hub.config import HubConfig
from erllama.hub.download import TICK_S
from erllama.hub.errors import PullCancelled, PullFailed
from erllama.hub.events import PULLING_MANIFEST, SUCCESS, WRITING_MANIFEST, PullEvent
from erllama.hub.header import check_runnable, read_remote_header
from erllama.hub.links import Links, file_name_of
from erllama.hub.locks import Lease, Locks
from erllama.hub.manifest import Details, Manifest, ManifestFile, Manifests, now
from erllama.hub.name import ModelName
from erllama.hub.safety import Reach
from erllama.hub.sources.client import HttpClient, shown
from erllama.hub.sources.origin import open_origin
from erllama.hub.sources.remote import RemoteFile, RemoteModel, Role
from erllama.hub.sources.resolve import resolve_source
from erllama.hub.sources.source import Source

logger = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a pull would fetch, and what its header tells of the model."""

    model: RemoteModel
    info: GgufInfo

    @property
    def total_bytes(self) -> int:
        return self.model.total_bytes


class Pull:
    """One pull into a hub's parts. `run` once, in any thread. Raises `SourceRefused` when it is made
    for a source that it may not use.
    """

    def __init__(
        self,
        source: Source,
        name: ModelName,
        config: HubConfig,
        *,
        locks: Locks,
        blobs: Blobs,
        manifests: Manifests,
        links: Links,
        reach: Reach,
        cancel: threading.Event | None = None,
        accept: Callable[[Prospect], None] | None = None,
    ) -> None:
        """`accept` may raise when it has seen what would be fetched."""
        reach.check_source(source)
        self._source = source
        self._name = name
        self._config = config
        self._locks = locks
        self._blobs = blobs
        self._manifests = manifests
        self._links = links
        self._reach = reach
        self._cancel = cancel or threading.Event()
        self._accept = accept

    def run(self) -> Iterator[PullEvent]:
        """The events of the pull; the last one is "success". Raises what the hub's errors say.

        Closing the generator cancels the pull, as setting the event does.
        """
        yield PullEvent(PULLING_MANIFEST)
        try:
            yield from self._run()
        except OSError as error:
            raise PullFailed(f"the hub's directory cannot be used: {error}") from error
        yield PullEvent(SUCCESS)

    def look(self) -> Prospect:
        """Ask and check as `run` does, and fetch nothing but headers. Raises what `run` raises."""
        with HttpClient(self._config, self._reach) as client:
            return self._look(client, None)

    def _look(self, client: HttpClient, lease: Lease | None) -> Prospect:
        """With a lease nothing that is here already goes before it has been looked at."""
        model = self._attended(client, lambda: resolve_source(self._source, client, self._config))
        if lease is not None:
            lease.add(*(file.key for file in model.files))
        return Prospect(model, self._attended(client, lambda: self._check(model, client)))

    def _run(self) -> Iterator[PullEvent]:
        with ExitStack() as stack:
            client = stack.enter_context(HttpClient(self._config, self._reach))
            lease = stack.enter_context(self._locks.lease())
            prospect = self._look(client, lease)
            model = prospect.model
            if self._accept is not None:
                self._accept(prospect)
            self._blobs.check_space(model.files)
            digests = []
            for file in model.files:
                origin = open_origin(file, client, self._config)
                digests.append((yield from self._blobs.fetch(origin, lease, self._cancel)))
            yield PullEvent(WRITING_MANIFEST)
            self._publish(model, digests, prospect.info)
        logger.info("pulled model=%s source=%s bytes=%d", self._name, shown(str(self._source)), model.total_bytes)

    def _attended(self, client: HttpClient, work: Callable[[], T]) -> T:
        """What `work` returns, done in a thread of its own, so that it can be cancelled."""
        with ThreadPoolExecutor(1, thread_name_prefix="erllama-pull") as pool:
            future = pool.submit(work)
            while True:
                if self._cancel.is_set():
                    client.abort()
                    raise PullCancelled("the pull was cancelled before it began to fetch")
                if wait([future], TICK_S).done:
                    return future.result()

    def _check(self, model: RemoteModel, client: HttpClient) -> GgufInfo:
        return check_runnable(model, self._config, lambda file: self._header(file, client))

    def _header(self, file: RemoteFile, client: HttpClient) -> GgufHeader:
        digest = self._blobs.find(file)
        if digest is not None:
            return read_header(self._blobs.path(digest))
        return read_remote_header(open_origin(file, client, self._config), self._config)

    def _publish(self, model: RemoteModel, digests: list[str], info: GgufInfo) -> None:
        files, taken = [], set[str]()
        for file, digest in zip(model.files, digests, strict=True):
            plain = file_name_of(file.role, file.name, taken)
            taken.add(plain)
            files.append(ManifestFile(role=file.role, digest=digest, size=file.size, name=plain))
        manifest = Manifest(
            name=str(self._name),
            source=str(self._source),
            created=now(),
            files=tuple(files),
            details=Details.of(info),
            system=self._text(files, Role.SYSTEM),
            parameters=self._parameters(files),
        )
        with self._locks.hub():
            self._links.make(manifest)
            self._manifests.write(manifest)

    def _text(self, files: list[ManifestFile], role: Role) -> str | None:
        texts = [self._blobs.path(file.digest).read_text("utf-8", "replace") for file in files if file.role is role]
        return "\n\n".join(texts) or None

    def _parameters(self, files: list[ManifestFile]) -> dict[str, JsonValue]:
        text = self._text(files, Role.PARAMS)
        try:
            parameters = json.loads(text) if text else {}
        except (ValueError, RecursionError) as error:
            raise PullFailed(f"{self._source}: its parameters are no JSON") from error
        if not isinstance(parameters, dict):
            raise PullFailed(f"{self._source}: its parameters are no JSON object")
        return parameters
