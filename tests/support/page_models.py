"""Models for the tests of the page, and what cuts its connection."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from itertools import takewhile
from typing import Any

from erllama.events import Done, Event, Tokens
from erllama.request import GenerationRequest
from tests.support.http_fakes import Script, stats


def remembering(reply: Callable[[GenerationRequest], str]) -> Script:
    """Says what `reply` gives, and takes over of each prompt what earlier prompts and replies began with."""
    seen: list[bytes] = []

    async def script(request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        prompt, text = bytes(request.prompt_tokens), reply(request).encode()
        cached = max((_n_common(prompt, known) for known in seen), default=0)
        for start in range(0, len(text), 4):
            await asyncio.sleep(0)
            yield [Tokens(tuple(text[start : start + 4]), text[start : start + 4].decode())]
        seen.append(prompt + text)
        yield [Done(stats(request, len(text), cached=min(cached, len(prompt) - 1)), "key")]

    return script


def _n_common(one: bytes, other: bytes) -> int:
    return sum(1 for _ in takewhile(bool, map(int.__eq__, one, other)))


def held(script: Script, at: int, gate: threading.Event, gone: threading.Event | None = None) -> Script:
    """`script`, which waits before its item `at` until the test opens the `gate`; `gone` tells that it was
    cancelled there.
    """

    async def waiting(request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        n = 0
        async for item in script(request):
            if n == at:
                try:
                    await asyncio.to_thread(gate.wait, 30)
                except asyncio.CancelledError:
                    if gone is not None:
                        gone.set()
                    raise
            n += 1
            yield item

    return waiting


class Cutting:
    """An app whose first reply with `text` in a piece loses its connection before that piece."""

    def __init__(self, app: Any, text: bytes) -> None:
        self._app = app
        self._text = text
        self._has_cut = False
        self.last_event_ids: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.last_event_ids += [value.decode() for name, value in scope["headers"] if name == b"last-event-id"]

        async def cutting_send(message: Any) -> None:
            if not self._has_cut and self._text in message.get("body", b""):
                self._has_cut = True
                raise OSError("cut")
            await send(message)

        await self._app(scope, receive, cutting_send if scope["method"] == "POST" else send)
