"""A streaming HTTP client that costs little: it shares the cores with the server that it measures.

While a reply arrives the client only stores each read with its time and looks at the last bytes for
the end. Everything else (chunked framing, server-sent events, JSON) is parsed by `parse_reply` when
the measurement is over. An event's time is that of the read which completed it. All times are
monotonic nanoseconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Self

HOST = "127.0.0.1"
_LAST_CHUNK = b"\r\n0\r\n\r\n"  # JSON escapes control characters, so no payload contains it


class Truncated(ConnectionError):
    """The server closed the connection before the reply was complete."""


@dataclass(slots=True)
class Raw:
    """A reply as it came: when the request was sent, and every read."""

    sent_ns: int
    reads: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SseEvent:
    """The data of one event and the time at which it was complete."""

    ns: int
    data: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A parsed reply. `events` is empty unless the body is an event stream; header names are lower
    case.
    """

    sent_ns: int
    done_ns: int
    status: int
    headers: Mapping[str, str]
    body: bytes
    events: tuple[SseEvent, ...]


class Connection(asyncio.Protocol):
    """One connection, one request at a time, kept alive between them. `on_read` may call
    `abort`.
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._raw: Raw | None = None
        self._done: asyncio.Future[Raw] | None = None
        self._on_read: Callable[[Raw], None] | None = None
        self._head = b""
        self._left: int | None = None  # bytes of a body with content-length; None: chunked
        self._tail = b""

    @classmethod
    async def open(cls, port: int) -> Self:
        _, connection = await asyncio.get_running_loop().create_connection(cls, HOST, port)
        return connection

    async def request(self, data: bytes, on_read: Callable[[Raw], None] | None = None) -> Raw:
        """Send a request, wait for the whole reply. Raises `Truncated` when the connection ends
        first.
        """
        assert self._transport is not None
        assert self._done is None or self._done.done(), "one request at a time"
        if self._transport.is_closing():
            raise Truncated("the connection is closed")
        self._done = asyncio.get_running_loop().create_future()
        self._head, self._tail, self._left, self._on_read = b"", b"", None, on_read
        self._raw = Raw(time.monotonic_ns())
        self._transport.write(data)
        try:
            return await self._done
        finally:
            self._on_read = None

    def abort(self) -> None:
        """Close at once, as a client does that goes away. A running `request` raises
        `Truncated`.
        """
        if self._transport is not None:
            self._transport.abort()

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now, raw = time.monotonic_ns(), self._raw
        if raw is None or self._done is None or self._done.done():
            return
        raw.reads.append((now, data))
        if self._is_end(data):
            self._done.set_result(raw)
        elif self._on_read is not None:
            self._on_read(raw)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            assert self._raw is not None
            n_bytes = sum(len(data) for _, data in self._raw.reads)
            self._done.set_exception(
                Truncated(f"the connection ended after {n_bytes} bytes of a reply ({exc or 'closed'})")
            )

    def _is_end(self, data: bytes) -> bool:
        if self._head.find(b"\r\n\r\n") < 0:
            self._head += data
            head, separator, body = self._head.partition(b"\r\n\r\n")
            if not separator:
                return False
            length = _header(head, b"content-length")
            self._left = None if length is None else int(length)
            data = b"\r\n" + body  # a body of no chunks starts with the last one
            if self._left is not None:
                self._left += 2
        if self._left is not None:
            self._left -= len(data)
            return self._left <= 0
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        return self._tail == _LAST_CHUNK


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def encode_request(method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
    """A whole HTTP/1.1 request."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"host: {HOST}", f"content-length: {len(data)}"]
    if data:
        lines.append("content-type: application/json")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


async def fetch(port: int, data: bytes) -> Reply:
    """One request on a connection of its own."""
    connection = await Connection.open(port)
    try:
        return parse_reply(await connection.request(data))
    finally:
        connection.abort()


# --- parsing: pure --------------------------------------------------------------------------------


def parse_reply(raw: Raw) -> Reply:
    """Status, headers, body and timed events of a complete reply. Raises `ValueError` when it is
    not HTTP.
    """
    data = b"".join(part for _, part in raw.reads)
    head, separator, _ = data.partition(b"\r\n\r\n")
    if not separator or not head.startswith(b"HTTP/1."):
        raise ValueError(f"not an HTTP reply: {data[:80]!r}")
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    start = len(head) + 4
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    pieces = chunk_spans(data, start) if chunked else [(start, len(data))]
    body = b"".join(data[a:b] for a, b in pieces)
    events: tuple[SseEvent, ...] = ()
    if headers.get("content-type", "").startswith("text/event-stream"):
        events = _timed_events(raw.reads, body, pieces)
    done_ns = raw.reads[-1][0]
    return Reply(raw.sent_ns, done_ns, int(status_line.split(" ")[1]), headers, body, events)


