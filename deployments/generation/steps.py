"""Long work that its client watches step by step: a pull, the making of a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from deployments.http.body import encode
from deployments.http.dialect import dialect_of
from deployments.http.middleware import request_id
from erllama.errors import ErllamaError


async def to_the_end(steps: AsyncGenerator[Any, None]) -> None:
    """Returns after the last one. Raises what ends them early."""
    async with aclosing(steps):
        async for _ in steps:
            pass


async def watched(request: Request, steps: AsyncGenerator[Mapping[str, Any], None]) -> Response:
    """A stream with a piece for each, in the framing of the request's dialect. What fails before the
    first one has a status, later it is the last piece. A client that goes away closes `steps`.
    """
    dialect = dialect_of(request.scope)
    frame = dialect.framing.frame
    first = await anext(steps)

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield frame(encode(first).encode(), "")
        try:
            async with aclosing(steps):
                async for step in steps:
                    yield frame(encode(step).encode(), "")
        except ErllamaError as error:
            yield frame(dialect.error_body(error, request_id(request)), "error")

    return StreamingResponse(pieces(), media_type=dialect.framing.media_type)
