"""The files that a source consists of, before anything of them is fetched."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from erllama.hub.sources.source import Source


class Role(StrEnum):
    """What a file is to its model. A split model is one MODEL file and PARTs after it."""

    MODEL = "model"
    PART = "part"
    ADAPTER = "adapter"
    PROJECTOR = "projector"
    TEMPLATE = "template"
    SYSTEM = "system"
    PARAMS = "params"
    LICENSE = "license"


GGUF_ROLES = frozenset([Role.MODEL, Role.PART, Role.ADAPTER, Role.PROJECTOR])


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file. `url` is http(s), file or a protocol of fsspec; `size` in bytes.

    `sha256` is what the source promises, in hex, or None. `etag` names this content at its URL, or
    is None. `authorization` is the header for the origin of `url`.
    """

    role: Role
    name: str
    url: str
    size: int
    sha256: str | None = None
    etag: str | None = None
    authorization: str | None = field(default=None, repr=False)

    @property
    def key(self) -> str:
        """What the file is called while it is fetched: by its content or its address."""
        if self.sha256 is not None:
            return f"sha256-{self.sha256}"
        return f"url-{hashlib.sha256(self.url.encode()).hexdigest()}"

    @property
    def digest(self) -> str:
        """What the source promises, as "sha256:<hex>"; "" without a promise."""
        return "" if self.sha256 is None else f"sha256:{self.sha256}"

    @property
    def over_http(self) -> bool:
        return self.url.startswith(("http://", "https://"))


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """All files of a model, the first part of the model itself first."""

    source: Source
    files: tuple[RemoteFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def of(self, *roles: Role) -> list[RemoteFile]:
        return [file for file in self.files if file.role in roles]
