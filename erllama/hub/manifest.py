"""What the hub knows of each model: one JSON for each name, replaced as a whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from erllama.errors import InvalidParameter, ModelNotFound
from erllama.gguf.check import GgufInfo
from erllama.hub.errors import CorruptManifest
from erllama.hub.files import drop_temporaries, replace_file
from erllama.hub.name import ModelName, near_names
from erllama.hub.sources.remote import Role

MAX_BYTES = 8 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. +=-]{0,199}")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ManifestFile(_Record):
    """One file. `digest` is "sha256:<hex>", `size` in bytes, `name` what it is called beside the
    other files of its model.
    """

    role: Role
    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    size: int = Field(ge=0)
    name: str

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"{name!r:.100} is no plain file name")
        return name


class Details(_Record):
    """What the header of the model told."""

    architecture: str
    file_type: str
    n_params: int
    n_ctx_train: int

    @classmethod
    def of(cls, info: GgufInfo) -> Details:
        return cls(
            architecture=info.architecture,
            file_type=info.file_type,
            n_params=info.n_params,
            n_ctx_train=info.n_ctx_train,
        )


class Manifest(_Record):
    """A model. `template` (Jinja), `system` and `parameters` (by Ollama's names) stand for what its
    file and the server would take; None and {} leave it to them.

    The template of an Ollama registry is one of Go: it is kept as a file and not used.
    """

    version: Literal[1] = 1
    name: str
    source: str
    created: datetime
    files: tuple[ManifestFile, ...]
    details: Details
    template: str | None = None
    system: str | None = None
    parameters: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The identity of what the name means, "sha256:<hex>": the same for a copy of it."""
        text = self.model_dump_json(exclude={"created", "name"})
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    @property
    def size(self) -> int:
        """Bytes of all files, also of those that other models share."""
        return sum(file.size for file in self.files)

    def of(self, *roles: Role) -> list[ManifestFile]:
        return [file for file in self.files if file.role in roles]


@dataclass(frozen=True, slots=True)
class Damaged:
    """A manifest that cannot be read, and why."""

    name: str
    reason: str


class Manifests:
    """The manifests of a hub. Reads are atomic; who writes holds the hub's lock."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "manifests"

    def read(self, name: ModelName) -> Manifest:
        """Raises `ModelNotFound` that lists near names, and `CorruptManifest`."""
        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            raise self.not_found(name) from None
        except OSError as error:
            raise CorruptManifest(f"the manifest of {name.short} cannot be read: {error}", param="model") from error
        try:
            manifest = Manifest.model_validate_json(data)
            if manifest.name != str(name) or not manifest.of(Role.MODEL):
                raise ValueError(f"it is the manifest of {manifest.name!r:.100}, or names no model file")
        except (ValidationError, ValueError, RecursionError) as error:
            raise CorruptManifest(
                f"the manifest of {name.short} is damaged: pull or delete it: {_short(error)}", param="model"
            ) from error
        return manifest

    def version(self, name: ModelName) -> tuple[int, ...] | None:
        """Of the file as it lies there, None for none. Each write makes another file."""
        try:
            found = self._path(name).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def not_found(self, name: ModelName) -> ModelNotFound:
        near = near_names(str(name), (str(known) for known in self.names()))
        hint = f"; did you mean {', '.join(ModelName.parse(text).short for text in near)}?" if near else ""
        return ModelNotFound(f"model {name.short!r} is not in the hub{hint}", param="model")

    def names(self) -> list[ModelName]:
        found = []
        for path in self._folder.glob("*.json"):
            try:
                found.append(ModelName.from_file_name(path.name.removesuffix(".json")))
            except InvalidParameter:
                continue  # no file of ours
        return sorted(found, key=str)

    def all(self) -> Iterator[Manifest | Damaged]:
        """All manifests in the order of their names, without one that is just being deleted."""
        for name in self.names():
            try:
                yield self.read(name)
            except ModelNotFound:
                continue
            except CorruptManifest as error:
                yield Damaged(str(name), error.message)

    def write(self, manifest: Manifest) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        data = manifest.model_dump_json(indent=1).encode()
        if len(data) > MAX_BYTES:
            raise InvalidParameter(
                f"the model's template, system and parameters exceed {MAX_BYTES} bytes", param="model"
            )
        replace_file(self._path(ModelName.parse(manifest.name)), data)

    def delete(self, name: ModelName) -> None:
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise self.not_found(name) from None

    def tidy(self) -> None:
        """Delete what a write that was killed left; the caller holds the hub's lock."""
        drop_temporaries(self._folder)

    def _path(self, name: ModelName) -> Path:
        return self._folder / f"{name.file_name}.json"


def now() -> datetime:
    return datetime.now(UTC)


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)[:300]
