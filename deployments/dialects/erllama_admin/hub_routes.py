"""The hub's models over our own API: what there is and where, pulls with their progress, deletion."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from deployments.dialects.erllama_admin.wire import PullBody
from deployments.generation.reply import read_body
from deployments.generation.steps import to_the_end, watched
from deployments.http.body import parse_json
from deployments.http.disconnect import unless_disconnected
from deployments.http.middleware import require_admin, tenant_of
from deployments.http.model_library import LibraryModel
from deployments.http.options import HttpOptions
from deployments.http.registry import ModelRegistry
from erllama.hub.events import PullEvent

HUB = "/erllama/v1/hub"


def hub_routes(models: ModelRegistry, options: HttpOptions) -> APIRouter:
    router = APIRouter()

    @router.get(HUB)
    async def list_hub(request: Request) -> Response:
        require_admin(request)
        found = await models.of(request).of_library()
        data = [hub_card(model) for model in found]
        return JSONResponse({"object": "list", "enabled": models.library.is_there, "data": data})

    @router.post(f"{HUB}/pull")
    async def pull(request: Request) -> Response:
        body = parse_json(PullBody, await read_body(request, options.max_body_bytes))
        events = models.library.pull(body.source, body.name, tenant_of(request))
        if body.stream:
            return await watched(request, _told(events))
        await unless_disconnected(request.receive, to_the_end(events))
        return JSONResponse({"object": "hub.pull", "status": "success"})

    @router.delete(HUB + "/{name:path}")
    async def delete(request: Request, name: str) -> Response:
        require_admin(request)
        force = request.query_params.get("force", "").lower() in ("1", "true")
        await models.library.delete(name, force=force)
        return JSONResponse({"object": "hub.model", "id": name, "deleted": True})

    return router


def hub_card(model: LibraryModel) -> dict[str, Any]:
    manifest = model.manifest
    return {
        "object": "hub.model",
        "id": model.id,
        "size": manifest.size,
        "digest": manifest.digest,
        "created": int(manifest.created.timestamp()),
        **manifest.details.model_dump(),
        "parameters": manifest.parameters,
        "standing": asdict(model.standing),
    }


async def _told(events: AsyncGenerator[PullEvent, None]) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(events):
        async for event in events:
            yield asdict(event)
