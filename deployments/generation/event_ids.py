"""Event ids of a stream that a client may go on with: `id: <request>.<n>`, n counting the events
since its start, keep-alives aside.

What a dialect writes depends on the events of the reply alone, so a stream that is written again is
the same one, and a client that has n events of it gets what comes after them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from deployments.http.dialect import ReplyWriter
from erllama.errors import ErllamaError
from erllama.events import Event

_END = b"\n\n"


@runtime_checkable
class Begins(Protocol):
    """A writer whose stream may begin before there is anything of the reply."""

    def begin(self) -> bytes:
        """The first events, b"" when they have left."""


def split_event_id(text: str) -> tuple[str, int] | None:
    """The stream and the number in an event's id; None for what is none."""
    stream, _, number = text.strip().rpartition(".")
    return (stream, int(number)) if stream and number.isascii() and number.isdecimal() and len(number) < 10 else None


class NumberedWriter:
    """A `ReplyWriter` whose events carry ids. The first `n_seen` are left out: the client has them.

    An error carries none: a client that comes back names the last event before it.
    """

    def __init__(self, writer: ReplyWriter, stream: str, n_seen: int = 0) -> None:
        self._writer = writer
        self._prefix = b"id: " + stream.encode() + b"."
        self._n_seen = n_seen
        self._n_events = 0

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        return self._numbered(self._writer.feed(index, events))

    def close(self) -> bytes:
        return self._numbered(self._writer.close())

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        return self._writer.fail(error, request_id)

    def begin(self) -> bytes:
        """See `Begins`."""
        return self._numbered(self._writer.begin()) if isinstance(self._writer, Begins) else b""

    def keepalive(self) -> bytes:
        return self.begin() or self._writer.keepalive()

    def _numbered(self, chunk: bytes) -> bytes:
        if chunk.find(_END) == len(chunk) - len(_END):  # one event, as mostly
            self._n_events += 1
            return b"%b%d\n%b" % (self._prefix, self._n_events, chunk) if self._n_events > self._n_seen else b""
        out: list[bytes] = []
        for event in chunk.split(_END)[:-1]:
            self._n_events += 1
            if self._n_events > self._n_seen:
                out += (self._prefix, str(self._n_events).encode(), b"\n", event, _END)
        return b"".join(out)
