"""Responses that are made in the background: they go on without a connection, and whoever asks for
one gets what there is of it.

A task of this process reads the reply to its end. When the process is killed the replica keeps what
the request has given, with the body that asked for it, so another ingress that is asked for the
response goes on with it. If nobody asks within the grace time it is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from starlette.requests import Request

from deployments.dialects.responses.writer import ResponseWriter
from deployments.generation.event_ids import NumberedWriter
from deployments.http.errors import as_erllama_error
from deployments.http.middleware import tenant_of

logger = logging.getLogger("deployments.http")

MAX_BYTES = 64 * 1024 * 1024
_END = b"\n\n"


class BackgroundReply:
    """One response, of the tenant whose salt it has. `chunks` give its stream as `numbered` writes
    it, over `writer`; `cancel` ends its request wherever that runs. One event loop.
    """

    def __init__(
        self,
        id: str,
        salt: str,
        writer: ResponseWriter,
        numbered: NumberedWriter,
        chunks: AsyncGenerator[bytes, None],
        cancel: Callable[[], Awaitable[object]],
    ) -> None:
        self.id = id
        self.salt = salt
        self.numbered = numbered
        self.n_bytes = 0
        self.ended = False
        self._writer = writer
        self._chunks = chunks
        self._cancel = cancel
        self._events: list[bytes] = []
        self._body: str | None = None  # of a response that did not end by itself
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self, when_ended: Callable[[], object]) -> None:
        """Let it run. Once."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(lambda _: when_ended())

    @property
    def body(self) -> str:
        """The response as far as it has come."""
        return self._body or self._writer.so_far("in_progress")

    async def cancel(self) -> None:
        """End it; what was made of it stays. Idempotent."""
        if self.ended or self._task is None:
            return
        self._body = self._writer.ended_as("cancelled")
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._cancel()

    async def stream(self, n_seen: int) -> AsyncGenerator[bytes, None]:
        """Its events behind the first `n_seen`, as they come. Closing it leaves the response alone."""
        while True:
            while n_seen < len(self._events):
                n_seen += 1
                yield self._events[n_seen - 1]
            if self.ended:
                return
            self._news.clear()
            await self._news.wait()

    async def _run(self) -> None:
        try:
            self._put(self.numbered.begin())
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    self._put(chunk)
        except Exception as exc:
            error = as_erllama_error(exc, self.id)
            logger.warning("event=background_failed request_id=%s error=%s", self.id, error.message)
            self._put(self.numbered.fail(error, self.id))
            self._body = self._writer.ended_as("failed", error, self.id)
        finally:
            self.ended = True
            self._news.set()

    def _put(self, chunk: bytes) -> None:
        self._events += [event + _END for event in chunk.split(_END)[:-1]]
        self.n_bytes += len(chunk)
        self._news.set()


Adopt = Callable[[str, Request], Awaitable[BackgroundReply | None]]


class BackgroundReplies:
    """Those that this process makes, or has made within the last `keep_s` seconds; at most
    `max_bytes` of those that have ended. `adopt` makes one that a replica keeps for another process.
    """

    def __init__(self, adopt: Adopt, keep_s: float, max_bytes: int = MAX_BYTES) -> None:
        self._adopt = adopt
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._replies: dict[str, BackgroundReply] = {}

    def __contains__(self, id: object) -> bool:
        return id in self._replies

    def get(self, id: str, request: Request) -> BackgroundReply | None:
        """One of this process, if it belongs to the tenant who asks."""
        found = self._replies.get(id)
        return found if found is not None and found.salt == tenant_of(request).salt else None

    async def find(self, id: str, request: Request) -> BackgroundReply | None:
        """One of this process, or of any other that is gone or does not answer."""
        if id not in self._replies and self._keep_s:
            found = await self._adopt(id, request)
            if found is not None and id not in self._replies:  # another call may have been faster
                self.start(found)
        return self.get(id, request)

    def start(self, reply: BackgroundReply) -> None:
        """Let it run."""
        self._replies[reply.id] = reply
        loop = asyncio.get_running_loop()
        reply.start(lambda: loop.call_later(self._keep_s, self.drop, reply.id))
        self._shrink()

    def drop(self, id: str) -> None:
        """Forget it. Idempotent."""
        self._replies.pop(id, None)

    def _shrink(self) -> None:
        ended = [reply for reply in self._replies.values() if reply.ended]
        n_bytes = sum(reply.n_bytes for reply in ended)
        for reply in ended:
            if n_bytes <= self._max_bytes:
                return
            n_bytes -= reply.n_bytes
            self.drop(reply.id)
