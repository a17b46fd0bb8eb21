"""The models of a hub, of a server's or of this machine's: what the commands do with either."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from erllama.cli.output import note
from erllama.cli.server import Server, open_server, path_of
from erllama.errors import ErllamaError
from erllama.hub.config import HubConfig
from erllama.hub.events import PullEvent
from erllama.hub.hub import Hub
from erllama.hub.manifest import Damaged, Manifest
from erllama.hub.name import ModelName

HUB = "/erllama/v1/hub"

Card = dict[str, Any]
"""A model of a list: name, digest, size, architecture, type, state; what is not known is missing."""


class Library(Protocol):
    """Every method may raise `ErllamaError`. Close it."""

    def list(self) -> list[Card]: ...

    def show(self, name: str) -> Card: ...

    def pull(self, source: str, name: str | None) -> Iterator[PullEvent]: ...

    def create(self, name: str, base: str, changes: Mapping[str, Any]) -> None:
        """`changes` are a system text, a template and parameters."""

    def copy(self, source: str, target: str) -> None: ...

    def delete(self, name: str, *, force: bool) -> int | None:
        """The bytes that are free now, where they are known."""

    def close(self) -> None: ...


class LocalLibrary:
    """The hub in a directory of this machine."""

    def __init__(self, directory: Path | None) -> None:
        self._hub = Hub(HubConfig(dir=directory))

    def list(self) -> list[Card]:
        return [_manifest_card(entry) for entry in self._hub.list()]

    def show(self, name: str) -> Card:
        manifest = self._hub.show(name)
        facts = {"source": manifest.source, "created": manifest.created, "parameters": manifest.parameters}
        texts = {"system": manifest.system, "template": manifest.template, "path": str(self._hub.path_of(name))}
        details = manifest.details.model_dump(exclude={"architecture", "file_type"})
        return _manifest_card(manifest) | details | facts | texts

    def pull(self, source: str, name: str | None) -> Iterator[PullEvent]:
        file = Path(source)
        return self._hub.pull(str(file.absolute()) if file.is_file() else source, name)

    def create(self, name: str, base: str, changes: Mapping[str, Any]) -> None:
        self._hub.create(name, base, **changes)

    def copy(self, source: str, target: str) -> None:
        self._hub.copy(source, target)

    def delete(self, name: str, *, force: bool) -> int | None:
        return self._hub.delete(name).n_bytes

    def close(self) -> None:
        """Nothing is open between calls."""


class ServerLibrary:
    """A server's models: those of its hub, and those of its configuration. `server` is closed with it."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def list(self) -> list[Card]:
        cards = {str(card["id"]): _server_card(card) for card in self._server.get("/v1/models")["data"]}
        with suppress(ErllamaError):  # it needs an admin's key, and knows more
            for card in self._server.get(HUB)["data"]:
                cards[card["id"]] = cards.get(card["id"], {}) | _hub_card(card)
        return list(cards.values())

    def show(self, name: str) -> Card:
        told: Card = self._server.post("/api/show", {"model": name})
        details, info = told.get("details", {}), told.get("model_info", {})
        known = {"name": name, "architecture": details.get("family"), "type": details.get("quantization_level")}
        facts = {"parameters": told.get("parameters"), "system": told.get("system"), "template": told.get("template")}
        context = {key.rpartition(".")[2]: value for key, value in info.items() if key.endswith(".context_length")}
        return (
            known
            | {"n_params": info.get("general.parameter_count")}
            | context
            | facts
            | {
                "capabilities": ", ".join(told.get("capabilities", ())),
                "modified": told.get("modified_at"),
            }
        )

    def pull(self, source: str, name: str | None) -> Iterator[PullEvent]:
        body = {"source": source} | ({"name": name} if name else {})
        for event in self._server.events(f"{HUB}/pull", body):
            fields = {key: value for key, value in event.items() if key in PullEvent.__dataclass_fields__}
            yield PullEvent(**fields)

    def create(self, name: str, base: str, changes: Mapping[str, Any]) -> None:
        given = {key: value for key, value in changes.items() if value}
        self._server.post("/api/create", {"model": name, "from": base, "stream": False, **given})

    def copy(self, source: str, target: str) -> None:
        self._server.post("/api/copy", {"source": source, "destination": target})

    def delete(self, name: str, *, force: bool) -> int | None:
        self._server.delete(f"{HUB}{path_of(name)}", force="true" if force else None)
        return None

    def close(self) -> None:
        self._server.close()


def open_library(host: str | None, key: str | None, directory: Path | None, *, changes: bool = True) -> Library:
    """The server's that was named; else the directory's; else that of the server of this machine, which
    must have a hub for what `changes` it. What nobody named, and is changed, is noted.
    """
    server = open_server(host, key) if directory is None else None
    if server is None:
        return LocalLibrary(directory)
    if host is None and changes:
        if not _has_hub(server):
            server.close()
            return LocalLibrary(None)
        note(f"models of {server.url}")
    return ServerLibrary(server)


def _has_hub(server: Server) -> bool:
    try:
        return bool(server.get(HUB).get("enabled"))
    except ErllamaError:  # a key is missing: what it says of that is for who asks the server on purpose
        return False


def _manifest_card(entry: Manifest | Damaged) -> Card:
    name = ModelName.parse(entry.name).short
    if isinstance(entry, Damaged):
        return {"name": name, "state": "damaged", "reason": entry.reason}
    details = entry.details
    kind = {"architecture": details.architecture, "type": details.file_type}
    return {"name": name, "digest": _short(entry.digest), "size": entry.size, **kind}


def _hub_card(card: Card) -> Card:
    known = {"name": card["id"], "digest": _short(card["digest"]), "size": card["size"]}
    standing = card.get("standing", {})
    return known | {
        "architecture": card.get("architecture"),
        "type": card.get("file_type"),
        "state": standing.get("phase"),
        "reason": standing.get("reason"),
    }


def _server_card(card: Card) -> Card:
    return {
        "name": card["id"],
        "size": (card.get("meta") or {}).get("size"),
        "state": (card.get("status") or {}).get("value"),
        "context": card.get("context_length"),
    }


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]
