"""The Responses API as a dialect. Each route reads as the life of its request; what bodies mean is
in the files beside this one.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from deployments.dialects.responses.background import BackgroundReplies, BackgroundReply
from deployments.dialects.responses.head import ResponseHead
from deployments.dialects.responses.params import chat_ask, response_request
from deployments.dialects.responses.past import own_input, referred_items
from deployments.dialects.responses.store import (
    MemoryStore,
    Past,
    PreviousResponseNotFound,
    ResponseStore,
    StoredResponse,
    TenantResponses,
)
from deployments.dialects.responses.stored_routes import stored_routes
from deployments.dialects.responses.tools import Toolbox, toolbox
from deployments.dialects.responses.wire import PromptBody, ResponseBody, parse_prompt, parse_response
from deployments.dialects.responses.writer import ReplyForm, ResponseWriter
from deployments.generation.chat import ReadyChat, count_prompt, ready_chat
from deployments.generation.event_ids import NumberedWriter
from deployments.generation.identity import ReplyIdentity, recorded_identity, reply_identity
from deployments.generation.reply import (
    detached_chunks,
    prepare,
    prepare_cost,
    read_body,
    streamed_reply,
    whole_replies,
)
from deployments.http.dialect import SSE, Dialect
from deployments.http.middleware import request_id, tenant_of
from deployments.http.noise_scope import noise_of
from deployments.http.openai_error import error_body
from deployments.http.options import HttpOptions
from deployments.http.ports import PromptPort, Record, ServedModel
from deployments.http.registry import ModelRegistry
from deployments.http.stream import StreamResponse
from deployments.noise.filter import NoiseFilter
from erllama.errors import ContextOverflow, ErllamaError, InvalidParameter, QueueFull, RequestError
from erllama.request import GenerationRequest


def _cost(raw: bytes, body: PromptBody, prompts: PromptPort) -> int:
    """A conversation that goes on is long, whatever the body holds of it."""
    slow = body.format is not None or bool(body.tools) or body.previous_response_id is not None
    return prepare_cost(len(raw), prompts, compiles=slow, has_replies=isinstance(body.input, list))


def _in_words_of_the_body(error: RequestError) -> RequestError:
    """The template speaks of messages, which the body does not have."""
    if error.param is not None and error.param.startswith("messages"):
        error.param = "input"
    return error


def _prepare(
    body: ResponseBody, tools: Toolbox, past: Past, prompts: PromptPort, noise: NoiseFilter
) -> tuple[ReadyChat, str]:
    """What runs, and the input as it is stored."""
    try:
        chat = ready_chat(chat_ask(body, tools, past), prompts, noise)
        return chat, "" if body.store is False else own_input(body.input, referred_items(past))
    except RequestError as error:
        raise _in_words_of_the_body(error) from None


def _count(body: PromptBody, past: Past, prompts: PromptPort, noise: NoiseFilter) -> int:
    try:
        return count_prompt(chat_ask(body, toolbox(body.tools or ()), past), prompts, noise)
    except RequestError as error:
        raise _in_words_of_the_body(error) from None


@dataclass(frozen=True, slots=True)
class _Made:
    """A response that is ready to run."""

    id: str
    writer: ResponseWriter
    generation: GenerationRequest
    record: Record


class Responses(Dialect):
    prefixes = ("/v1/responses", "/responses")  # llama.cpp's server takes paths without /v1
    framing = SSE

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = APIRouter()
        store: ResponseStore = MemoryStore()

        async def made(
            request: Request, raw: bytes, body: ResponseBody, model: ServedModel, identity: ReplyIdentity
        ) -> _Made:
            tools = toolbox(body.tools or ())
            head = ResponseHead.of(body, model.id, identity)
            own = TenantResponses(store, tenant_of(request).salt)
            past = Past.of(own, body.previous_response_id, body.referred_ids)
            cost, noise = _cost(raw, body, model.prompts), noise_of(request)
            chat, given = await prepare(model.prompts, cost, _prepare, body, tools, past, model.prompts, noise)
            form = ReplyForm(
                chat.splitter, chat.piece_of, tools, summary=bool(body.summary), sealed=body.seals_reasoning
            )

            def keep(response: str, item_ids: tuple[str, ...]) -> None:
                if body.store is not False:
                    own.put(StoredResponse(head.id, body.previous_response_id, given, response, item_ids))

            generation = response_request(body, chat, identity.stream, request.headers)
            return _Made(head.id, ResponseWriter(head, form, keep), generation, chat.record)

        def background_reply(
            request: Request, it: _Made, model: ServedModel, identity: ReplyIdentity
        ) -> BackgroundReply:
            numbered = NumberedWriter(it.writer, identity.stream)
            chunks = detached_chunks(model, it.generation, numbered, identity, it.record)
            cancel = partial(model.client.cancel, identity.stream)
            return BackgroundReply(it.id, tenant_of(request).salt, it.writer, numbered, chunks, cancel)

        async def adopted(id: str, request: Request) -> BackgroundReply | None:
            """A response whose ingress is gone, as a replica keeps it with its body."""
            served = list(models.of(request))
            found = await asyncio.gather(*(model.client.find(id) for model in served))
            for model, recorded in zip(served, found, strict=True):
                if recorded is None or not recorded.head:
                    continue
                identity = recorded_identity(recorded, options.resume_grace_s)
                raw = identity.extra.encode()
                if not raw:
                    continue
                with suppress(PreviousResponseNotFound):  # its conversation is not kept here
                    it = await made(request, raw, parse_response(raw), model, identity)
                    return background_reply(request, it, model, identity)
            return None

        background = BackgroundReplies(adopted, options.resume_grace_s)

        async def in_background(
            request: Request, raw: bytes, body: ResponseBody, model: ServedModel, identity: ReplyIdentity
        ) -> Response:
            if body.store is False:
                raise InvalidParameter("a response in the background has to be stored", param="background")
            if identity.recorded is None:
                # whoever asks for the response finds by its id what a replica keeps, and how to go on
                identity = replace(identity, stream=f"resp_{identity.nonce}", extra=raw.decode())
            reply = await background.find(identity.stream, request) if identity.recorded is not None else None
            if reply is None:
                it = await made(request, raw, body, model, identity)
                reply, queued = background_reply(request, it, model, identity), it.writer.so_far("queued")
                background.start(reply)
                if not body.stream:
                    return Response(queued, media_type="application/json")
            chunks = reply.stream(identity.n_seen)
            return StreamResponse(request, chunks, reply.numbered, keepalive_s=options.keepalive_s)

        @router.post("")
        async def responses(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_response(raw)
            model = models.of(request).resolve(body.model)
            identity = await reply_identity(request, model, raw, options.resume_grace_s)
            if body.background:
                return await in_background(request, raw, body, model, identity)
            try:
                it = await made(request, raw, body, model, identity)
            except ContextOverflow as error:
                if not body.stream:
                    raise
                return _failed_stream(ResponseHead.of(body, model.id, identity), error, request_id(request))
            if not body.stream:
                [reply] = await whole_replies(request, model, [it.generation], it.record, identity=identity)
                return Response(it.writer.body(reply), media_type="application/json")
            return streamed_reply(
                request,
                model,
                [it.generation],
                it.writer,
                keepalive_s=options.keepalive_s,
                record=it.record,
                in_stream=(ContextOverflow, QueueFull),
                identity=identity,
            )

        @router.post("/input_tokens")
        async def input_tokens(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_prompt(raw)
            own = TenantResponses(store, tenant_of(request).salt)
            model = models.of(request).resolve(body.model)
            past = Past.of(own, body.previous_response_id, body.referred_ids)
            cost, noise = _cost(raw, body, model.prompts), noise_of(request)
            n = await prepare(model.prompts, cost, _count, body, past, model.prompts, noise)
            return JSONResponse({"object": "response.input_tokens", "input_tokens": n})

        router.include_router(stored_routes(store, background, options.keepalive_s))
        both = APIRouter()
        both.include_router(router, prefix="/v1/responses")
        both.include_router(router, prefix="/responses")
        return both


def _failed_stream(head: ResponseHead, error: ErllamaError, request_id: str) -> Response:
    """A stream that fails before anything was computed: clients make room on its event, not on a
    status.
    """
    writer = ResponseWriter(head, ReplyForm(lambda: None, lambda token: b"", Toolbox()))
    return Response(writer.fail(error, request_id), media_type=SSE.media_type)
