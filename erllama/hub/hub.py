"""The facade: models by name on this machine's disk."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from erllama.errors import InvalidParameter
from erllama.hub.blobs import Blobs, Freed
from erllama.hub.config import HubConfig
from erllama.hub.errors import CorruptManifest
from erllama.hub.events import PullEvent
from erllama.hub.links import Links
from erllama.hub.locks import Locks
from erllama.hub.manifest import Damaged, Manifest, Manifests, now
from erllama.hub.name import DEFAULT_TAG, ModelName, near_names
from erllama.hub.pull import Prospect, Pull
from erllama.hub.safety import Reach
from erllama.hub.sources.remote import Role
from erllama.hub.sources.source import name_of, parse_source

logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Hub:
    """Models by name. Any thread of any process on the same directory; nothing is cached.

    Every method that takes a name raises `InvalidParameter` for one that is none, and
    `ModelNotFound` (with near names) for one that is not there.
    """

    def __init__(self, config: HubConfig | None = None) -> None:
        self.config = config or HubConfig()
        root = self.config.root
        self._locks = Locks(root, self.config.lock_timeout_s)
        self._blobs = Blobs(self.config, self._locks)
        self._manifests = Manifests(root)
        self._links = Links(root, self._blobs)

    def pull(
        self,
        source: str,
        as_name: str | None = None,
        *,
        trusted: bool = True,
        cancel: threading.Event | None = None,
        accept: Callable[[Prospect], None] | None = None,
    ) -> Iterator[PullEvent]:
        """Fetch a model; a name without a scheme is one of the Ollama registry.

        `trusted` False is for pulls that were asked for over HTTP (see `safety`). What is wrong
        with the arguments is raised at once, the rest while the events are read: nothing happens
        before. Setting `cancel`, or closing the iterator, ends the pull; the next one goes on. `accept`
        is asked before anything but the header is fetched, and refuses by raising.
        """
        return self._pull(source, as_name, trusted, cancel, accept).run()

    def inspect(self, source: str, *, trusted: bool = True) -> Prospect:
        """What a pull would fetch, how much, and what the model is; refuses what a pull refuses."""
        return self._pull(source, None, trusted, None).look()

    def list(self) -> list[Manifest | Damaged]:
        """All models by name, and those whose manifest cannot be read."""
        return list(self._manifests.all())

    def show(self, name: str) -> Manifest:
        """Raises `CorruptManifest`, too."""
        return self._manifests.read(ModelName.parse(name))

    def version(self, name: ModelName) -> tuple[int, ...] | None:
        """What changes whenever the manifest of a name does; None when there is none. One look at a
        file's times, no more.
        """
        return self._manifests.version(name)

    def near(self, name: str) -> tuple[str, ...]:
        """Names that are here and that somebody who wrote `name` may have meant."""
        near = near_names(name, map(str, self._manifests.names()))
        return tuple(known.removesuffix(f":{DEFAULT_TAG}") for known in near)

    def resolve(self, name: str) -> ModelName:
        """The name of a model that is here."""
        parsed = ModelName.parse(name)
        self._manifests.read(parsed)
        return parsed

    def path_of(self, name: str) -> Path:
        """The model's file for llama.cpp, its other parts beside it. Missing links are mended."""
        manifest = self._linked(name)
        return self._links.path_of(manifest, manifest.of(Role.MODEL)[0])

    def paths_of(self, name: str, role: Role) -> tuple[Path, ...]:
        """The files of a role: adapters, the projector."""
        manifest = self._linked(name)
        return tuple(self._links.path_of(manifest, file) for file in manifest.of(role))

    def has_blob(self, digest: str) -> bool:
        """Whether a whole file with the digest "sha256:<hex>" is here."""
        return _DIGEST.fullmatch(digest) is not None and self._blobs.path(digest).is_file()

    def copy(self, source: str, target: str) -> Manifest:
        """Give a model another name; what had that name before loses it."""
        return self._write(source, target, {})

    def create(
        self,
        name: str,
        base: str,
        *,
        template: str | None = None,
        system: str | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """A model like `base` with other defaults: what is None stays, parameters are merged into
        those of `base`, and one that is None is dropped. Costs no space.
        """
        changes: dict[str, Any] = {"template": template, "system": system}
        return self._write(base, name, {key: value for key, value in changes.items() if value is not None}, parameters)

    def delete(self, name: str) -> Freed:
        """Forget a model, also one whose manifest is damaged, and free what no other one needs."""
        parsed = ModelName.parse(name)
        with self._locks.hub():
            self._manifests.delete(parsed)
            self._links.remove(parsed)
            return self._collect()

    def collect_garbage(self) -> Freed:
        """Delete what no manifest names and no pull needs: after crashes, mostly nothing. While a
        manifest is damaged, blobs stay, since nobody knows which are its.
        """
        with self._locks.hub():
            return self._collect()

    def _pull(
        self,
        source: str,
        as_name: str | None,
        trusted: bool,
        cancel: threading.Event | None,
        accept: Callable[[Prospect], None] | None = None,
    ) -> Pull:
        parsed = parse_source(source)
        name = ModelName.parse(as_name) if as_name is not None else name_of(parsed)
        return Pull(
            parsed,
            name,
            self.config,
            locks=self._locks,
            blobs=self._blobs,
            manifests=self._manifests,
            links=self._links,
            reach=Reach.of(self.config, trusted),
            cancel=cancel,
            accept=accept,
        )

    def _collect(self) -> Freed:
        self._manifests.tidy()
        self._links.remove_all_but({name.file_name for name in self._manifests.names()})
        return self._blobs.collect(self._referenced())

    def _referenced(self) -> set[str] | None:
        """The digests that manifests name; None while one cannot be read."""
        digests: set[str] = set()
        for manifest in self._manifests.all():
            if isinstance(manifest, Damaged):
                logger.warning("garbage stays while a manifest is damaged model=%s", manifest.name)
                return None
            digests |= {file.digest for file in manifest.files}
        return digests

    def _linked(self, name: str) -> Manifest:
        manifest = self.show(name)
        if not self._links.sound(manifest):
            with self._locks.hub():
                manifest = self.show(name)
                try:
                    self._links.make(manifest)
                except OSError as error:
                    raise CorruptManifest(f"the files of {name} cannot be linked: {error}", param="model") from error
        return manifest

    def _write(
        self, base: str, target: str, changes: dict[str, Any], parameters: Mapping[str, Any] | None = None
    ) -> Manifest:
        with self._locks.hub():
            old = self.show(base)
            merged = {**old.parameters, **(parameters or {})}
            changes = {
                **changes,
                "name": str(ModelName.parse(target)),
                "created": now(),
                "parameters": {key: value for key, value in merged.items() if value is not None},
            }
            try:
                manifest = Manifest.model_validate(old.model_dump() | changes)
            except ValidationError as error:
                first = error.errors(include_url=False, include_input=False)[0]
                field = str(first["loc"][0]) if first["loc"] else "model"
                raise InvalidParameter(f"{field}: {first['msg']}", param=field) from None
            self._links.make(manifest)
            self._manifests.write(manifest)
            return manifest
