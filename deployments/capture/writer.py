"""Captured requests as files: lines of JSON, in segments of which the oldest go.

One thread writes; `put` never waits. What it cannot write (a full or read-only disk, a body that is too
large, more than it can follow) is dropped, counted and logged once a minute: capturing costs no request.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from typing import IO, Any

from deployments.capture.options import CaptureOptions
from deployments.capture.redact import Redactor

log = logging.getLogger(__name__)

PATTERN = "requests-*.jsonl"
_SEGMENTS = 8
_MAX_QUEUED = 256
_CLOSE_S = 5.0
_WARN_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Captured:
    """A request as it came: its path with what of the query is no key, headers that change its answer, and
    its JSON body. `time_s` is unix seconds.
    """

    request_id: str
    time_s: float
    path: str
    headers: Mapping[str, str]
    body: bytes


class CaptureWriter:
    """Owns the files that it writes. Any thread may `put`; `close` is idempotent."""

    def __init__(self, options: CaptureOptions) -> None:
        """`options.dir` is given."""
        assert options.dir is not None
        self._dir = Path(options.dir)
        self._max_bytes = options.budget_bytes
        self._segment_bytes = self._max_bytes // _SEGMENTS
        self._redactor = Redactor(secrets.token_bytes(32)) if options.redact == "text" else None
        self._queue: Queue[Captured | None] = Queue(_MAX_QUEUED)
        self._file: IO[bytes] | None = None
        self._n_segments = 0
        self._n_written = 0  # bytes of the segment
        self._warned_s = 0.0
        self.n_dropped = 0
        self._thread = threading.Thread(target=self._run, name="erllama-capture", daemon=True)
        self._thread.start()

    def put(self, captured: Captured) -> None:
        """Keep it, soon."""
        try:
            self._queue.put_nowait(captured)
        except Full:
            self.n_dropped += 1

    def close(self) -> None:
        """Write what waits, for some seconds."""
        if self._thread.is_alive():
            try:
                self._queue.put(None, timeout=_CLOSE_S)
            except Full:
                return
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while (captured := self._queue.get()) is not None:
            try:
                self._write(self._line(captured))
            except (OSError, ValueError, RecursionError) as error:
                self._dropped(error)
        if self._file is not None:
            self._file.close()

    def _line(self, captured: Captured) -> bytes:
        body: Any = json.loads(captured.body)
        if self._redactor is not None:
            body = self._redactor.body(body)
        entry = {
            "id": captured.request_id,
            "time": captured.time_s,
            "path": captured.path,
            "headers": dict(captured.headers),
            "body": body,
        }
        line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode(errors="replace") + b"\n"
        if len(line) > self._segment_bytes:
            raise ValueError(f"a request of {len(line)} bytes does not fit into a file of {self._segment_bytes}")
        return line

    def _write(self, line: bytes) -> None:
        if self._file is None or self._n_written + len(line) > self._segment_bytes:
            self._open_segment()
        assert self._file is not None
        self._file.write(line)
        self._file.flush()
        self._n_written += len(line)

    def _open_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room()
        name = f"requests-{time.time_ns()}-{os.getpid()}-{self._n_segments}.jsonl"
        descriptor = os.open(self._dir / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._n_segments, self._n_written = self._n_segments + 1, 0

    def _make_room(self) -> None:
        """Delete the oldest files, whoever wrote them, until one more segment fits."""
        files = sorted(self._dir.glob(PATTERN))
        sizes = [path.stat().st_size for path in files]
        while files and sum(sizes) + self._segment_bytes > self._max_bytes:
            files.pop(0).unlink(missing_ok=True)
            sizes.pop(0)

    def _dropped(self, error: Exception) -> None:
        self.n_dropped += 1
        if time.monotonic() - self._warned_s > _WARN_EVERY_S or not self._warned_s:
            self._warned_s = time.monotonic()
            log.warning("event=not_captured dropped=%d error=%s", self.n_dropped, error)
