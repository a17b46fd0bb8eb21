"""Routes of the responses that are kept."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from deployments.dialects.responses.background import BackgroundReplies
from deployments.dialects.responses.stored.past import conversation, input_items
from deployments.dialects.responses.stored.response import ResponseNotFound
from deployments.dialects.responses.stored.store import Past, ResponseStore
from deployments.http.middleware import tenant_of
from deployments.http.stream import StreamResponse
from erllama.errors import InvalidParameter, NotSupported

MAX_PAGE = 100


def scope_of(request: Request) -> str:
    """Whose responses a request sees: those of its tenant."""
    return tenant_of(request).salt


def stored_routes(store: ResponseStore, background: BackgroundReplies, keepalive_s: float) -> APIRouter:
    """Below the path of the responses."""
    router = APIRouter()

    @router.get("/{id}")
    async def get_response(id: str, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            n_seen = _n_seen(request.query_params.get("starting_after"))
            reply = await background.find(id, request)
            if reply is None:
                await store.get(id, scope_of(request))
                raise NotSupported(
                    "stream is for responses in the background that run or have ended lately", param="stream"
                )
            return StreamResponse(request, reply.stream(n_seen), reply.numbered, keepalive_s=keepalive_s)
        reply = background.get(id, request)
        if reply is None:
            try:
                return Response((await store.get(id, scope_of(request))).body, media_type="application/json")
            except ResponseNotFound:
                reply = await background.find(id, request)
                if reply is None:
                    raise
        return Response(reply.body, media_type="application/json")

    @router.delete("/{id}")
    async def delete_response(id: str, request: Request) -> Response:
        reply = background.get(id, request)
        if reply is not None:
            await reply.cancel()
            background.drop(id)
        await store.delete(id, scope_of(request))
        return JSONResponse({"id": id, "object": "response", "deleted": True})

    @router.post("/{id}/cancel")
    async def cancel_response(id: str, request: Request) -> Response:
        reply = await background.find(id, request)
        if reply is None:
            await store.get(id, scope_of(request))
            raise NotSupported(
                "only responses in the background that run can be cancelled; close the connection of another one"
            )
        await reply.cancel()
        return Response(reply.body, media_type="application/json")

    @router.get("/{id}/input_items")
    async def list_input_items(id: str, request: Request) -> Response:
        response = await store.get(id, scope_of(request))
        past = await Past.of(store, response.previous, (), scope_of(request))
        items = await asyncio.to_thread(lambda: conversation(past) + input_items(response))
        return JSONResponse(_page(items, request))

    return router


def _n_seen(starting_after: str | None) -> int:
    """The events that a client has which names the number of the last one; they count from 0."""
    if starting_after is None:
        return 0
    if not (starting_after.isascii() and starting_after.isdecimal() and len(starting_after) < 10):
        raise InvalidParameter(
            f"starting_after must be the sequence_number of an event, got {starting_after[:20]!r}",
            param="starting_after",
        )
    return int(starting_after) + 1


def _page(items: list[dict[str, Any]], request: Request) -> dict[str, Any]:
    """A page of a list as OpenAI pages them, the newest item first unless `order` is asc."""
    asked = request.query_params
    limit, order, after = asked.get("limit", "20"), asked.get("order", "desc"), asked.get("after")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= MAX_PAGE:
        raise InvalidParameter(f"limit must be between 1 and {MAX_PAGE}, got {limit[:20]!r}", param="limit")
    if order not in ("asc", "desc"):
        raise InvalidParameter(f"order must be asc or desc, got {order[:20]!r}", param="order")
    items = items if order == "asc" else items[::-1]
    if after is not None:
        places = [number for number, item in enumerate(items) if item["id"] == after]
        if not places:
            raise InvalidParameter(f"after names {after[:80]!r}, which is no item of this response", param="after")
        items = items[places[0] + 1 :]
    page = items[: int(limit)]
    first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return {"object": "list", "data": page, "first_id": first, "last_id": last, "has_more": len(items) > len(page)}
