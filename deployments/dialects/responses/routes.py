"""The Responses API as a dialect. Each route reads as the life of its request; what bodies mean is
in the files beside this one.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from deployments.dialects.responses.head import ResponseHead
from deployments.dialects.responses.params import chat_ask, response_request
from deployments.dialects.responses.past import own_input, referred_items
from deployments.dialects.responses.store import MemoryStore, Past, ResponseStore, StoredResponse
from deployments.dialects.responses.stored_routes import stored_routes
from deployments.dialects.responses.tools import Toolbox, toolbox
from deployments.dialects.responses.wire import PromptBody, ResponseBody, parse_prompt, parse_response
from deployments.dialects.responses.writer import ReplyForm, ResponseWriter
from deployments.generation.chat import ReadyChat, count_prompt, ready_chat
from deployments.generation.identity import reply_identity
from deployments.generation.reply import prepare, prepare_cost, read_body, streamed_reply, whole_replies
from deployments.http.dialect import SSE, Dialect
from deployments.http.middleware import request_id
from deployments.http.openai_error import error_body
from deployments.http.options import HttpOptions
from deployments.http.ports import ModelRegistry, PromptPort
from erllama.errors import ContextOverflow, ErllamaError, QueueFull, RequestError


def _cost(raw: bytes, body: PromptBody, prompts: PromptPort) -> int:
    """A conversation that goes on is long, whatever the body holds of it."""
    slow = body.format is not None or bool(body.tools) or body.previous_response_id is not None
    return prepare_cost(len(raw), prompts, compiles=slow, has_replies=isinstance(body.input, list))


def _in_words_of_the_body(error: RequestError) -> RequestError:
    """The template speaks of messages, which the body does not have."""
    if error.param is not None and error.param.startswith("messages"):
        error.param = "input"
    return error


def _prepare(body: ResponseBody, tools: Toolbox, past: Past, prompts: PromptPort) -> tuple[ReadyChat, str]:
    """What runs, and the input as it is stored."""
    try:
        chat = ready_chat(chat_ask(body, tools, past), prompts)
        return chat, "" if body.store is False else own_input(body.input, referred_items(past))
    except RequestError as error:
        raise _in_words_of_the_body(error) from None


def _count(body: PromptBody, past: Past, prompts: PromptPort) -> int:
    try:
        return count_prompt(chat_ask(body, toolbox(body.tools or ()), past), prompts)
    except RequestError as error:
        raise _in_words_of_the_body(error) from None


class Responses(Dialect):
    prefixes = ("/v1/responses",)
    framing = SSE

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = APIRouter(prefix="/v1/responses")
        store: ResponseStore = MemoryStore()

        @router.post("")
        async def responses(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_response(raw)
            model = models.resolve(body.model)
            tools = toolbox(body.tools or ())
            identity = await reply_identity(request, model, raw, options.resume_grace_s)
            head = ResponseHead.of(body, model.id, identity)
            past = Past.of(store, body.previous_response_id, body.referred_ids)
            cost = _cost(raw, body, model.prompts)
            try:
                chat, given = await prepare(model.prompts, cost, _prepare, body, tools, past, model.prompts)
            except ContextOverflow as error:
                if not body.stream:
                    raise
                return _failed_stream(head, error, request_id(request))
            generation = response_request(body, chat, identity.stream)
            form = ReplyForm(
                chat.splitter, chat.piece_of, tools, summary=bool(body.summary), sealed=body.seals_reasoning
            )

            def keep(response: str, item_ids: tuple[str, ...]) -> None:
                if body.store is not False:
                    store.put(StoredResponse(head.id, body.previous_response_id, given, response, item_ids))

            writer = ResponseWriter(head, form, keep)
            if not body.stream:
                [reply] = await whole_replies(request, model, [generation], chat.record, identity=identity)
                return Response(writer.body(reply), media_type="application/json")
            return streamed_reply(
                request,
                model,
                [generation],
                writer,
                keepalive_s=options.keepalive_s,
                record=chat.record,
                in_stream=(ContextOverflow, QueueFull),
                identity=identity,
            )

        @router.post("/input_tokens")
        async def input_tokens(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_prompt(raw)
            model = models.resolve(body.model)
            past = Past.of(store, body.previous_response_id, body.referred_ids)
            n = await prepare(model.prompts, _cost(raw, body, model.prompts), _count, body, past, model.prompts)
            return JSONResponse({"object": "response.input_tokens", "input_tokens": n})

        router.include_router(stored_routes(store))
        return router


def _failed_stream(head: ResponseHead, error: ErllamaError, request_id: str) -> Response:
    """A stream that fails before anything was computed: clients make room on its event, not on a
    status.
    """
    writer = ResponseWriter(head, ReplyForm(lambda: None, lambda token: b"", Toolbox()))
    return Response(writer.fail(error, request_id), media_type=SSE.media_type)
