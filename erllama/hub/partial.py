"""What is there of a file that is being fetched: its bytes, and which ranges of them are valid.

    <key>-partial        the bytes, each at its place
    <key>-partial.json   {"size", "validator", "ranges": [[start, end], ...]}

A range is written into the JSON after its bytes have reached the disk, and the JSON is replaced as
a whole, so that whatever ends the process the JSON claims nothing that is not there.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from erllama.hub.files import drop_temporaries, replace_file, sync_dir

SUFFIX = "-partial"


@dataclass(slots=True)
class Ranges:
    """Disjoint half-open ranges of a file, in order; neighbours are one range."""

    items: list[tuple[int, int]] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        kept = []
        for low, high in self.items:
            if high < start or low > end:
                kept.append((low, high))
            else:
                start, end = min(low, start), max(high, end)
        self.items = sorted([*kept, (start, end)])

    @property
    def n_bytes(self) -> int:
        return sum(end - start for start, end in self.items)

    def missing(self, size: int, most: int) -> list[tuple[int, int]]:
        """What is not there of `size` bytes, in pieces of at most `most` bytes."""
        gaps, position = [], 0
        for start, end in [*self.items, (size, size)]:
            gaps += [(low, min(low + most, start)) for low in range(position, start, most)]
            position = max(position, end)
        return gaps

    @classmethod
    def parse(cls, value: object, size: int) -> Ranges:
        """From what a JSON held; raises ValueError unless it is ranges of `size` bytes."""
        ranges = cls()
        if not isinstance(value, list):
            raise ValueError("ranges must be a list")
        for item in value:
            match item:
                case [int(start), int(end)] if 0 <= start < end <= size:
                    ranges.add(start, end)
                case _:
                    raise ValueError(f"{item!r:.100} is no range of {size} bytes")
        return ranges


class Partial:
    """One file that is being fetched. Any thread may write; the caller holds the blob's lock."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.validator: str | None = None
        self._ranges = Ranges()
        self._lock = threading.Lock()
        self._fd = -1
        self._live = 0

    @property
    def completed(self) -> int:
        """Bytes that are there, those of unfinished ranges included."""
        return self._ranges.n_bytes + self._live

    def open(self) -> None:
        """Go on with what is on the disk, if it belongs to a file of this size; raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_temporaries(self.path.parent, f"{_json_path(self.path).name}.*.tmp")
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        found = _read(self.path, self.size)
        if found is None or os.fstat(self._fd).st_size != self.size:
            self.reset()
        else:
            self.validator, self._ranges = found

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def reset(self) -> None:
        """Forget every byte: the content has changed, or never was right."""
        with self._lock:
            self._ranges, self._live, self.validator = Ranges(), 0, None
            _json_path(self.path).unlink(missing_ok=True)
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self.size)

    def missing(self, most: int) -> list[tuple[int, int]]:
        with self._lock:
            return self._ranges.missing(self.size, most)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes at their place. They count once `record` says so."""
        view = memoryview(data)
        while view:
            n = os.pwrite(self._fd, view, offset)
            view, offset = view[n:], offset + n
        with self._lock:
            self._live += len(data)

    def record(self, start: int, end: int) -> None:
        """The range was written whole: make it last. `forget` is for one that was not."""
        os.fdatasync(self._fd)
        with self._lock:
            self._live -= end - start
            self._ranges.add(start, end)
            state = {"size": self.size, "validator": self.validator, "ranges": self._ranges.items}
            replace_file(_json_path(self.path), json.dumps(state).encode())

    def finish(self, target: Path) -> None:
        """Give the whole, checked file its name."""
        os.fsync(self._fd)
        self.close()
        self.path.replace(target)
        sync_dir(target.parent)
        _json_path(self.path).unlink(missing_ok=True)

    def delete(self) -> None:
        self.close()
        delete_partial(self.path)


def delete_partial(path: Path) -> None:
    path.unlink(missing_ok=True)
    _json_path(path).unlink(missing_ok=True)


def completed_of(path: Path) -> tuple[int, int]:
    """(bytes there, size) of somebody else's partial; (0, 0) where none can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        state = json.loads(_json_path(path).read_bytes())
        size = int(state["size"])
        return Ranges.parse(state["ranges"], size).n_bytes, size
    return 0, 0


def partials(folder: Path) -> Iterable[Path]:
    """The data files of all partials, also of those whose JSON is alone."""
    names = {path.name.removesuffix(".json") for path in folder.glob(f"*{SUFFIX}*") if ".tmp" not in path.name}
    return [folder / name for name in sorted(names)]


def _json_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read(path: Path, size: int) -> tuple[str | None, Ranges] | None:
    """What the JSON tells, or None when it cannot be believed: then everything is fetched again."""
    try:
        state = json.loads(_json_path(path).read_bytes())
        validator = state["validator"]
        if state["size"] != size or not isinstance(validator, str | None):
            return None
        return validator, Ranges.parse(state["ranges"], size)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
