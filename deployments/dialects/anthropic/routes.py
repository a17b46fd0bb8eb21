"""Anthropic's API as a dialect. Each route reads as the life of its request; what bodies mean is in
the files beside this one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from deployments.access.rate_limit import Standing
from deployments.dialects.anthropic.limits import limit_headers
from deployments.dialects.anthropic.models import ListedModel, listed_models, model_card, models_page
from deployments.dialects.anthropic.params import chat_ask, message_request
from deployments.dialects.anthropic.reply import OVERLOADED, ReplyHead, error_body, message_body
from deployments.dialects.anthropic.stream import FRAMING, MessageWriter
from deployments.dialects.anthropic.wire import ConversationBody, MessageBody
from deployments.generation.chat import ReadyChat, count_prompt, ready_chat
from deployments.generation.identity import reply_identity
from deployments.generation.reply import prepare, prepare_cost, read_body, streamed_reply, whole_replies
from deployments.http.body import parse_json
from deployments.http.dialect import BEARER, Dialect, KeyHeader, own_routes
from deployments.http.noise_scope import noise_of
from deployments.http.options import HttpOptions
from deployments.http.ports import PromptPort
from deployments.http.registry import ModelRegistry
from deployments.noise.filter import NoiseFilter
from erllama.errors import ErllamaError

_MODELS = "/v1/models"


def _cost(raw: bytes, body: ConversationBody, prompts: PromptPort) -> int:
    return prepare_cost(
        len(raw),
        prompts,
        compiles=bool(body.tools) or body.format is not None,
        has_replies=any(message.role == "assistant" for message in body.messages),
    )


def _ready(body: MessageBody, prompts: PromptPort, noise: NoiseFilter) -> ReadyChat:
    return ready_chat(chat_ask(body), prompts, noise)


def _count(body: ConversationBody, prompts: PromptPort, noise: NoiseFilter) -> int:
    return count_prompt(chat_ask(body), prompts, noise)


class Anthropic(Dialect):
    """Its clients name the version of the API in a header. That tells them from OpenAI's where both
    have a path.
    """

    prefixes = ("/v1/messages", _MODELS, "/messages")  # llama.cpp's server takes paths without /v1
    framing = FRAMING
    bodies: ClassVar[dict[str, type[BaseModel]]] = {
        "/v1/messages": MessageBody,
        "/v1/messages/count_tokens": ConversationBody,
    }
    keys = (KeyHeader("x-api-key"), BEARER)
    id_headers = ("request-id",)

    def claim(self, path: str, scope: Scope) -> int:
        versioned = any(name == b"anthropic-version" for name, _ in scope.get("headers", ()))
        return super().claim(path, scope) if versioned or not path.startswith(_MODELS) else 0

    def status(self, error: ErllamaError) -> int:
        return OVERLOADED if error.http_status == 503 else error.http_status

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error, request_id)

    def limit_headers(self, standings: Sequence[Standing]) -> Mapping[str, str]:
        return limit_headers(standings, time.time())

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = own_routes(self)

        @router.get(_MODELS)
        async def list_models(request: Request) -> Response:
            return JSONResponse(models_page(listed_models(await models.of(request).listed()), request.query_params))

        @router.get(_MODELS + "/{model_id:path}")
        async def get_model(request: Request, model_id: str) -> Response:
            return JSONResponse(model_card(ListedModel.named(models.of(request).resolve(model_id), model_id)))

        @router.post("/v1/messages/count_tokens")
        @router.post("/messages/count_tokens")
        async def count_tokens(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_json(ConversationBody, raw)
            body.check_names()
            prompts = models.of(request).resolve(body.model).prompts
            noise = noise_of(request)
            n_tokens = await prepare(prompts, _cost(raw, body, prompts), _count, body, prompts, noise)
            return JSONResponse({"input_tokens": n_tokens})

        @router.post("/v1/messages")
        @router.post("/messages")
        async def messages(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_json(MessageBody, raw)
            body.check_names()
            model = models.of(request).resolve(body.model)
            identity = await reply_identity(request, model, raw, options.resume_grace_s)
            noise = noise_of(request)
            ready = await prepare(model.prompts, _cost(raw, body, model.prompts), _ready, body, model.prompts, noise)
            asked = message_request(body, ready, identity.stream, request.headers)
            name, edits = body.model or model.id, body.context_management is not None
            head = ReplyHead(name, len(asked.prompt), identity.ids(), body.max_tokens, edits)
            if not body.stream:
                [reply] = await whole_replies(request, model, [asked], ready.record, identity=identity)
                return Response(message_body(head, ready, reply), media_type="application/json")
            writer = MessageWriter(head, ready)
            return streamed_reply(
                request,
                model,
                [asked],
                writer,
                keepalive_s=options.keepalive_s,
                record=ready.record,
                identity=identity,
            )

        return router