def chunk_spans(data: bytes, start: int) -> list[tuple[int, int]]:
    """(start, end) of the payload of every chunk. Raises `ValueError` when the framing is broken or
    has no last chunk.
    """
    spans: list[tuple[int, int]] = []
    while True:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            raise ValueError("the chunked body has no end")
        size = int(data[start:line_end].split(b";")[0], 16)
        if size == 0:
            return spans
        start = line_end + 2
        spans.append((start, start + size))
        if data[start + size : start + size + 2] != b"\r\n":
            raise ValueError("a chunk does not end where its size says")
        start += size + 2


def split_events(body: bytes) -> list[tuple[int, str]]:
    """(offset of its end, data) of every whole event that has data; comments and other fields are
    left out.
    """
    events = []
    start = 0
    while (end := body.find(b"\n\n", start)) >= 0:
        lines = body[start:end].decode().split("\n")
        data = [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
        start = end + 2
        if data:
            events.append((start, "\n".join(data)))
    return events


def _timed_events(
    reads: Sequence[tuple[int, bytes]], body: bytes, spans: Sequence[tuple[int, int]]
) -> tuple[SseEvent, ...]:
    read_ends = list(accumulate(len(part) for _, part in reads))
    span_ends = list(accumulate(b - a for a, b in spans))
    events = []
    for end, data in split_events(body):
        span = bisect_left(span_ends, end)
        wire_end = spans[span][1] - (span_ends[span] - end)
        events.append(SseEvent(reads[bisect_left(read_ends, wire_end)][0], data))
    return tuple(events)


# --- completions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed completion. `text_ns` has the time of every event with text; `end_ns` of the one
    that says why it ended.

    `cached_tokens` of the prompt were not computed, as the server's usage has it; 0 where it does
    not tell.
    """

    sent_ns: int
    end_ns: int
    text_ns: tuple[int, ...]
    text: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def first_ns(self) -> int:
        """The first event that proves a token: text, or the end when the first token has none
        yet.
        """
        return self.text_ns[0] if self.text_ns else self.end_ns

    @property
    def last_ns(self) -> int:
        return self.text_ns[-1] if self.text_ns else self.end_ns

    @property
    def ttft_s(self) -> float:
        return (self.first_ns - self.sent_ns) / 1e9

    @property
    def gaps_ms(self) -> list[float]:
        return [(b - a) / 1e6 for a, b in zip(self.text_ns, self.text_ns[1:], strict=False)]


def parse_stream(reply: Reply) -> Stream:
    """The completion in a streamed reply. Raises `ValueError` for an error, a missing end or
    missing usage.
    """
    if reply.status != 200:
        raise ValueError(f"HTTP {reply.status}: {reply.body[:300].decode(errors='replace')}")
    text: list[str] = []
    text_ns: list[int] = []
    end_ns = 0
    usage: Mapping[str, Any] | None = None
    for event in reply.events:
        if event.data == "[DONE]":
            break
        chunk = json.loads(event.data)
        if "error" in chunk:
            raise ValueError(f"an error inside the stream: {event.data[:300]}")
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", ()):
            piece = choice.get("text") or (choice.get("delta") or {}).get("content")
            if piece:
                text.append(piece)
                text_ns.append(event.ns)
            if choice.get("finish_reason"):
                end_ns = event.ns
    if not end_ns or usage is None:
        raise ValueError(
            f"the stream has no {'usage' if end_ns else 'finish_reason'}; it ends with {reply.body[-200:]!r}"
        )
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Stream(
        reply.sent_ns, end_ns, tuple(text_ns), "".join(text), usage["prompt_tokens"], usage["completion_tokens"], cached
    )


def steady_rate(streams: Sequence[Stream]) -> float:
    """Tokens per second of all streams while all of them run: from the last first token to the
    first end; nan when that is empty.

    An event may carry several tokens, or none yet (bytes of half a character), so each stream's
    tokens are spread over its events.
    """
    start, end = max(s.first_ns for s in streams), min(s.last_ns for s in streams)
    if end <= start:
        return float("nan")
    tokens = 0.0
    for stream in streams:
        inside = sum(start < ns <= end for ns in stream.text_ns)
        after_first = len(stream.text_ns) - 1
        tokens += (stream.completion_tokens - 1) * inside / after_first if after_first else 0.0
    return tokens * 1e9 / (end - start)
