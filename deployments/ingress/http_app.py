"""The HTTP application: health, the dialects' routes, and the layers around them. Plain FastAPI
without ray, so it runs anywhere.

Read on: `dialects/openai/routes` (endpoints), `http/reply` (the path that they share),
`http/middleware` (request id, keys, log), `http/dialect` (what a dialect is), `http/errors`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from deployments.dialects.openai.routes import OpenAI
from deployments.http.dialect import Dialect
from deployments.http.errors import install_error_handlers
from deployments.http.middleware import RequestScope
from deployments.http.options import HttpOptions
from deployments.http.ports import ModelRegistry, ServedModel

logger = logging.getLogger("deployments.http")

DIALECTS: tuple[Dialect, ...] = (OpenAI(),)


async def _state(model: ServedModel, timeout_s: float) -> str:
    try:
        ready = await asyncio.wait_for(model.client.ready(), timeout_s)
    except Exception as exc:  # a probe must answer, whatever the reason
        logger.warning("event=not_ready model=%s error=%r", model.id, exc)
        return "not_ready"
    return "unknown" if ready is None else "ready" if ready else "not_ready"


def make_http_app(
    models: Iterable[ServedModel],
    options: HttpOptions | None = None,
    *,
    dialects: Sequence[Dialect] = DIALECTS,
    echo_request_id: bool = True,
) -> FastAPI:
    """The application for these models. Raises `InvalidParameter` when their names clash.

    The first of `dialects` answers for paths that none of them claims. `echo_request_id` is False
    under Ray Serve, which answers with the request id itself.
    """
    options = options or HttpOptions()
    registry = ModelRegistry(models)
    # bodies are parsed by the dialects, so a generated schema would be empty
    app = FastAPI(title="erllama", openapi_url=None, redirect_slashes=False)

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/health/ready")
    async def ready() -> Response:
        """A model that sleeps ("unknown") does not count against us: a request would wake it, and a
        probe must not.
        """
        states = await asyncio.gather(*(_state(model, options.ready_timeout_s) for model in registry))
        ok = "not_ready" not in states
        by_id = dict(zip((model.id for model in registry), states, strict=True))
        return JSONResponse({"status": "ready" if ok else "not_ready", "models": by_id}, status_code=200 if ok else 503)

    for dialect in dialects:
        app.include_router(dialect.routes(registry, options))
    install_error_handlers(app)
    app.add_middleware(RequestScope, dialects=dialects, api_keys=options.api_keys, echo_request_id=echo_request_id)
    if options.cors_origins:  # outermost, so that refusals carry the headers too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app
