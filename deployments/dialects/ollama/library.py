"""Ollama's routes that change which models there are: pull, create, copy, delete, and what a registry
would need (push, blobs), which this server is not.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from deployments.dialects.ollama.models import named_model
from deployments.dialects.ollama.wire import parse_body
from deployments.dialects.ollama.wire_models import CopyBody, CreateBody, DeleteBody, PullBody, created
from deployments.generation.reply import read_body
from deployments.generation.steps import to_the_end, watched
from deployments.http.dialect import route_path
from deployments.http.disconnect import unless_disconnected
from deployments.http.middleware import require_admin, tenant_of
from deployments.http.options import HttpOptions
from deployments.http.registry import ModelRegistry
from erllama.errors import RequestError
from erllama.hub.events import PullEvent

_CHANGES = {"/pull": "POST", "/create": "POST", "/copy": "POST", "/delete": "DELETE"}
_BLOBS = "/blobs/{digest}"
_ELSEWHERE = {"/push": "POST", _BLOBS: "POST"}


class ManagedElsewhere(RequestError):
    """What this server does not do."""

    http_status = 501
    code = "not_implemented"


def library_routes(models: ModelRegistry, options: HttpOptions) -> APIRouter:
    if not models.library.is_there:
        return _refusing(
            _ELSEWHERE | _CHANGES | {_BLOBS: "GET POST"},
            "which models are served stands in the server's configuration (hub.enabled)",
        )
    router = _refusing(_ELSEWHERE, "this server is no registry")
    library = models.library

    @router.post("/api/pull")
    async def pull(request: Request) -> Response:
        body = parse_body(PullBody, await read_body(request, options.max_body_bytes))
        events = library.pull(body.named, None, tenant_of(request))
        if body.stream is False:
            await unless_disconnected(request.receive, to_the_end(events))
            return JSONResponse({"status": "success"})
        return await watched(request, _told(events))

    @router.post("/api/create")
    async def create(request: Request) -> Response:
        require_admin(request)
        body = parse_body(CreateBody, await read_body(request, options.max_body_bytes))
        body = created(body)
        body.check_refused()
        body.check_parameters()
        name, base = body.named, named_model(models.of(request), body.base)

        async def steps() -> AsyncGenerator[dict[str, Any], None]:
            yield {"status": "using existing layer"}
            await library.create(name, base.id, template=body.template, system=body.system, parameters=body.parameters)
            yield {"status": "writing manifest"}
            yield {"status": "success"}

        if body.stream is False:
            await to_the_end(steps())
            return JSONResponse({"status": "success"})
        return await watched(request, steps())

    @router.post("/api/copy")
    async def copy(request: Request) -> Response:
        require_admin(request)
        body = parse_body(CopyBody, await read_body(request, options.max_body_bytes))
        source, target = body.pair
        await library.copy(named_model(models.of(request), source).id, target)
        return Response()

    @router.delete("/api/delete")
    async def delete(request: Request) -> Response:
        require_admin(request)
        body = parse_body(DeleteBody, await read_body(request, options.max_body_bytes))
        await library.delete(body.named)
        return Response()

    @router.get(f"/api{_BLOBS}")  # HEAD arrives as GET
    async def blob(request: Request, digest: str) -> Response:
        require_admin(request)
        return Response(status_code=200 if await library.has_blob(digest) else 404)

    return router


def _refusing(paths: Mapping[str, str], why: str) -> APIRouter:
    router = APIRouter()

    async def refuse(request: Request) -> Response:
        raise ManagedElsewhere(f"{route_path(request.scope).split('/')[2]} is not supported: {why}")

    for path, methods in paths.items():
        router.add_api_route(f"/api{path}", refuse, methods=methods.split(), include_in_schema=False)
    return router


async def _told(events: AsyncGenerator[PullEvent, None]) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(events):
        async for event in events:
            told: dict[str, Any] = {"status": event.status}
            if event.digest:
                told["digest"] = event.digest
            if event.total:
                told |= {"total": event.total, "completed": event.completed}
            yield told
