"""Names of models: `[[host/]namespace/]model[:tag]`, as Ollama writes them.

Case does not count: a name is kept in lower case. Without a tag it means `latest`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from erllama.errors import InvalidParameter

DEFAULT_TAG = "latest"
MAX_LENGTH = 200  # a name is a file name, too, and file systems end at 255 bytes
_HOST = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,79}(:[0-9]{1,5})?")
_PART = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,95}")
_FORM = "[[host/]namespace/]model[:tag] of letters, digits, '_', '-' and '.'"


@dataclass(frozen=True, slots=True, order=True)
class ModelName:
    """A valid name. `parse` makes them; `str` writes what `parse` reads."""

    model: str
    tag: str = DEFAULT_TAG
    namespace: str | None = None
    host: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Raises `InvalidParameter` with param "model" that says which part is wrong."""
        if not isinstance(text, str) or not text:
            raise _wrong(text, f"expected {_FORM}")
        if len(text) > MAX_LENGTH:
            raise _wrong(text, f"has {len(text)} characters, at most {MAX_LENGTH} are allowed")
        path, _, last = text.lower().rpartition("/")
        model, colon, tag = last.partition(":")
        above = path.split("/") if path else []
        if len(above) > 2 or text.startswith("/"):
            raise _wrong(text, f"has too many '/', expected {_FORM}")
        parts = {"model": model, "tag": tag if colon else DEFAULT_TAG}
        if above:
            parts["namespace"] = above[-1]
        for what, part in parts.items():
            if not _PART.fullmatch(part):
                raise _wrong(text, f"has the {what} {part!r}, expected {_FORM}, each part 1 to 96 characters")
        host = above[0] if len(above) == 2 else None
        if host is not None and not _HOST.fullmatch(host):
            raise _wrong(text, f"has the host {host!r}, expected a host name and maybe a port")
        return cls(model, parts["tag"], parts.get("namespace"), host)

    def __str__(self) -> str:
        above = [part for part in (self.host, self.namespace) if part is not None]
        return "/".join([*above, f"{self.model}:{self.tag}"])

    @property
    def short(self) -> str:
        """The name as people write it: without the tag that is meant anyway."""
        return str(self).removesuffix(f":{DEFAULT_TAG}")

    @property
    def file_name(self) -> str:
        """A file name that only this name has: names contain neither '+' nor '@'."""
        return str(self).replace("/", "+").replace(":", "@")

    @classmethod
    def from_file_name(cls, text: str) -> ModelName:
        return cls.parse(text.replace("+", "/").replace("@", ":"))


def near_names(wanted: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Names that somebody who wrote `wanted` may have meant, the likeliest first."""
    names = sorted(set(known))
    lower = wanted.lower()
    tags = [name for name in names if name.partition(":")[0] == lower.partition(":")[0]]
    alike = difflib.get_close_matches(lower, names, n=most, cutoff=0.6)
    return list(dict.fromkeys([*tags, *alike]))[:most]


def _wrong(text: object, why: str) -> InvalidParameter:
    return InvalidParameter(f"model name {text!r:.120} {why}", param="model")
