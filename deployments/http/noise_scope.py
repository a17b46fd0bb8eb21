"""The rules against noise, as far as HTTP is concerned: each request gets those for its client, its
answer says in `x-erllama-noise` what they did, and the counts are logged when the server ends. Pure
ASGI, inside of `RequestScope`.

A request with the header `x-erllama-noise: off` gets none.
"""

from __future__ import annotations

import logging

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.http.dialect import dialect_of
from deployments.noise.filter import Noise, NoiseFilter
from erllama.errors import InvalidParameter

logger = logging.getLogger("deployments.http")

HEADER = "x-erllama-noise"


def noise_of(request: Request) -> NoiseFilter:
    """The rules for this request. Raises `InvalidParameter` for a header that says neither on nor
    off.
    """
    state = request.scope["state"]
    wanted = request.headers.get(HEADER, "on").strip().lower()
    if wanted not in ("on", "off"):
        raise InvalidParameter(f"{HEADER} must be on or off, got {wanted[:40]!r}", param=HEADER)
    noise: Noise = state["noise"]
    agent = request.headers.get("user-agent", "")
    chosen = noise.filter(dialect_of(request.scope).name, agent) if wanted == "on" else noise.no_filter()
    state["noise_filter"] = chosen
    return chosen


class NoiseScope:
    """Wraps the app; see the module's docstring."""

    def __init__(self, app: ASGIApp, noise: Noise) -> None:
        self._app = app
        self._noise = noise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, self._logging_the_end(receive), send)
            return
        state = scope.setdefault("state", {})
        state["noise"] = self._noise

        async def telling_send(message: Message) -> None:
            chosen: NoiseFilter | None = state.get("noise_filter")
            if message["type"] == "http.response.start" and chosen is not None and chosen.report:
                told = (HEADER.encode(), chosen.report.header().encode())
                message["headers"] = [*message.get("headers", ()), told]
            await send(message)

        await self._app(scope, receive, telling_send)

    def _logging_the_end(self, receive: Receive) -> Receive:
        async def logged() -> Message:
            message = await receive()
            counts = self._noise.counters.snapshot()
            if message["type"] == "lifespan.shutdown" and counts:
                logger.info("event=noise_total %s", " ".join(f"{name}={n}" for name, n in counts.items()))
            return message

        return logged
