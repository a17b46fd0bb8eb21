"""A streamed reply that decides its status late.

The status line leaves with the first chunk, so an error before it is a real 4xx or 5xx. A prefill
may take minutes and proxies drop silent connections: after `keepalive_s` without a byte the line
leaves anyway, followed by the dialect's keep-alive (OpenAI's is the comment `: keep-alive`) at that
interval, and later errors travel in the stream. A dialect that has none stays silent, its status
open. Bytes of one `send` are always whole pieces of the stream, so a keep-alive cannot fall into
the middle of one.

A dialect may name errors that travel in the stream in any case (`in_stream`), for clients that act
on them only there.

A client of HTTP/1.0 cannot read a stream of unknown length, so it gets the whole of it at the end.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from deployments.http.dialect import ReplyWriter, dialect_of
from deployments.http.disconnect import unless_disconnected
from deployments.http.errors import ClientDisconnected, SlowReader, as_erllama_error
from deployments.http.middleware import request_facts, request_id, slow_reader_s
from erllama.errors import ErllamaError

logger = logging.getLogger("deployments.http")

_HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",  # nginx would hold events back
}


class StreamResponse(StreamingResponse):
    """Sends chunks as they come. Closes `chunks` on every way out, the client's disconnect
    included. Use once.
    """

    def __init__(
        self,
        request: Request,
        chunks: AsyncGenerator[bytes, None],
        writer: ReplyWriter,
        *,
        keepalive_s: float,
        in_stream: tuple[type[ErllamaError], ...] = (),
    ) -> None:
        """`writer` is the one that makes `chunks`: it also knows what a silent stream and a failed
        one say. The framing is that of the request's dialect.
        """
        super().__init__(chunks, headers=_HEADERS, media_type=dialect_of(request.scope).framing.media_type)
        self._chunks = chunks
        self._writer = writer
        self._request_id = request_id(request)
        self._facts = request_facts(request)
        self._keepalive_s = keepalive_s
        bound_s = slow_reader_s(request)
        self._slow_reader_s = math.inf if bound_s is None else bound_s
        self._in_stream = in_stream
        self._old = request.scope.get("http_version") == "1.0"
        self._started = False
        self._finished = False
        self._sending = asyncio.Lock()  # the pump and a tick take turns
        self._last_sent = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._pump(send), tick=lambda: self._tick(send))
        except ClientDisconnected as exc:
            if not self._started:
                raise
            self._facts.fail(exc)  # the status has left: it was 200
            logger.info("event=client_left request_id=%s reason=%s", self._request_id, exc.code)

    async def _pump(self, send: Send) -> None:
        if self._old:
            await self._send_whole(send)
        else:
            await self._send_pieces(send)

    async def _send_whole(self, send: Send) -> None:
        """For a client of HTTP/1.0, which knows no chunks: one body of known length."""
        async with aclosing(self._chunks) as chunks:
            body = b"".join([chunk async for chunk in chunks])
        self.raw_headers.append((b"content-length", str(len(body)).encode()))
        await self._send(send, body, more=False)

    async def _send_pieces(self, send: Send) -> None:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    if chunk:
                        await self._send(send, chunk)
        except ClientDisconnected:  # nobody reads what could still be said
            raise
        except Exception as exc:
            if not self._started and not isinstance(exc, self._in_stream):
                raise
            error = as_erllama_error(exc, self._request_id)
            self._facts.fail(error)
            await self._send(send, self._writer.fail(error, self._request_id))
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, chunk: bytes, *, more: bool = True) -> None:
        async with self._sending:
            if self._finished:  # a tick that waited here: the final message is the last one
                return
            self._finished = not more
            try:
                if not self._started:
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    self._started = True
                self._last_sent = time.monotonic()
                await send({"type": "http.response.body", "body": chunk, "more_body": more})
            except OSError as exc:  # ASGI 2.4: how a server says that the client is gone
                raise ClientDisconnected("The client closed the connection.") from exc

    async def _tick(self, send: Send) -> float:
        """Sends a keep-alive if one is due; seconds until the next may be, or until a piece may have
        waited for too long. Raises `SlowReader` when one has: behind it a sequence of the engine goes on,
        and its events pile up. Nothing of this costs anything per piece.
        """
        silent_s = time.monotonic() - self._last_sent
        if self._finished or self._old:
            return self._keepalive_s
        if self._sending.locked():  # since the last time that something was sent
            if silent_s >= self._slow_reader_s:
                raise self._slow_reader()
            return min(self._slow_reader_s - silent_s, self._keepalive_s)
        if silent_s < self._keepalive_s:
            return min(self._slow_reader_s, self._keepalive_s - silent_s)
        if keepalive := self._writer.keepalive():
            await self._send_in_time(send, keepalive)
        return min(self._slow_reader_s, self._keepalive_s)

    async def _send_in_time(self, send: Send, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(None if self._slow_reader_s == math.inf else self._slow_reader_s) as bound:
                await self._send(send, chunk)
        except TimeoutError:
            if not bound.expired():
                raise
            raise self._slow_reader() from None

    def _slow_reader(self) -> SlowReader:
        return SlowReader(f"The client has left its stream unread for {self._slow_reader_s:g} s.")
