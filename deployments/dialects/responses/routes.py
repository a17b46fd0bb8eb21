"""The Responses API as a dialect. Each route reads as the life of its request; what bodies mean is
in the files beside this one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from deployments.dialects.responses.background import BackgroundReplies, BackgroundReply
from deployments.dialects.responses.compaction import compacted, summary_body
from deployments.dialects.responses.custom_format import InputAsCall
from deployments.dialects.responses.head import ResponseHead, usage
from deployments.dialects.responses.params import chat_ask, response_request
from deployments.dialects.responses.stored.past import own_input, referred_items, whole_conversation
from deployments.dialects.responses.stored.response import PreviousResponseNotFound, StoredResponse
from deployments.dialects.responses.stored.routes import scope_of, stored_routes
from deployments.dialects.responses.stored.store import Past, ResponseStore
from deployments.dialects.responses.tools import Toolbox, asked_choice, forced_input, toolbox
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
from deployments.http.dialect import SSE, Dialect, add_routes
from deployments.http.middleware import engine_id, request_facts, request_id
from deployments.http.noise_scope import noise_of
from deployments.http.openai_error import error_body
from deployments.http.options import HttpOptions
from deployments.http.ports import PromptPort, Record, ServedModel
from deployments.http.registry import ModelRegistry
from deployments.http.stream import StreamResponse
from deployments.noise.filter import NoiseFilter
from erllama.chat.tool_formats.base import ReplySplitter, collect_parts
from erllama.errors import ContextOverflow, ErllamaError, InvalidParameter, QueueFull, RequestError
from erllama.events import Completion
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


def _splitter(body: ResponseBody, tools: Toolbox, chat: ReadyChat) -> Callable[[], ReplySplitter | None]:
    """What cuts the reply."""
    forced = forced_input(asked_choice(body, tools), tools)
    return chat.splitter if forced is None else partial(InputAsCall, forced[0])


def _summary(chat: ReadyChat, reply: Completion) -> tuple[str, dict[str, Any]]:
    """The text of a reply, and its usage."""
    splitter, counter = chat.splitter(), chat.counter()
    counter.push(reply.tokens)
    if splitter is None:
        return reply.text.strip(), usage(reply.stats, counter.n_tokens)
    said = collect_parts(splitter.push(reply.text) + splitter.finish())
    return said.content.strip(), usage(reply.stats, counter.n_tokens)


class Responses(Dialect):
    prefixes = ("/v1/responses", "/responses")  # llama.cpp's server takes paths without /v1
    framing = SSE
    bodies: ClassVar[dict[str, type[BaseModel]]] = {
        "/v1/responses": ResponseBody,
        "/v1/responses/input_tokens": PromptBody,
    }

    def __init__(self, store: ResponseStore | None = None) -> None:
        """`store` None: each application remembers its own responses, and no others."""
        self._store = store

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = APIRouter()
        store = self._store or ResponseStore()

        def head_of(body: ResponseBody, model: ServedModel, identity: ReplyIdentity) -> ResponseHead:
            return ResponseHead.of(body, model.id, model.prompts.defaults.sampling, identity)

        async def made(
            request: Request, raw: bytes, body: ResponseBody, model: ServedModel, identity: ReplyIdentity
        ) -> _Made:
            tools = toolbox(body.tools or ())
            head = head_of(body, model, identity)
            past = await Past.of(store, body.previous_response_id, body.referred_ids, scope_of(request))
            cost, noise = _cost(raw, body, model.prompts), noise_of(request)
            chat, given = await prepare(model.prompts, cost, _prepare, body, tools, past, model.prompts, noise)
            splitter, summary = _splitter(body, tools, chat), bool(body.summary)
            form = ReplyForm(splitter, chat.piece_of, tools, summary=summary, sealed=body.seals_reasoning)

            def keep(response: str, item_ids: tuple[str, ...]) -> None:
                if body.store is not False:
                    store.put(StoredResponse(head.id, past.ids, given, response, item_ids), scope_of(request))

            generation = response_request(body, chat, identity.stream, request.headers)
            return _Made(head.id, ResponseWriter(head, form, keep), generation, chat.record)

        def background_reply(
            request: Request, it: _Made, model: ServedModel, identity: ReplyIdentity
        ) -> BackgroundReply:
            numbered = NumberedWriter(it.writer, identity.stream)
            chunks = detached_chunks(model, it.generation, numbered, identity, it.record, request_facts(request))
            cancel = partial(model.client.cancel, identity.stream)
            return BackgroundReply(it.id, scope_of(request), it.writer, numbered, chunks, cancel)

        async def adopted(id: str, request: Request) -> BackgroundReply | None:
            """A response whose ingress is gone, as a replica keeps it with its body."""
            served = await models.of(request).listed()
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
                return _failed_stream(head_of(body, model, identity), error, request_id(request))
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
            model = models.of(request).resolve(body.model)
            past = await Past.of(store, body.previous_response_id, body.referred_ids, scope_of(request))
            cost, noise = _cost(raw, body, model.prompts), noise_of(request)
            n = await prepare(model.prompts, cost, _count, body, past, model.prompts, noise)
            return JSONResponse({"object": "response.input_tokens", "input_tokens": n})

        @router.post("/compact")
        async def compact(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_response(raw)
            model = models.of(request).resolve(body.model)
            past = await Past.of(store, body.previous_response_id, body.referred_ids, scope_of(request))
            asked = summary_body(body)
            tools, cost = toolbox(body.tools or ()), _cost(raw, body, model.prompts)
            noise = noise_of(request)
            chat, _ = await prepare(model.prompts, cost, _prepare, asked, tools, past, model.prompts, noise)
            generation = response_request(asked, chat, engine_id(request), request.headers)
            [reply] = await whole_replies(request, model, [generation], chat.record)
            items = await prepare(model.prompts, cost, whole_conversation, body.input, past)
            return JSONResponse(compacted(items, *_summary(chat, reply)))

        add_routes(router, stored_routes(store, background, options.keepalive_s))
        both = APIRouter()
        add_routes(both, router, "/v1/responses")
        add_routes(both, router, "/responses")
        return both


def _failed_stream(head: ResponseHead, error: ErllamaError, request_id: str) -> Response:
    """A stream that fails before anything was computed: clients make room on its event, not on a
    status.
    """
    writer = ResponseWriter(head, ReplyForm(lambda: None, lambda token: b"", Toolbox()))
    return Response(writer.fail(error, request_id), media_type=SSE.media_type)
