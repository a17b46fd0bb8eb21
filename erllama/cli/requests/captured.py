"""Captured requests as they lie in files: lines of JSON, whoever wrote them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erllama.errors import InvalidParameter

_PATTERN = "*.jsonl"


@dataclass(frozen=True, slots=True)
class CapturedRequest:
    """`path` begins with a slash; `time_s` is when it came, in unix seconds."""

    id: str
    time_s: float
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def read_captured(folder: Path) -> list[CapturedRequest]:
    """All requests of a folder, or of one file, in the order in which they came. Raises
    `InvalidParameter` that names the file and the line of what is none. A last line that is cut short,
    because it is being written, is left out.
    """
    if not folder.exists():
        raise InvalidParameter(f"{folder} does not exist", param="dir")
    files = [folder] if folder.is_file() else sorted(folder.glob(_PATTERN))
    found = [request for file in files for request in _read(file)]
    if not found:
        raise InvalidParameter(f"{folder} holds no captured requests (files {_PATTERN})", param="dir")
    return sorted(found, key=lambda request: request.time_s)


def _read(file: Path) -> Iterator[CapturedRequest]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidParameter(f"{file} cannot be read: {error.strerror}", param="dir") from None
    for number, line in enumerate(lines[:-1], 1):  # the last one has no end yet
        try:
            yield _parsed(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidParameter(
                f"{file}, line {number} is no captured request: {error!r:.200}", param="dir"
            ) from None


def _parsed(entry: dict[str, Any]) -> CapturedRequest:
    path, headers, body = entry["path"], entry.get("headers", {}), entry["body"]
    if not (isinstance(path, str) and path.startswith("/") and isinstance(headers, dict) and isinstance(body, dict)):
        raise ValueError("path, headers or body has a wrong type")
    texts = {str(name): str(value) for name, value in headers.items()}
    return CapturedRequest(str(entry.get("id", "")), float(entry["time"]), path, texts, body)
