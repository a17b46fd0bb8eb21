"""The endpoints for stored prefixes. Each reads as the life of its request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from cache_store import CachedPrefix
from deployments.access.tenant import Tenant
from deployments.dialects.erllama_admin.admin import Conflict
from deployments.dialects.erllama_admin.ahead import prefix_prompt, prefix_request
from deployments.dialects.erllama_admin.asked_tenant import asked_tenant, owner_names
from deployments.dialects.erllama_admin.shapes import import_card, merged, merged_pins, pin_card, prefix_card, replies
from deployments.dialects.erllama_admin.tenant_prefixes import prefixes_of
from deployments.dialects.erllama_admin.wire import ComputeBody, PinBody, asked_limit
from deployments.generation.reply import INLINE_CHARS, prepare, read_body, whole_replies
from deployments.http.answers import Answer, values
from deployments.http.body import parse_json
from deployments.http.errors import ClientDisconnected
from deployments.http.middleware import engine_id, require_admin
from deployments.http.noise_scope import noise_of
from deployments.http.options import HttpOptions
from deployments.http.ports import ServedModel
from deployments.http.registry import ModelRegistry
from erllama.errors import PrefixNotFound

PREFIXES = "/erllama/v1/prefixes"


def prefix_routes(models: ModelRegistry, options: HttpOptions) -> APIRouter:
    """Below `PREFIXES`."""
    router = APIRouter(prefix=PREFIXES)

    def asked(request: Request) -> tuple[ServedModel, Tenant]:
        tenant = asked_tenant(request)
        return models.of(request, tenant).resolve(request.query_params.get("model")), tenant

    @router.get("")
    async def list_prefixes(request: Request) -> Response:
        (model, tenant), query = asked(request), request.query_params
        limit, order = asked_limit(query), query.get("order", "recent")
        answers = await prefixes_of(model).prefixes(limit, order)
        found = merged(values(answers), limit, order)
        cards = await prepare(model.prompts, INLINE_CHARS, _cards, model, found, tenant)
        return JSONResponse(_list(model, tenant, cards, answers))

    @router.post("")
    async def compute(request: Request) -> Response:
        require_admin(request)
        body = parse_json(ComputeBody, await read_body(request, options.max_body_bytes))
        tenant = asked_tenant(request, body.tenant)
        model = models.of(request, tenant).resolve(body.model)
        prompt = await prepare(model.prompts, INLINE_CHARS + 1, prefix_prompt, body, model.prompts, noise_of(request))
        [reply] = await whole_replies(request, model, [prefix_request(body, prompt, engine_id(request))])
        card = {"object": "kv.prefix", "model": model.id, "key": reply.finish_key, "tokens": len(prompt)}
        card |= {"tenant": tenant.name, "cached_tokens": reply.stats.cached_tokens}
        if body.pin is not None:
            pin = body.pin
            pinned = await prefixes_of(model).pin_prefix(prompt.tokens, pin.ttl_s, pin.name)
            card["pin"] = pin_card(values(pinned)[0], tenant.name, owner_names(request))
        return JSONResponse(card)

    @router.post("/import")
    async def import_file(request: Request) -> Response:
        model, tenant = asked(request)
        report = await prefixes_of(model).import_prefix(_body_chunks(request))
        return JSONResponse(import_card(report, tenant.name) | {"model": model.id})

    @router.get("/pins")
    async def list_pins(request: Request) -> Response:
        model, tenant = asked(request)
        answers, names = await prefixes_of(model).pins(), owner_names(request)
        cards = [pin_card(pin, tenant.name, names) for pin in merged_pins(values(answers))]
        return JSONResponse(_list(model, tenant, cards, answers))

    @router.get("/{key}")
    async def get_prefix(request: Request, key: str) -> Response:
        model, tenant = asked(request)
        prefix = await prefixes_of(model).cached_prefix(key)
        [card] = await prepare(model.prompts, INLINE_CHARS, _cards, model, [prefix], tenant)
        return JSONResponse(card | {"model": model.id})

    @router.delete("/{key}")
    async def evict(request: Request, key: str) -> Response:
        model, tenant = asked(request)
        client = prefixes_of(model)
        prefix = await client.cached_prefix(key)
        if prefix.pins:
            raise Conflict(f"The prefix is pinned as {', '.join(map(repr, prefix.pins))}; unpin it first.", param="key")
        answers = await client.evict_prefix(key)
        freed = sum(values(answers))
        if not freed:
            raise Conflict("Other stored prefixes begin with this one; evict those first.", param="key")
        card = {"object": "kv.prefix", "key": key, "tenant": tenant.name, "deleted": True, "bytes": freed}
        return JSONResponse(card | {"replicas": replies(answers)})

    @router.post("/{key}/pin")
    async def pin(request: Request, key: str) -> Response:
        require_admin(request)
        body = parse_json(PinBody, await read_body(request, options.max_body_bytes) or b"{}")
        tenant = asked_tenant(request, body.tenant)
        model = models.of(request, tenant).resolve(request.query_params.get("model"))
        answers = await prefixes_of(model).pin_prefix(key, body.ttl_s, body.name)
        [made] = merged_pins([values(answers)])
        return JSONResponse(pin_card(made, tenant.name, owner_names(request)) | {"replicas": replies(answers)})

    @router.delete("/{key}/pin")
    async def unpin(request: Request, key: str) -> Response:
        model, tenant = asked(request)
        name = request.query_params.get("name") or key
        answers = await prefixes_of(model).unpin(name)
        if not any(values(answers)):
            raise PrefixNotFound(f"There is no pin {name[:80]!r} of this tenant.", param="name")
        card = {"object": "kv.pin", "name": name, "tenant": tenant.name, "deleted": True}
        return JSONResponse(card | {"replicas": replies(answers)})

    @router.get("/{key}/export")
    async def export(request: Request, key: str) -> Response:
        model, _ = asked(request)
        pieces = prefixes_of(model).export_prefix(key)
        first = await anext(pieces)  # an error that comes before it has a status of its own
        headers = {"content-disposition": f'attachment; filename="{key[:16]}.kv"', "x-accel-buffering": "no"}
        return StreamingResponse(_with(first, pieces), media_type="application/octet-stream", headers=headers)

    return router


def _cards(model: ServedModel, prefixes: list[CachedPrefix], tenant: Tenant) -> list[dict[str, Any]]:
    return [prefix_card(prefix, tenant.name, model.prompts.detokenize(prefix.head)) for prefix in prefixes]


def _list(
    model: ServedModel, tenant: Tenant, cards: list[dict[str, Any]], answers: Sequence[Answer[Any]]
) -> dict[str, Any]:
    named = {"object": "list", "model": model.id, "tenant": tenant.name}
    return named | {"data": cards, "replicas": replies(answers)}


async def _with(first: bytes, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(pieces):
        yield first
        async for piece in pieces:
            yield piece


async def _body_chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, however large: only one object of it is in memory at a time."""
    try:
        async for chunk in request.stream():
            if chunk:
                yield chunk
    except ClientDisconnect as error:
        raise ClientDisconnected("The client closed the connection.") from error
