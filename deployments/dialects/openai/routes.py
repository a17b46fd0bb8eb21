"""OpenAI's API as a dialect, with its routes under `/v1`. Each route reads as the life of its
request; what bodies mean is in the files beside this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from deployments.dialects.openai.chat import ChatWriter, ReplyForm, chat_body
from deployments.dialects.openai.completions import CompletionWriter, completion_body
from deployments.dialects.openai.models import codex_model, model_card
from deployments.dialects.openai.normal import normal_chat, normal_completion
from deployments.dialects.openai.params import (
    chat_ask,
    chat_requests,
    check_completion,
    check_stream,
    completion_requests,
)
from deployments.dialects.openai.reply import ReplyHead, embedding_body
from deployments.dialects.openai.structure import asked_form, reply_constraint
from deployments.dialects.openai.tools import check_tools
from deployments.dialects.openai.wire import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    GenerationBody,
    PromptInput,
    parse_body,
)
from deployments.generation.chat import ReadyChat, count_prompt, ready_chat
from deployments.generation.identity import ReplyIdentity, reply_identity
from deployments.generation.reply import check_fits, prepare, prepare_cost, read_body, streamed_reply, whole_replies
from deployments.generation.running import states_of
from deployments.http.dialect import SSE, Dialect, add_routes, own_routes
from deployments.http.disconnect import unless_disconnected
from deployments.http.noise_scope import noise_of
from deployments.http.openai_error import error_body
from deployments.http.options import HttpOptions
from deployments.http.ports import PromptPort, ServedModel
from deployments.http.registry import ModelRegistry
from deployments.noise.filter import NoiseFilter
from erllama.errors import ErllamaError, InvalidParameter, NotSupported
from erllama.grammar.constraint import Constraint
from erllama.prompts.infill import Gap
from erllama.request import Prompt


def _head(prefix: str, model: ServedModel, identity: ReplyIdentity) -> ReplyHead:
    return ReplyHead(id=f"{prefix}-{identity.nonce}", model=model.id, created=identity.created)


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


def _tokens(given: PromptInput, prompts: PromptPort, param: str) -> Sequence[int]:
    if not isinstance(given, str):
        prompts.check_tokens(given, param)
        return given
    tokens = prompts.tokenize(given, add_special=True)
    if not tokens:
        raise InvalidParameter(f"{param} is empty", param=param)
    return tokens


def _checked(constraint: Constraint | None, prompts: PromptPort) -> Constraint | None:
    if constraint is not None:
        prompts.check_constraint(constraint)
    return constraint


def _cost(raw: bytes, body: GenerationBody, prompts: PromptPort) -> int:
    compiles, has_replies = asked_form(body) is not None, False
    if isinstance(body, ChatBody):
        has_replies = any(message.role == "assistant" for message in body.messages)
        compiles = compiles or bool(body.tools)
    return prepare_cost(len(raw), prompts, compiles=compiles, has_replies=has_replies)


def _text(given: PromptInput, prompts: PromptPort) -> str:
    return given if isinstance(given, str) else prompts.detokenize(given)


def _prepare_chat(body: ChatBody, prompts: PromptPort, noise: NoiseFilter) -> ReadyChat:
    return ready_chat(chat_ask(body), prompts, noise)


def _count(body: ChatBody, prompts: PromptPort, noise: NoiseFilter) -> int:
    return count_prompt(chat_ask(body), prompts, noise)


def _completion_prompt(given: PromptInput, suffix: str | None, prompts: PromptPort) -> Prompt:
    if not suffix:
        return Prompt.of(_tokens(given, prompts, "prompt"))
    if not prompts.fills_gaps:
        raise NotSupported("suffix (fill in the middle) is not supported by this model's vocabulary", param="suffix")
    if not isinstance(given, str):
        prompts.check_tokens(given, "prompt")
    return prompts.infill_prompt(Gap(given, suffix))


def _prepare_completion(body: CompletionBody, prompts: PromptPort) -> tuple[list[Prompt], list[str], Constraint | None]:
    wanted = [_completion_prompt(given, body.suffix, prompts) for given in body.prompt]
    for prompt in wanted:
        check_fits(prompt, prompts.n_ctx, "prompt")
    echoes = [_text(given, prompts) if body.echo else "" for given in body.prompt for _ in range(body.n or 1)]
    return wanted, echoes, _checked(reply_constraint(body), prompts)


def _prepare_inputs(body: EmbeddingBody, prompts: PromptPort) -> list[list[int]]:
    return [list(_tokens(text, prompts, "input")) for text in body.input]


class OpenAI(Dialect):
    # llama.cpp's server takes paths without /v1 (its /embeddings has a form of its own), LM Studio's has /api/v0
    prefixes = ("/v1", "/chat", "/completions", "/models", "/api/v0")
    framing = SSE
    bodies: ClassVar[dict[str, type[BaseModel]]] = {
        f"{prefix}/{path}": kind
        for prefix in ("/v1", "")
        for path, kind in (
            ("chat/completions", ChatBody),
            ("completions", CompletionBody),
            ("embeddings", EmbeddingBody),
        )
    }

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = own_routes(self)

        @router.get("/models")
        async def list_models(request: Request) -> Response:
            of_hub = await models.of(request).of_library()
            own = await models.of(request).listed(of_hub)
            states = await states_of(own, of_hub, options.ready_timeout_s)
            cards = [model_card(model, state) for model, state in zip(own, states, strict=True)]
            listed: dict[str, Any] = {"object": "list", "data": cards}
            if "client_version" in request.query_params:
                listed["models"] = [codex_model(model, number) for number, model in enumerate(own)]
            return JSONResponse(listed)

        @router.get("/models/{model_id:path}")
        async def get_model(request: Request, model_id: str) -> Response:
            model = models.of(request).resolve(model_id, fetch=False)
            of_hub = await models.of(request).of_library() if model.on_demand else ()
            [state] = await states_of([model], of_hub, options.ready_timeout_s)
            return JSONResponse(model_card(model, state))

        @router.post("/chat/completions")
        async def chat_completions(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = normal_chat(parse_body(ChatBody, raw))
            check_stream(body)
            check_tools(body)
            model = models.of(request).resolve(body.model)
            identity = await reply_identity(request, model, raw, options.resume_grace_s)
            cost = _cost(raw, body, model.prompts)
            chat = await prepare(model.prompts, cost, _prepare_chat, body, model.prompts, noise_of(request))
            requests = chat_requests(body, chat, identity.stream, request.headers)
            form = ReplyForm(chat.splitter, chat.piece_of, functions=bool(body.functions), ids=identity.ids())
            head = _head("chatcmpl", model, identity)
            if not body.stream:
                replies = await whole_replies(request, model, requests, chat.record, identity=identity)
                return _json(chat_body(head, replies, form=form, logprobs=bool(body.logprobs)))
            writer = ChatWriter(head, len(requests), include_usage=body.include_usage, extras=body.extras, form=form)
            return streamed_reply(
                request,
                model,
                requests,
                writer,
                keepalive_s=options.keepalive_s,
                record=chat.record,
                identity=identity,
            )

        @router.post("/chat/completions/input_tokens")
        async def input_tokens(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = normal_chat(parse_body(ChatBody, raw))
            check_tools(body)
            prompts = models.of(request).resolve(body.model).prompts
            cost = _cost(raw, body, prompts)
            n_tokens = await prepare(prompts, cost, _count, body, prompts, noise_of(request))
            return JSONResponse({"object": "response.input_tokens", "input_tokens": n_tokens})

        @router.post("/completions")
        async def completions(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = normal_completion(parse_body(CompletionBody, raw))
            check_stream(body)
            check_completion(body)
            model = models.of(request).resolve(body.model)
            identity = await reply_identity(request, model, raw, options.resume_grace_s)
            cost = _cost(raw, body, model.prompts)
            prompts, echoes, grammar = await prepare(model.prompts, cost, _prepare_completion, body, model.prompts)
            headers, defaults = request.headers, model.prompts.defaults
            requests = completion_requests(body, prompts, grammar, identity.stream, headers, defaults)
            head, n = _head("cmpl", model, identity), body.n or 1
            if not body.stream:
                replies = await whole_replies(request, model, requests, identity=identity)
                return _json(completion_body(head, n, echoes, replies, logprobs=body.logprobs is not None))
            writer = CompletionWriter(head, n, echoes, include_usage=body.include_usage, extras=body.extras)
            return streamed_reply(request, model, requests, writer, keepalive_s=options.keepalive_s, identity=identity)

        @router.post("/embeddings")
        async def embeddings(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_body(EmbeddingBody, raw)
            model = models.of(request).resolve(body.model)
            inputs = await prepare(model.prompts, len(raw), _prepare_inputs, body, model.prompts)
            vectors = await unless_disconnected(request.receive, model.client.embed(inputs))
            n_floats = sum(len(vector) for vector in vectors)
            reply = await prepare(
                model.prompts, n_floats, embedding_body, body, model.id, vectors, sum(map(len, inputs))
            )
            return _json(reply)

        everywhere = APIRouter()
        for prefix in ("/v1", "", "/api/v0"):
            add_routes(everywhere, router, prefix)
        return everywhere
