"""The routes of llama.cpp's server as a dialect. Each reads as the life of its request; what bodies
mean is in the files beside this one.

Paths without `/v1` are OpenAI's, Anthropic's and Responses' own business where they have their form
(`/chat/completions`, `/completions`, `/models`, `/messages`, `/responses`); here are those that have
llama.cpp's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from deployments.dialects.llama_server.errors import error_body
from deployments.dialects.llama_server.infill import InfillBody, parse_infill, ready_infill
from deployments.dialects.llama_server.params import prompt_ids, ready_completion
from deployments.dialects.llama_server.props import (
    lm_studio_card,
    lm_studio_library_card,
    load_body,
    props_body,
    server_version,
    slots_body,
)
from deployments.dialects.llama_server.reply import CompletionWriter, ReplyForm, completion_body
from deployments.dialects.llama_server.router_mode import router_mode_routes
from deployments.dialects.llama_server.tokens import checked_chat, detokenize_body, template_body, tokenize_body
from deployments.dialects.llama_server.wire import CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from deployments.dialects.openai.wire import ChatBody
from deployments.generation.identity import ReplyIdentity, reply_identity
from deployments.generation.reply import check_fits, prepare, prepare_cost, read_body, streamed_reply, whole_replies
from deployments.generation.running import engine_stats, infos
from deployments.http.body import encode, parse_json
from deployments.http.dialect import SSE, Dialect, add_routes, own_routes
from deployments.http.disconnect import unless_disconnected
from deployments.http.middleware import require_admin, tenant_of
from deployments.http.noise_scope import noise_of
from deployments.http.options import HttpOptions
from deployments.http.ports import PromptPort, ServedModel
from deployments.http.registry import ModelRegistry
from erllama.errors import EngineStopped, ErllamaError, InvalidParameter, NotSupported
from erllama.request import Prompt
from erllama.stats import EngineStats

_L2 = 2  # how vectors are normalised, in llama.cpp's numbers


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _cost(raw: bytes, body: CompletionBody, prompts: PromptPort) -> int:
    return prepare_cost(len(raw), prompts, compiles=body.grammar is not None or body.json_schema is not None)


def _inputs(body: EmbeddingBody, prompts: PromptPort) -> list[list[int]]:
    inputs = [prompt_ids(parts, prompts, "content") for parts in body.content]
    for ids in inputs:
        if not ids:
            raise InvalidParameter("content is empty", param="content")
        check_fits(Prompt.of(ids), prompts.n_ctx, "content")
    return inputs


def _vectors(vectors: Sequence[Sequence[float]]) -> bytes:
    return encode([{"index": index, "embedding": [list(vector)]} for index, vector in enumerate(vectors)]).encode()


def _chat_of(raw: bytes) -> ChatBody:
    return checked_chat(parse_json(ChatBody, raw))


class LlamaServer(Dialect):
    prefixes = (
        "/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/props", "/slots", "/embedding",
        "/embeddings", "/v1/health", "/ping", "/version", "/load", "/api/v0/models",
        "/models/load", "/models/unload",
    )  # fmt: skip
    framing = SSE
    bodies: ClassVar[dict[str, type[BaseModel]]] = {
        "/completion": CompletionBody,
        "/infill": InfillBody,
        "/embedding": EmbeddingBody,
        "/embeddings": EmbeddingBody,
        "/tokenize": TokenizeBody,
        "/detokenize": DetokenizeBody,
        "/apply-template": ChatBody,
    }

    @property
    def name(self) -> str:
        """Its chats are those of OpenAI's dialect: rules for them hold here."""
        return "openai"

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = own_routes(self)
        add_routes(router, _told(self, models, options))
        add_routes(router, router_mode_routes(self, models, options))

        async def reply(request: Request, model: ServedModel, form: ReplyForm, identity: ReplyIdentity) -> Response:
            requests = form.ready.requests
            if not form.body.stream:
                return _json(completion_body(form, await whole_replies(request, model, requests, identity=identity)))
            return streamed_reply(
                request,
                model,
                requests,
                CompletionWriter(form),
                keepalive_s=options.keepalive_s,
                identity=identity,
            )

        @router.post("/completion")
        async def completion(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_json(CompletionBody, raw)
            model = models.of(request).resolve(body.model)
            cost = _cost(raw, body, model.prompts)
            identity = await reply_identity(request, model, raw, options.resume_grace_s)
            ready = await prepare(model.prompts, cost, ready_completion, body, model.prompts, identity.stream)
            return await reply(request, model, ReplyForm(model.id, body, ready), identity)

        @router.post("/infill")
        async def infill(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body, knobs = parse_infill(raw)
            model = models.of(request).resolve(body.model)
            n_ctx = model.prompts.n_ctx or (await model.client.model_info()).context_size
            cost = _cost(raw, knobs, model.prompts)
            identity = await reply_identity(request, model, raw, options.resume_grace_s)
            asked, ready = await prepare(
                model.prompts, cost, ready_infill, body, knobs, model.prompts, n_ctx, identity.stream
            )
            return await reply(request, model, ReplyForm(model.id, asked, ready), identity)

        @router.post("/embedding")
        @router.post("/embeddings")
        async def embedding(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_json(EmbeddingBody, raw)
            if body.embd_normalize not in (None, _L2):
                raise NotSupported(f"embd_normalize must be {_L2}: vectors have length 1 here", param="embd_normalize")
            model = models.of(request).resolve(body.model)
            inputs = await prepare(model.prompts, len(raw), _inputs, body, model.prompts)
            vectors = await unless_disconnected(request.receive, model.client.embed(inputs))
            return _json(await prepare(model.prompts, sum(map(len, vectors)), _vectors, vectors))

        @router.post("/tokenize")
        async def tokenize(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_json(TokenizeBody, raw)
            is_chat = "messages" in (body.model_extra or {})
            if is_chat and (body.prompt is not None or body.content is not None):
                raise InvalidParameter("messages and prompt exclude each other", param="messages")
            chat = _chat_of(raw) if is_chat else None
            prompts = models.of(request).resolve(body.model).prompts
            cost = prepare_cost(len(raw), prompts, compiles=False, has_replies=is_chat)
            return _json(await prepare(prompts, cost, tokenize_body, body, chat, prompts, noise_of(request)))

        @router.post("/detokenize")
        async def detokenize(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_json(DetokenizeBody, raw)
            prompts = models.of(request).resolve(body.model).prompts
            return _json(await prepare(prompts, len(raw), detokenize_body, body, prompts))

        @router.post("/apply-template")
        async def apply_template(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            chat = _chat_of(raw)
            prompts = models.of(request).resolve(chat.model).prompts
            return _json(await prepare(prompts, len(raw), template_body, chat, prompts, noise_of(request)))

        return router


def _told(dialect: Dialect, models: ModelRegistry, options: HttpOptions) -> APIRouter:
    """What the server tells of itself."""
    router = own_routes(dialect)

    async def asked_stats(model: ServedModel) -> list[EngineStats]:
        return await engine_stats(model, options.ready_timeout_s)

    @router.get("/v1/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/ping")
    @router.post("/ping")
    async def ping() -> Response:
        return Response()

    @router.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": server_version()})

    @router.get("/load")
    async def load(request: Request) -> Response:
        told = await asyncio.gather(*(asked_stats(model) for model in models.of(request)))
        return JSONResponse(load_body([one for stats in told for one in stats]))

    @router.get("/props")
    async def props(request: Request) -> Response:
        model = models.of(request).resolve(request.query_params.get("model"))
        [info] = await infos([model], options.ready_timeout_s)
        facts = await prepare(model.prompts, 0, model.prompts.facts)
        return JSONResponse(props_body(model, facts, info, for_admin=tenant_of(request).admin))

    @router.get("/slots")
    async def slots(request: Request) -> Response:
        require_admin(request)  # they tell what all tenants do
        model = models.of(request).resolve(request.query_params.get("model"))
        told = slots_body(await asked_stats(model), model.prompts.n_ctx)
        if request.query_params.get("fail_on_no_slot") and all(slot["is_processing"] for slot in told):
            raise EngineStopped("no slot available", retry_after_s=1)
        return JSONResponse(told)

    @router.get("/api/v0/models")
    async def lm_studio_models(request: Request) -> Response:
        served = list(models.of(request))
        told = await infos(served, options.ready_timeout_s)
        cards = [lm_studio_card(model, info) for model, info in zip(served, told, strict=True)]
        cards += [lm_studio_library_card(model) for model in await models.of(request).of_library()]
        return JSONResponse({"object": "list", "data": cards})

    return router
