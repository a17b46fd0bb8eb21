"""Files that are there whole or not at all, whatever ends the process."""

from __future__ import annotations

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Write `path` so that a reader, and the disk after a crash, has the old or the new content.

    Raises OSError, and then leaves nothing behind.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_dir(path.parent)


def drop_temporaries(folder: Path, pattern: str = "*.tmp", older_than_s: float = 0.0) -> None:
    """Delete what `replace_file` left in a folder when its process was killed; with 0 the caller
    knows that nobody writes such files now.
    """
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= older_than_s:
                path.unlink()


def sync_dir(path: Path) -> None:
    """Make names that were added to a directory last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_link(blob: Path, target: Path) -> None:
    """Make `target` another name of `blob`: a hard link, or a symbolic one where the file system
    has no hard links. Replaces what was there at once.
    """
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        os.link(blob, temporary)
    except OSError:
        temporary.symlink_to(os.path.relpath(blob, target.parent))
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # renaming a link over one of the same file does nothing
