"""Hands requests that generate, and are answered well, to the writer. Pure ASGI, inside of the layer that
gives each request its id.

`scope["state"]["kept_body"]` is a list into which whoever reads the body puts it, decompressed.
"""

from __future__ import annotations

import re
import time
from urllib.parse import parse_qs, urlencode

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.capture.writer import Captured, CaptureWriter

KEPT_BODY = "kept_body"
_PATHS = re.compile(
    r"/(?:chat/completions|completions|completion|messages|responses|infill|api/chat|api/generate)"
    r"|/models/.+:(?:streamGenerateContent|generateContent)"
)
_HEADERS = frozenset({b"user-agent", b"anthropic-version", b"anthropic-beta", b"x-erllama-noise"})
_MAX_HEADER = 512


class CaptureScope:
    """Wraps the app. Owns `writer` from the start of the application to its end."""

    def __init__(self, app: ASGIApp, writer: CaptureWriter) -> None:
        self._app = app
        self._writer = writer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, self._closing_at_the_end(receive), send)
            return
        if scope["type"] != "http" or scope["method"] != "POST" or not _generates(scope):
            await self._app(scope, receive, send)
            return
        began_s = time.time()
        body: list[bytes] = []
        state = scope.setdefault("state", {})
        state[KEPT_BODY] = body

        async def keeping_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] < 400 and body:
                    self._writer.put(_captured(scope, began_s, body[-1]))
                body.clear()  # a stream may last for hours
            await send(message)

        await self._app(scope, receive, keeping_send)

    def _closing_at_the_end(self, receive: Receive) -> Receive:
        async def watched() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._writer.close()
            return message

        return watched


def _generates(scope: Scope) -> bool:
    path = str(scope["path"]).rstrip("/")
    return any(_PATHS.fullmatch(path, at) for at in (0, *(m.start() for m in re.finditer("/", path))))


def _captured(scope: Scope, began_s: float, body: bytes) -> Captured:
    root, query = str(scope.get("root_path", "")), parse_qs(scope.get("query_string", b"").decode("latin-1"))
    kept = {name: query[name] for name in ("alt",) if name in query}  # others may be keys
    path = str(scope["path"]).removeprefix(root) + (f"?{urlencode(kept, doseq=True)}" if kept else "")
    headers = {
        name.decode("latin-1"): value.decode("latin-1")[:_MAX_HEADER]
        for name, value in scope["headers"]
        if name in _HEADERS
    }
    return Captured(str(scope["state"].get("request_id", "")), began_s, path, headers, body)
