"""The endpoints for requests that were served lately. An admin sees those of all tenants, everybody else
those of the own key: what is another's does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from deployments.dialects.erllama_admin.admin import RequestPort
from deployments.dialects.erllama_admin.asked_tenant import asked_tenant
from deployments.dialects.erllama_admin.request_shapes import request_card, why_card
from deployments.dialects.erllama_admin.shapes import replies
from deployments.dialects.erllama_admin.wire import asked_limit
from deployments.generation.reply import INLINE_CHARS, prepare
from deployments.http.answers import Answer
from deployments.http.middleware import key_book, tenant_of
from deployments.http.ports import ServedModel
from deployments.http.registry import ModelRegistry
from deployments.http.tenant_client import TenantClient
from erllama.diagnosis.record import PromptRecord
from erllama.errors import EngineStopped, ErllamaError, RequestNotFound

REQUESTS = "/erllama/v1/requests"


def request_routes(models: ModelRegistry) -> APIRouter:
    """Below `REQUESTS`."""
    router = APIRouter(prefix=REQUESTS)

    async def asked(request: Request) -> list[tuple[ServedModel, RequestPort]]:
        """The models that are meant, the named one or all that the key may use."""
        name, mine = request.query_params.get("model"), models.of(request)
        found = [mine.resolve(name, fetch=False)] if name else await mine.listed()
        return [(model, port) for model in found if (port := _port_of(model)) is not None]

    @router.get("")
    async def list_requests(request: Request) -> Response:
        limit, salt, names = asked_limit(request.query_params), _asked_salt(request), _tenant_names(request)
        found = await asked(request)
        told = await asyncio.gather(*(_told(port, limit, salt) for _, port in found))
        cards = [
            request_card(record, model.id, names.get(record.salt))
            for (model, _), answers in zip(found, told, strict=True)
            for answer in answers
            for record in answer.value or ()
        ]
        cards.sort(key=lambda card: float(card["time"]), reverse=True)
        every = [answer for answers in told for answer in answers]
        return JSONResponse({"object": "list", "data": cards[:limit], "replicas": replies(every)})

    @router.get("/{request_id:path}/why")
    async def why(request: Request, request_id: str) -> Response:
        salt = _asked_salt(request)
        unanswered: ErllamaError | None = None
        for model, port in await asked(request):
            try:
                record = await port.why(request_id, salt=salt)
            except (RequestNotFound, EngineStopped):  # it is another model's, perhaps
                continue
            except ErllamaError as error:
                unanswered = error
                continue
            name, prompts = _tenant_names(request).get(record.salt), model.prompts
            return JSONResponse(await prepare(prompts, INLINE_CHARS, why_card, record, model.id, name, prompts))
        raise unanswered or RequestNotFound(
            f"Nothing is remembered of a request {request_id[:160]!r}: it has no prompt, was too long ago, or is "
            "not one of yours.",
            param="request_id",
        )

    return router


def _asked_salt(request: Request) -> str | None:
    """That of the tenant whose requests are meant; None for those of all."""
    if "tenant" in request.query_params:
        return asked_tenant(request).salt
    mine = tenant_of(request)
    return None if mine.admin else mine.salt


def _tenant_names(request: Request) -> dict[str, str]:
    """Names by salt."""
    return {tenant.salt: name for name, tenant in key_book(request).tenants.items()}


def _port_of(model: ServedModel) -> RequestPort | None:
    port: Any = model.client.shared if isinstance(model.client, TenantClient) else None
    return port if isinstance(port, RequestPort) else None


async def _told(port: RequestPort, limit: int, salt: str | None) -> Sequence[Answer[list[PromptRecord]]]:
    """What the replicas of a model say; nothing of one that does not run."""
    try:
        return await port.requests(limit, salt=salt)
    except EngineStopped:
        return []
    except ErllamaError as error:
        return [Answer(error=error)]
