"""Our own API as a dialect. Errors have OpenAI's shape, which most clients read."""

from __future__ import annotations

from typing import ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from deployments.dialects.erllama_admin.asked_tenant import asked_tenant
from deployments.dialects.erllama_admin.cluster import ClusterPort, NoCluster
from deployments.dialects.erllama_admin.cluster_snapshot import ClusterWatch
from deployments.dialects.erllama_admin.hub_routes import HUB, hub_routes
from deployments.dialects.erllama_admin.prefix_routes import PREFIXES, prefix_routes
from deployments.dialects.erllama_admin.request_routes import request_routes
from deployments.dialects.erllama_admin.shapes import state_card
from deployments.dialects.erllama_admin.tenant_prefixes import port_of, prefixes_of
from deployments.dialects.erllama_admin.wire import ComputeBody, ForkBody, PinBody, PullBody
from deployments.generation.reply import read_body
from deployments.http.body import parse_json
from deployments.http.dialect import BEARER, SSE, Dialect, KeyHeader, add_routes
from deployments.http.middleware import require_admin
from deployments.http.openai_error import error_body
from deployments.http.options import HttpOptions
from deployments.http.registry import ModelRegistry
from erllama.errors import ErllamaError

_FORK = "/erllama/v1/sessions/{session_id}/fork"


class ErllamaAdmin(Dialect):
    prefixes = ("/erllama/v1",)
    framing = SSE
    bodies: ClassVar[dict[str, type[BaseModel]]] = {
        _FORK: ForkBody,
        PREFIXES: ComputeBody,
        f"{HUB}/pull": PullBody,
        f"{PREFIXES}/{{key}}/pin": PinBody,
    }
    keys = (BEARER, KeyHeader("x-api-key"))

    def __init__(self, cluster: ClusterPort | None = None) -> None:
        self._cluster = cluster or NoCluster()

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = APIRouter()
        watch = ClusterWatch(models, self._cluster, options.ready_timeout_s)

        @router.get("/erllama/v1/cluster")
        async def cluster(request: Request) -> Response:
            require_admin(request)
            return JSONResponse((await watch.snapshot()).card())

        @router.post(_FORK)
        async def fork(request: Request, session_id: str) -> Response:
            require_admin(request)
            body = parse_json(ForkBody, await read_body(request, options.max_body_bytes))
            tenant = asked_tenant(request, body.tenant)
            model = models.of(request, tenant).resolve(body.model)
            copied = await prefixes_of(model).fork_session(session_id, body.new_session_id)
            card = {"object": "session", "id": body.new_session_id, "model": model.id, "tenant": tenant.name}
            return JSONResponse(card | {"kv_copied": copied})

        @router.get("/erllama/v1/models/{model_id:path}/state")
        async def state(request: Request, model_id: str) -> Response:
            require_admin(request)
            model = models.of(request).resolve(model_id)
            answers = await port_of(model).states()
            return JSONResponse(
                {"object": "model.state", "model": model.id, "replicas": [state_card(a) for a in answers]}
            )

        add_routes(router, prefix_routes(models, options))
        add_routes(router, hub_routes(models, options))
        add_routes(router, request_routes(models))
        return router
