"""The files of the page, as they are served: name, type, digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

INDEX = "index.html"
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """`etag` is a strong one, in its quotes: the digest of the body."""

    body: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """Every file of the page by its path below `static/`. Reads some 100 KB. Raises `ValueError` for a
    file of a type that browsers are not told.
    """
    return dict(_below(files("deployments.page") / "static", ""))


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, PageFile]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, _page_file(entry)


def _page_file(entry: Traversable) -> PageFile:
    media_type = _MEDIA_TYPES.get(entry.name.rpartition(".")[2])
    if media_type is None:
        raise ValueError(f"{entry.name} has no media type: the page has {', '.join(sorted(_MEDIA_TYPES))} files")
    body = entry.read_bytes()
    return PageFile(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
