"""llama.cpp's server in router mode, as far as its clients use it: models are loaded and unloaded by
name. The list of them is OpenAI's `/models`.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from deployments.generation.reply import read_body
from deployments.http.body import parse_json
from deployments.http.dialect import Dialect, own_routes
from deployments.http.disconnect import unless_disconnected
from deployments.http.middleware import require_admin
from deployments.http.model_library import ModelInUse
from deployments.http.options import HttpOptions
from deployments.http.ports import ServedModel
from deployments.http.registry import ModelRegistry
from erllama.errors import NotSupported


class ModelBody(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    model: str = Field(min_length=1)


def router_mode_routes(dialect: Dialect, models: ModelRegistry, options: HttpOptions) -> APIRouter:
    router = own_routes(dialect)

    async def named(request: Request) -> ServedModel:
        require_admin(request)
        body = parse_json(ModelBody, await read_body(request, options.max_body_bytes))
        model = models.of(request).resolve(body.model, fetch=False)
        if not model.on_demand:
            raise NotSupported(f"{model.id} is loaded as the server's configuration says", param="model")
        return model

    @router.post("/models/load")
    async def load(request: Request) -> Response:
        model = await named(request)
        await unless_disconnected(request.receive, models.library.load(model.id))
        return _done()

    @router.post("/models/unload")
    async def unload(request: Request) -> Response:
        model = await named(request)
        if not await models.library.unload(model.id):
            raise ModelInUse(f"{model.id} is in use: requests for it run or wait", param="model")
        return _done()

    return router


def _done() -> Response:
    told: dict[str, Any] = {"success": True}
    return JSONResponse(told)
