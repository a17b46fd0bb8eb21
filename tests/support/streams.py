"""Streams that a test watches while it breaks what serves them."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import psutil

WAIT_S = 90.0


def replica_pids(deployment: str) -> list[int]:
    """The processes of a deployment of the app on this machine, as their titles say."""
    title = f"ServeReplica:erllama:{deployment}"
    found = [p for p in psutil.process_iter(["cmdline"]) if title in " ".join(p.info["cmdline"] or ())]
    return [p.pid for p in found if p.is_running()]


def wait_until(true: Any, what: str, seconds: float = WAIT_S) -> None:
    """Poll other processes; there is nothing else to wait on."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


def busiest(pids: list[int], seconds: float = 0.15) -> int:
    """The process that computes: an engine that generates takes a whole core, an idle one next to
    nothing.
    """
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.cpu_percent()
    time.sleep(seconds)
    return max(processes, key=lambda process: process.cpu_percent()).pid


class TextStream:
    """A completion that streams in a thread: its text so far, its last usage, and how it ended."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.text = ""
        self.usage: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None
        self.broken: Exception | None = None
        self.longest_pause_s = 0.0
        self._url = url
        self._body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        self._change = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def wait_chars(self, n: int, seconds: float = WAIT_S) -> None:
        """Until so much text has arrived, or the stream has ended."""
        with self._change:
            assert self._change.wait_for(lambda: len(self.text) >= n or self._ended, seconds), (
                f"{len(self.text)} characters of {n}"
            )

    def finish(self, seconds: float = WAIT_S) -> str:
        """The whole text, once the stream has ended."""
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the stream hangs"
        return self.text

    @property
    def ended(self) -> bool:
        return self._ended

    def _read(self) -> None:
        try:
            with httpx.stream("POST", f"{self._url}/v1/completions", json=self._body, timeout=WAIT_S) as reply:
                if reply.status_code != 200:
                    self.error = {"status": reply.status_code, **json.loads(reply.read())["error"]}
                last = time.monotonic()
                for line in reply.iter_lines():
                    self.longest_pause_s = max(self.longest_pause_s, time.monotonic() - last)
                    last = time.monotonic()
                    if line.startswith("data: ") and line != "data: [DONE]":
                        self._take(json.loads(line[6:]))
        except httpx.HTTPError as error:
            self.broken = error
        finally:
            with self._change:
                self._ended = True
                self._change.notify_all()

    def _take(self, chunk: dict[str, Any]) -> None:
        with self._change:
            self.error = chunk.get("error") or self.error
            self.usage = chunk.get("usage") or self.usage
            self.text += "".join(choice["text"] for choice in chunk.get("choices", ()))
            self._change.notify_all()
