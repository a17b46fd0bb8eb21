"""Ollama's API as a dialect, with its routes under `/api`. Each route reads as the life of its
request; what bodies mean is in the files beside this one.

Which models there are: `library`. A configured model is loaded as the server's configuration says; one
of the hub stays for its `keep_alive`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Scope

from deployments.dialects.ollama.keep_alive import keep_alive_s
from deployments.dialects.ollama.library import library_routes
from deployments.dialects.ollama.models import (
    can_insert,
    can_think,
    capabilities,
    find_model,
    library_card,
    loaded_card,
    running_card,
    show_body,
    show_library_body,
    tag_card,
)
from deployments.dialects.ollama.params import (
    chat_ask,
    chat_request,
    check_generate,
    cost,
    generate_ask,
    load_request,
    prepare_chat,
    prepare_inputs,
    raw_request,
)
from deployments.dialects.ollama.reply import (
    LineWriter,
    ReplyHead,
    chat_shape,
    embed_body,
    embedding_body,
    error_body,
    generate_shape,
    loaded_body,
    whole_body,
)
from deployments.dialects.ollama.wire import (
    ChatBody,
    EmbedBody,
    EmbeddingsBody,
    GenerateBody,
    GenerationBody,
    ShowBody,
    Wire,
    parse_body,
)
from deployments.generation.chat import ChatAsk
from deployments.generation.identity import new_identity
from deployments.generation.reply import prepare, read_body, streamed_reply, whole_replies
from deployments.generation.running import infos
from deployments.http.dialect import NDJSON, Dialect, add_routes
from deployments.http.disconnect import unless_disconnected
from deployments.http.middleware import engine_id
from deployments.http.noise_scope import noise_of
from deployments.http.options import HttpOptions
from deployments.http.ports import ServedModel
from deployments.http.registry import ModelRegistry
from erllama.errors import ErllamaError, QueueFull

API_VERSION = "0.13.0"
"""The version of Ollama whose API this is; clients look at it for what they may send."""


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _texts(body: EmbeddingsBody) -> tuple[str, ...]:
    return (body.prompt,) if body.prompt else ()


async def _show_library(models: ModelRegistry, model: ServedModel, *, verbose: bool) -> dict[str, Any]:
    def look() -> tuple[list[str], str]:
        can = capabilities(None, thinks=can_think(model.prompts), inserts=can_insert(model.prompts))
        return can, model.prompts.facts().chat_template

    can, template = await asyncio.to_thread(look)
    metadata = await models.library.metadata(model.id)
    return show_library_body(await models.library.show(model.id), can, template, metadata, verbose=verbose)


class Ollama(Dialect):
    prefixes = ("/api",)
    framing = NDJSON
    bodies: ClassVar[dict[str, type[BaseModel]]] = {
        "/api/chat": ChatBody,
        "/api/generate": GenerateBody,
        "/api/embed": EmbedBody,
        "/api/embeddings": EmbeddingsBody,
        "/api/show": ShowBody,
    }

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def status(self, error: ErllamaError) -> int:
        return 503 if isinstance(error, QueueFull) else error.http_status  # Ollama's number for it

    def claim(self, path: str, scope: Scope) -> int:
        return 1 if path == "/" else super().claim(path, scope)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = APIRouter()

        async def keep(model: ServedModel, body: Wire) -> None:
            if body.keep_alive is not None:
                seconds = keep_alive_s(body.keep_alive)
                if model.on_demand:
                    await models.library.keep(model.id, seconds)

        async def load(request: Request, body: GenerationBody, model: ServedModel, head: ReplyHead) -> Response:
            if body.unloads:
                if model.on_demand:  # one that is in use goes after its last reply: `keep` has said so
                    await models.library.unload(model.id)
                return _json(loaded_body(head, "unload"))
            if model.on_demand:
                await unless_disconnected(request.receive, models.library.load(model.id))
                return _json(loaded_body(head, "load"))
            asked = await prepare(model.prompts, 0, load_request, model.prompts, engine_id(request))
            await whole_replies(request, model, [asked])
            return _json(loaded_body(head, "load"))

        async def reply(
            request: Request, raw: bytes, body: GenerationBody, model: ServedModel, head: ReplyHead, ask: ChatAsk
        ) -> Response:
            n_chars = cost(raw, body, model.prompts)
            chat = await prepare(model.prompts, n_chars, prepare_chat, ask, body, model.prompts, noise_of(request))
            identity = new_identity(request, raw, options.resume_grace_s)  # lines have no ids to come back with
            asked = chat_request(body, chat, identity.stream)
            if isinstance(body, GenerateBody):
                head = replace(head, prompt_ids=asked.prompt_tokens)
            if not body.streams:
                [whole] = await whole_replies(request, model, [asked], chat.record, identity=identity)
                return _json(whole_body(head, whole, chat.splitter()))
            writer = LineWriter(head, chat.splitter())
            return streamed_reply(
                request,
                model,
                [asked],
                writer,
                keepalive_s=options.keepalive_s,
                record=chat.record,
                identity=identity,
            )

        async def raw_reply(
            request: Request, raw: bytes, body: GenerateBody, model: ServedModel, head: ReplyHead
        ) -> Response:
            n_chars = cost(raw, body, model.prompts)
            asked = await prepare(model.prompts, n_chars, raw_request, body, model.prompts, engine_id(request))
            if not body.streams:
                [whole] = await whole_replies(request, model, [asked])
                return _json(whole_body(head, whole, None))
            return streamed_reply(request, model, [asked], LineWriter(head, None), keepalive_s=options.keepalive_s)

        @router.post("/api/chat")
        async def chat(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_body(ChatBody, raw)
            model = find_model(models.of(request), body.model)
            await keep(model, body)
            head = ReplyHead(body.model or model.id, chat_shape)
            if not body.messages:
                return await load(request, body, model, head)
            return await reply(request, raw, body, model, head, chat_ask(body))

        @router.post("/api/generate")
        async def generate(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_body(GenerateBody, raw)
            check_generate(body)
            model = find_model(models.of(request), body.model)
            await keep(model, body)
            head = ReplyHead(body.model or model.id, generate_shape)
            if not (body.prompt or body.suffix):
                return await load(request, body, model, head)
            if body.raw or body.suffix:
                return await raw_reply(request, raw, body, model, head)
            return await reply(request, raw, body, model, head, generate_ask(body))

        async def vectors(
            request: Request, model: ServedModel, raw: bytes, texts: tuple[str, ...], *, truncate: bool
        ) -> tuple[list[list[float]], int]:
            if not texts:
                return [], 0
            inputs = await prepare(model.prompts, len(raw), prepare_inputs, texts, model.prompts, truncate=truncate)
            return await unless_disconnected(request.receive, model.client.embed(inputs)), sum(map(len, inputs))

        @router.post("/api/embed")
        async def embed(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_body(EmbedBody, raw)
            model = find_model(models.of(request), body.model)
            await keep(model, body)
            head = ReplyHead(body.model or model.id, generate_shape)
            found, n_tokens = await vectors(request, model, raw, body.input, truncate=body.truncate is not False)
            n_floats = sum(map(len, found))
            return _json(await prepare(model.prompts, n_floats, embed_body, head, found, n_tokens, body.dimensions))

        @router.post("/api/embeddings")
        async def embeddings(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_body(EmbeddingsBody, raw)
            model = find_model(models.of(request), body.model)
            await keep(model, body)
            found, _ = await vectors(request, model, raw, _texts(body), truncate=True)
            return _json(embedding_body(found))

        @router.get("/api/tags")
        async def tags(request: Request) -> Response:
            own = list(models.of(request))
            told = await infos(own, options.ready_timeout_s)
            cards = [tag_card(model, info) for model, info in zip(own, told, strict=True)]
            cards += [library_card(model) for model in await models.of(request).of_library()]
            return JSONResponse({"models": cards})

        @router.get("/api/ps")
        async def running(request: Request) -> Response:
            own = list(models.of(request))
            told = await infos(own, options.ready_timeout_s)
            pairs = zip(own, told, strict=True)
            cards = [running_card(model, info) for model, info in pairs if info is not None]
            cards += [loaded_card(one) for one in await models.of(request).of_library() if one.standing.in_memory]
            return JSONResponse({"models": cards})

        @router.post("/api/show")
        async def show(request: Request) -> Response:
            body = parse_body(ShowBody, await read_body(request, options.max_body_bytes))
            model = find_model(models.of(request), body.model or body.name, fetch=False)
            if model.on_demand:
                return JSONResponse(await _show_library(models, model, verbose=bool(body.verbose)))
            [info] = await infos([model], options.ready_timeout_s)
            thinks = await asyncio.to_thread(can_think, model.prompts)
            inserts = await asyncio.to_thread(can_insert, model.prompts)
            return JSONResponse(show_body(model, info, capabilities(info, thinks=thinks, inserts=inserts)))

        @router.get("/api/version")
        async def version() -> Response:
            return JSONResponse({"version": API_VERSION})

        @router.get("/")
        async def greeting() -> Response:
            return PlainTextResponse("Ollama is running")

        add_routes(router, library_routes(models, options))
        return router
