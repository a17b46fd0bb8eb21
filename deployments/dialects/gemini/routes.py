"""Gemini's API as a dialect. A path names the model and what to do with it: `models/{id}:{verb}`, the
verb behind the last colon, since an id may have some.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from deployments.dialects.gemini.models import model_card, models_page
from deployments.dialects.gemini.params import chat_ask, generation_requests
from deployments.dialects.gemini.reply import ReplyHead, error_body, whole_body
from deployments.dialects.gemini.stream import FRAMING, ContentWriter
from deployments.dialects.gemini.wire import BatchEmbedBody, CountBody, EmbedBody, GenerateBody
from deployments.generation.chat import ReadyChat, count_prompt, ready_chat
from deployments.generation.identity import reply_identity
from deployments.generation.reply import prepare, prepare_cost, read_body, streamed_reply, whole_replies
from deployments.http.body import encode, parse_json
from deployments.http.dialect import BEARER, Dialect, KeyHeader, add_routes, own_routes
from deployments.http.disconnect import unless_disconnected
from deployments.http.errors import RouteNotFound
from deployments.http.noise_scope import noise_of
from deployments.http.options import HttpOptions
from deployments.http.ports import PromptPort, ServedModel
from deployments.http.registry import ModelRegistry
from deployments.noise.filter import NoiseFilter
from erllama.errors import ErllamaError, InvalidParameter, NotSupported

_VERSIONS = ("/v1beta", "/v1")
_SHARED = "/v1/models"  # a path that other dialects have, too
_OWN_HEADERS = frozenset({b"x-goog-api-key", b"x-goog-api-client"})

Verb = Callable[[Request, ServedModel, bytes, HttpOptions], Awaitable[Response]]


def _cost(raw: bytes, body: GenerateBody, prompts: PromptPort) -> int:
    config = body.generation_config
    shaped = (config.response_schema, config.response_json_schema, config.response_mime_type)
    return prepare_cost(
        len(raw),
        prompts,
        compiles=bool(body.tools) or any(shaped),
        has_replies=any(content.role == "model" for content in body.contents),
    )


def _ready(body: GenerateBody, prompts: PromptPort, noise: NoiseFilter) -> ReadyChat:
    return ready_chat(chat_ask(body), prompts, noise)


def _count(body: GenerateBody, prompts: PromptPort, noise: NoiseFilter) -> int:
    return count_prompt(chat_ask(body), prompts, noise)


class Gemini(Dialect):
    """Its clients send headers of Google's own, or a key in the query. Those tell them from others where
    both have a path, and so does a verb.
    """

    prefixes = ("/v1beta",)
    framing = FRAMING
    bodies: ClassVar[dict[str, type[BaseModel]]] = dict.fromkeys(
        (f"{version}/models/{{named}}" for version in _VERSIONS), GenerateBody
    )
    keys = (KeyHeader("x-goog-api-key"), BEARER)
    key_query = "key"

    def claim(self, path: str, scope: Scope) -> int:
        if path != _SHARED and not path.startswith(f"{_SHARED}/"):
            return super().claim(path, scope)
        own = any(name in _OWN_HEADERS for name, _ in scope.get("headers", ()))
        own = own or self.key_query in QueryParams(scope.get("query_string", b""))
        return len(_SHARED) + 1 if own or path.rpartition(":")[2] in _VERBS else 0

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = APIRouter()
        for version in _VERSIONS:
            add_routes(router, _routes(self, version, models, options))
        return router


def _routes(dialect: Dialect, version: str, models: ModelRegistry, options: HttpOptions) -> APIRouter:
    router = own_routes(dialect, version)

    @router.get("/models")
    async def list_models(request: Request) -> Response:
        return JSONResponse(models_page(await models.of(request).listed(), request.query_params))

    @router.get("/models/{model_id:path}")
    async def get_model(request: Request, model_id: str) -> Response:
        return JSONResponse(model_card(models.of(request).resolve(model_id)))

    @router.post("/models/{named:path}")
    async def act(named: str, request: Request) -> Response:
        name, _, verb = named.rpartition(":")
        if verb not in _VERBS:
            raise RouteNotFound(f"Unknown method {verb[:80]!r}; known are {', '.join(_VERBS)}.")
        raw = await read_body(request, options.max_body_bytes)
        return await _VERBS[verb](request, models.of(request).resolve(name), raw, options)

    return router


async def _generate(
    request: Request, model: ServedModel, raw: bytes, options: HttpOptions, *, streams: bool = False
) -> Response:
    body = parse_json(GenerateBody, raw)
    body.check_names()
    identity = await reply_identity(request, model, raw, options.resume_grace_s)
    cost, noise = _cost(raw, body, model.prompts), noise_of(request)
    ready = await prepare(model.prompts, cost, _ready, body, model.prompts, noise)
    asked = generation_requests(body, ready, identity.stream)
    thinking = body.generation_config.thinking_config
    shows_thoughts = thinking is not None and bool(thinking.include_thoughts)
    head = ReplyHead.of(model.id, identity.ids(), shows_thoughts=shows_thoughts)
    if streams and request.query_params.get("alt") == "sse":
        writer = ContentWriter(head, ready, len(asked))
        return streamed_reply(
            request, model, asked, writer, keepalive_s=options.keepalive_s, record=ready.record, identity=identity
        )
    whole = whole_body(head, ready, await whole_replies(request, model, asked, ready.record, identity=identity))
    # without `alt=sse` a stream is a JSON array; one of a single piece is one, too
    return Response(b"[" + whole + b"]" if streams else whole, media_type="application/json")


async def _count_tokens(request: Request, model: ServedModel, raw: bytes, options: HttpOptions) -> Response:
    body = parse_json(CountBody, raw).request
    body.check_names()
    cost, noise = _cost(raw, body, model.prompts), noise_of(request)
    n_tokens = await prepare(model.prompts, cost, _count, body, model.prompts, noise)
    return JSONResponse({"totalTokens": n_tokens})


async def _embed(request: Request, model: ServedModel, raw: bytes, options: HttpOptions) -> Response:
    [vector] = await _vectors(request, model, [parse_json(EmbedBody, raw)], len(raw))
    return await _json(model, {"embedding": {"values": vector}}, len(vector))


async def _batch_embed(request: Request, model: ServedModel, raw: bytes, options: HttpOptions) -> Response:
    vectors = await _vectors(request, model, parse_json(BatchEmbedBody, raw).requests, len(raw))
    body = {"embeddings": [{"values": vector} for vector in vectors]}
    return await _json(model, body, sum(map(len, vectors)))


async def _vectors(request: Request, model: ServedModel, asked: list[EmbedBody], n_chars: int) -> list[list[float]]:
    def tokens() -> list[list[int]]:
        return [model.prompts.tokenize(one.text) for one in asked]

    inputs = await prepare(model.prompts, n_chars, tokens)
    if not all(inputs):
        raise InvalidParameter("content is empty", param="content")
    vectors = await unless_disconnected(request.receive, model.client.embed(inputs))
    for one, vector in zip(asked, vectors, strict=True):
        if one.output_dimensionality not in (None, len(vector)):
            raise NotSupported(
                f"this model's embeddings have {len(vector)} dimensions; they cannot be cut",
                param="outputDimensionality",
            )
    return vectors


async def _json(model: ServedModel, body: object, n_floats: int) -> Response:
    return Response(await prepare(model.prompts, n_floats, encode, body), media_type="application/json")


_VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "generateContent": _generate,
        "streamGenerateContent": partial(_generate, streams=True),
        "countTokens": _count_tokens,
        "embedContent": _embed,
        "batchEmbedContents": _batch_embed,
    }
)
