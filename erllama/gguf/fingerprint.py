"""The digest of a model's weights: what makes cached KV state belong to exactly this file and no
other.

Three modes, from certain to cheap. The mode is part of the digest ("safe:<hex>"), so caches made
under different modes never meet.

- safe     sha256 over every byte (1.7 GB/s), remembered per (path, size, mtime, inode), so a
           restart does not read gigabytes again
- chunked  sha256 over size, first MiB and evenly spaced MiBs: finds another quantisation or
  finetune, not a patched byte
- trusted  sha256 over name, size and mtime: for a file system whose owner promises never to replace
  a file in place

A split model is digested over all its parts in order. `safe` remembers its digests in a
`JsonMemory`; losing that costs a rehash. Any thread may call `fingerprint`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from erllama.errors import ModelLoadError
from erllama.gguf.check import split_paths
from erllama.gguf.json_memory import JsonMemory

logger = logging.getLogger(__name__)

READ_BYTES = 8 << 20
CHUNK_BYTES = 1 << 20
N_CHUNKS = 64  # 64 MiB of a file of any size: 40 ms from the page cache, well under a second from a network file system
PROGRESS_BYTES = 4 << 30
_SHA256 = re.compile("[0-9a-f]{64}")


class FingerprintMode(StrEnum):
    SAFE = "safe"
    CHUNKED = "chunked"
    TRUSTED = "trusted"


def user_cache_dir() -> Path:
    """Where this user's caches lie: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erllama"


def default_cache_path() -> Path:
    """Where `safe` digests are remembered."""
    return user_cache_dir() / "fingerprints.json"


def fingerprint(path: str | Path, mode: FingerprintMode, cache_path: Path | None = None) -> str:
    """`mode:hex` of a model file (all parts of a split one). `cache_path` None remembers nothing.

    Raises `ModelLoadError` when a part cannot be read, or changes while it is.
    """
    parts = split_paths(path)
    try:
        stats = [_stat(part) for part in parts]
        match FingerprintMode(mode):
            case FingerprintMode.SAFE:
                digest = _remembered_digest(parts, stats, cache_path)
            case FingerprintMode.CHUNKED:
                digest = _digest(piece for part in parts for piece in _chunks(part))
            case FingerprintMode.TRUSTED:
                digest = _digest(
                    f"{part.name}\0{stat['size']}\0{stat['mtime_ns']}\n".encode()
                    for part, stat in zip(parts, stats, strict=True)
                )
        if [_stat(part) for part in parts] != stats:
            raise ModelLoadError(f"{path}: the file changed while its fingerprint was computed")
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: cannot be read for its fingerprint: {error}") from error
    return f"{mode}:{digest}"


def file_identity(path: str | Path) -> tuple[dict[str, int], ...]:
    """Size, mtime and inode of all parts: equal while nobody has replaced or rewritten the file.
    Raises `ModelLoadError`.
    """
    try:
        return tuple(_stat(part) for part in split_paths(path))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: cannot be read: {error}", param="path") from error


def _stat(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def _digest(pieces: Iterator[bytes | memoryview]) -> str:
    sha = hashlib.sha256()
    for piece in pieces:
        sha.update(piece)
    return sha.hexdigest()


def _remembered_digest(parts: list[Path], stats: list[dict[str, int]], cache_path: Path | None) -> str:
    """The digest of all bytes, from the memory when every part is unchanged since."""
    key = os.path.abspath(parts[0])
    memory = JsonMemory(cache_path, "fingerprint memory")
    entry = memory.entries().get(key)
    if isinstance(entry, dict) and entry.get("parts") == stats and _SHA256.fullmatch(str(entry.get("sha256"))):
        return str(entry["sha256"])
    digest = _digest(_all_bytes(parts, sum(stat["size"] for stat in stats)))
    if [_stat(part) for part in parts] == stats:
        memory.add(key, {"parts": stats, "sha256": digest})
    return digest


def _all_bytes(parts: list[Path], total: int) -> Iterator[memoryview]:
    """The bytes of all parts through one reused buffer (fresh memory costs more than hashing
    it).
    """
    buffer = memoryview(bytearray(READ_BYTES))
    done = reported = 0
    for part in parts:
        with part.open("rb", buffering=0) as file:
            while n := file.readinto(buffer):
                yield buffer[:n]
                done += n
                if done - reported >= PROGRESS_BYTES:
                    reported = done
                    logger.info("fingerprint path=%s done_gb=%.1f total_gb=%.1f", part, done / 1e9, total / 1e9)


def _chunks(path: Path) -> Iterator[bytes]:
    """The size, then N_CHUNKS pieces: the first holds the header, the last ends the file, the
    others lie evenly between.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        yield size.to_bytes(8, "little")
        if size <= N_CHUNKS * CHUNK_BYTES:
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")
            return
        for i in range(N_CHUNKS):
            file.seek((size - CHUNK_BYTES) * i // (N_CHUNKS - 1))
            yield file.read(CHUNK_BYTES)
