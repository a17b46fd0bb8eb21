"""A small JSON file that remembers what was expensive to learn about files, by name. Losing or
corrupting it costs learning it again.

Any thread may use it; two processes that write at once may lose one entry, never the file.
"""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

VERSION = 1
MAX_ENTRIES = 1024  # the oldest go first


class JsonMemory:
    """Entries (anything that JSON holds) by key. `path` None remembers nothing; `name` is what log
    lines call it.
    """

    def __init__(self, path: Path | None, name: str) -> None:
        self._path = path
        self._name = name

    def entries(self) -> dict[str, Any]:
        """What the file holds now; empty, with a warning, when it cannot be read."""
        if self._path is None:
            return {}
        try:
            match json.loads(self._path.read_bytes()):
                case {"version": version, "entries": dict(entries)} if version == VERSION:
                    return entries
            raise ValueError(f"not a version {VERSION} memory")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("ignoring the %s path=%s reason=%r", self._name, self._path, str(error))
            return {}

    def add(self, key: str, entry: Any) -> None:
        """Add one entry to what the file holds now; a temporary file and a rename, so that a reader
        sees the old or the new one.
        """
        if self._path is None:
            return
        entries = {name: value for name, value in self.entries().items() if name != key}
        entries[key] = entry
        newest = dict(list(entries.items())[-MAX_ENTRIES:])
        temporary = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, prefix=self._path.name, delete=False, encoding="utf-8"
            ) as file:
                temporary = Path(file.name)
                json.dump({"version": VERSION, "entries": newest}, file)
            temporary.replace(self._path)
        except (OSError, ValueError) as error:
            logger.warning("cannot write the %s path=%s reason=%r", self._name, self._path, str(error))
            if temporary is not None:
                temporary.unlink(missing_ok=True)
