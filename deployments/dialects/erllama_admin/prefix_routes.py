"""The endpoints for stored prefixes. Each reads as the life of its request."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse

from cache_store import CachedPrefix
from deployments.dialects.erllama_admin.admin import Conflict, prefixes_of
from deployments.dialects.erllama_admin.ahead import prefix_prompt, prefix_request
from deployments.dialects.erllama_admin.shapes import import_card, merged, merged_pins, pin_card, prefix_card, replies
from deployments.dialects.erllama_admin.wire import ComputeBody, PinBody, asked_limit
from deployments.generation.reply import INLINE_CHARS, prepare, read_body, whole_replies
from deployments.http.answers import values
from deployments.http.body import parse_json
from deployments.http.errors import ClientDisconnected
from deployments.http.middleware import engine_id, may_see_all, require_admin
from deployments.http.noise_scope import noise_of
from deployments.http.options import HttpOptions
from deployments.http.ports import ServedModel
from deployments.http.registry import ModelRegistry
from erllama.errors import PrefixNotFound


def prefix_routes(models: ModelRegistry, options: HttpOptions) -> APIRouter:
    """Below `/erllama/v1/prefixes`."""
    router = APIRouter(prefix="/erllama/v1/prefixes")

    def asked_model(request: Request) -> ServedModel:
        require_admin(request)
        return models.of(request).resolve(request.query_params.get("model"))

    @router.get("")
    async def list_prefixes(request: Request) -> Response:
        model, query = asked_model(request), request.query_params
        limit, order = asked_limit(query), query.get("order", "recent")
        answers = await prefixes_of(model).prefixes(limit, order)
        found = merged(values(answers), limit, order)
        cards = await prepare(model.prompts, INLINE_CHARS, _cards, model, found, readable=may_see_all(request))
        return JSONResponse({"object": "list", "model": model.id, "data": cards, "replicas": replies(answers)})

    @router.post("")
    async def compute(request: Request) -> Response:
        require_admin(request)
        body = parse_json(ComputeBody, await read_body(request, options.max_body_bytes))
        model = models.of(request).resolve(body.model)
        prompt = await prepare(model.prompts, INLINE_CHARS + 1, prefix_prompt, body, model.prompts, noise_of(request))
        [reply] = await whole_replies(request, model, [prefix_request(body, prompt, engine_id(request))])
        card = {"object": "kv.prefix", "model": model.id, "key": reply.finish_key, "tokens": len(prompt)}
        card["cached_tokens"] = reply.stats.cached_tokens
        if body.pin is not None:
            pin = body.pin
            pinned = await prefixes_of(model).pin_prefix(prompt.tokens, pin.ttl_s, pin.name, pin.owner)
            card["pin"] = pin_card(values(pinned)[0])
        return JSONResponse(card)

    @router.post("/import")
    async def import_file(request: Request) -> Response:
        model = asked_model(request)
        report = await prefixes_of(model).import_prefix(_body_chunks(request))
        return JSONResponse(import_card(report) | {"model": model.id})

    @router.get("/pins")
    async def list_pins(request: Request) -> Response:
        model = asked_model(request)
        answers = await prefixes_of(model).pins()
        cards = [pin_card(pin) for pin in merged_pins(values(answers))]
        return JSONResponse({"object": "list", "model": model.id, "data": cards, "replicas": replies(answers)})

    @router.get("/{key}")
    async def get_prefix(request: Request, key: str) -> Response:
        model = asked_model(request)
        prefix = await prefixes_of(model).cached_prefix(key)
        readable = may_see_all(request)
        [card] = await prepare(model.prompts, INLINE_CHARS, _cards, model, [prefix], readable=readable)
        return JSONResponse(card | {"model": model.id})

    @router.delete("/{key}")
    async def evict(request: Request, key: str) -> Response:
        client = prefixes_of(asked_model(request))
        prefix = await client.cached_prefix(key)
        if prefix.pins:
            raise Conflict(f"The prefix is pinned as {', '.join(map(repr, prefix.pins))}; unpin it first.", param="key")
        answers = await client.evict_prefix(key)
        freed = sum(values(answers))
        if not freed:
            raise Conflict("Other stored prefixes begin with this one; evict those first.", param="key")
        return JSONResponse(
            {"object": "kv.prefix", "key": key, "deleted": True, "bytes": freed, "replicas": replies(answers)}
        )

    @router.post("/{key}/pin")
    async def pin(request: Request, key: str) -> Response:
        model = asked_model(request)
        body = parse_json(PinBody, await read_body(request, options.max_body_bytes) or b"{}")
        answers = await prefixes_of(model).pin_prefix(key, body.ttl_s, body.name, body.owner)
        [card] = merged_pins([values(answers)])
        return JSONResponse(pin_card(card) | {"replicas": replies(answers)})

    @router.delete("/{key}/pin")
    async def unpin(request: Request, key: str) -> Response:
        model, query = asked_model(request), request.query_params
        name = query.get("name") or key
        answers = await prefixes_of(model).unpin(name, query.get("owner", ""))
        if not any(values(answers)):
            raise PrefixNotFound(f"There is no pin {name[:80]!r} of this owner.", param="name")
        return JSONResponse({"object": "kv.pin", "name": name, "deleted": True, "replicas": replies(answers)})

    @router.get("/{key}/export")
    async def export(request: Request, key: str) -> Response:
        pieces = prefixes_of(asked_model(request)).export_prefix(key)
        first = await anext(pieces)  # an error that comes before it has a status of its own
        headers = {"content-disposition": f'attachment; filename="{key[:16]}.kv"', "x-accel-buffering": "no"}
        return StreamingResponse(_with(first, pieces), media_type="application/octet-stream", headers=headers)

    return router


def _cards(model: ServedModel, prefixes: list[CachedPrefix], *, readable: bool) -> list[dict[str, object]]:
    def text(prefix: CachedPrefix) -> str | None:
        return model.prompts.detokenize(prefix.head) if readable else None

    return [prefix_card(prefix, text(prefix)) for prefix in prefixes]


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
