"""The path of a request that every dialect shares: read the body, prepare off the loop, generate,
answer as a whole or as a stream.

The event loop never does more than a few milliseconds of work at once, since all streams of the
ingress share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import replace
from typing import ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deployments.capture.scope import KEPT_BODY
from deployments.generation.encoding import decompressed, is_compressed
from deployments.generation.event_ids import NumberedWriter
from deployments.generation.expected import ExpectedTurns
from deployments.generation.fan_out import Generates, fan_out
from deployments.generation.identity import ReplyIdentity, session_of, shared_requests
from deployments.http.dialect import ReplyWriter, dialect_of
from deployments.http.disconnect import unless_disconnected
from deployments.http.errors import BodyTooLarge, ClientDisconnected
from deployments.http.middleware import request_facts
from deployments.http.ports import PromptPort, Record, RecordedReply, ReplyDefaults, ServedModel
from deployments.http.stream import StreamResponse
from deployments.telemetry.facts import RequestFacts
from erllama.errors import ContextOverflow, ErllamaError, InvalidParameter
from erllama.events import Completion, CompletionParts, Done, Event, Progress
from erllama.request import GenerationRequest, Prompt

INLINE_CHARS = 8192  # tokenising runs at 1-3 MB/s, so this much costs some 5 ms; a hop to a thread 0.1 ms

LONG_COMPUTE_TOKENS = 512  # a stream begins before its first token when as many are to be computed for it

MAX_AFFINITY_CHARS = 256
P = ParamSpec("P")
T = TypeVar("T")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body, decompressed. Raises `BodyTooLarge` before it is all in memory, `ClientDisconnected`
    if it never ends, and what `encoding` raises.
    """
    encoding = request.headers.get("content-encoding", "")
    compressed = is_compressed(encoding)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise BodyTooLarge(f"The body has {announced} bytes, at most {max_bytes} are accepted.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_bytes:
                raise BodyTooLarge(f"The body has more than {max_bytes} bytes.")
    except ClientDisconnect as exc:
        raise ClientDisconnected("The client closed the connection.") from exc
    whole = await asyncio.to_thread(decompressed, bytes(body), encoding, max_bytes) if compressed else bytes(body)
    if (kept := request.scope["state"].get(KEPT_BODY)) is not None:
        kept.append(whole)
    return whole


def prepare_cost(n_bytes: int, prompts: PromptPort, *, compiles: bool, has_replies: bool = False) -> int:
    """What preparing a body costs, in characters to tokenise: constraints are never compiled on the
    event loop, and no store is asked for earlier replies there.
    """
    return n_bytes + INLINE_CHARS * (compiles or (prompts.may_wait and has_replies))


async def prepare(prompts: PromptPort, n_chars: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work`, in a thread when it is long or would first load the vocabulary."""
    if prompts.loaded and n_chars <= INLINE_CHARS:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def with_ends(request: GenerationRequest, defaults: ReplyDefaults) -> GenerationRequest:
    """The request, which ends where its model does unless it says something of its own."""
    stop = request.stop or defaults.stop
    max_tokens = defaults.max_tokens if request.max_tokens is None else request.max_tokens
    if (stop, max_tokens) == (request.stop, request.max_tokens):
        return request
    return replace(request, stop=stop, max_tokens=max_tokens)


def check_fits(prompt: Prompt, n_ctx: int | None, param: str) -> None:
    """Refuse here what the engine would refuse, before the tokens travel. LiteLLM knows an overflow
    by the words "maximum context length": those who compact on it do not look at the code.
    """
    if n_ctx is not None and len(prompt) + 1 > n_ctx:
        raise ContextOverflow(
            f"This model's maximum context length is {n_ctx} tokens, one of them for the reply; "
            f"the prompt has {len(prompt)}.",
            param=param,
            n_prompt=len(prompt),
            n_most=n_ctx - 1,
        )


def _ended(parts: CompletionParts, events: Sequence[Event]) -> Completion | None:
    """The whole reply of a choice, once the last of its `events` has come."""
    replies = [parts.add(event) for event in events]
    return last if isinstance(last := replies[-1], Completion) else None


def affinity_of(headers: Mapping[str, str], *, key: str | None = None, user: object = None) -> str | None:
    """What a request has in common with others: the `key` that its body names for that, else the
    session in its `headers`, else its `user`, who may have many sessions.
    """
    named = key or session_of(headers) or (user if isinstance(user, str) else None)
    return named[:MAX_AFFINITY_CHARS] if named else None


def of_one_session(headers: Mapping[str, str], requests: Sequence[GenerationRequest]) -> Sequence[GenerationRequest]:
    """`requests` with the session of their HTTP request, whose `headers` are looked up in any case,
    where their body names nothing that they have in common.
    """
    session = affinity_of(headers)
    if session is None:
        return requests
    return [request if request.affinity is not None else replace(request, affinity=session) for request in requests]


async def whole_replies(
    request: Request,
    model: ServedModel,
    requests: Sequence[GenerationRequest],
    record: Record | None = None,
    *,
    identity: ReplyIdentity | None = None,
) -> list[Completion]:
    """The reply to each of `requests`. A client that goes away cancels all of them at once; one that
    asks again then may go on with them, if the reply has an `identity`.
    """
    requests, facts = of_one_session(request.headers, requests), request_facts(request)
    if identity is not None:
        if identity.recorded is not None:
            raise InvalidParameter("Last-Event-ID is for streams alone", param="Last-Event-ID")
        requests = shared_requests(request, identity, model, requests, resumable=False)
    expected = ExpectedTurns.of(request)
    record = expected.noting(model, requests, record)

    async def work() -> list[Completion]:
        parts = [CompletionParts() for _ in requests]
        replies: dict[int, Completion] = {}
        facts.ask(model.id)
        async with aclosing(fan_out(model.client, requests)) as items:
            async for index, events in items:
                if facts.first_ns is None:
                    facts.saw(events)
                if (reply := _ended(parts[index], events)) is not None:
                    replies[index] = reply
                    facts.add(reply.stats)
                    if record is not None:
                        record(reply)
        return [replies[index] for index in range(len(requests))]

    with expected.answering(model):
        return await unless_disconnected(request.receive, work())


async def _chunks(
    client: Generates,
    requests: Sequence[GenerationRequest],
    writer: ReplyWriter,
    record: Record | None,
    facts: RequestFacts,
    answering: AbstractContextManager[None] | None = None,
) -> AsyncGenerator[bytes, None]:
    parts = [CompletionParts() for _ in requests]
    begun = False
    observed = [_observed(request) for request in requests]
    with answering or nullcontext():
        async with aclosing(fan_out(client, observed)) as items:
            async for index, events in items:
                if facts.first_ns is None:
                    facts.saw(events)
                if isinstance(last := events[-1], Done):
                    facts.add(last.stats)
                if record is not None and (reply := _ended(parts[index], events)) is not None:
                    record(reply)  # before its end leaves: the client may answer at once
                if begun or requests[index].report_progress or not isinstance(events[-1], Progress):
                    chunk = writer.feed(index, events)
                elif _is_far_from_a_token(events[-1]):  # the client shall see at once that its long prompt has begun
                    chunk = writer.feed(index, events) or writer.keepalive()
                else:
                    chunk = b""
                begun = begun or bool(chunk)
                yield chunk
        yield writer.close()


class _Resumed:
    """A model that goes on with what is recorded."""

    def __init__(self, model: ServedModel, recorded: RecordedReply) -> None:
        self._model = model
        self._recorded = recorded

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        return self._model.client.resume(self._recorded, request)


def streamed_reply(
    request: Request,
    model: ServedModel,
    requests: Sequence[GenerationRequest],
    writer: ReplyWriter,
    *,
    keepalive_s: float,
    record: Record | None = None,
    in_stream: tuple[type[ErllamaError], ...] = (),
    identity: ReplyIdentity | None = None,
) -> Response:
    """The reply as it is made; see `StreamResponse` for when the status leaves, and what `in_stream`
    is. With an `identity` a client may go on with it, where its framing has ids and there is one
    choice: those of several come in no certain order.
    """
    client: Generates = model.client
    requests = of_one_session(request.headers, requests)
    if identity is not None:
        resumable = bool(identity.keep_s) and len(requests) == 1 and dialect_of(request.scope).framing.has_ids
        if identity.recorded is not None:
            if not resumable:
                raise InvalidParameter("a stream of several choices cannot go on", param="Last-Event-ID")
            client = _Resumed(model, identity.recorded)
        requests = shared_requests(request, identity, model, requests, resumable=resumable)
        if resumable:
            writer = NumberedWriter(writer, identity.stream, identity.n_seen)
    facts = request_facts(request)
    facts.ask(model.id, streamed=True)
    expected = ExpectedTurns.of(request)
    record = expected.noting(model, requests, record)
    chunks = _chunks(client, requests, writer, record, facts, expected.answering(model))
    return StreamResponse(request, chunks, writer, keepalive_s=keepalive_s, in_stream=in_stream)


def _observed(request: GenerationRequest) -> GenerationRequest:
    """A request whose prompt may be long to compute tells how much of it is: see `_is_far_from_a_token`."""
    return replace(request, report_progress=True) if len(request.prompt) >= LONG_COMPUTE_TOKENS else request


def _is_far_from_a_token(progress: Progress) -> bool:
    """Whether a long part of a prompt is to be computed before there is a token. A stream lives from
    there on; one whose prompt is kept has its token, or its error with a status, soon enough.
    """
    return progress.total - progress.processed >= LONG_COMPUTE_TOKENS


def detached_chunks(
    model: ServedModel,
    request: GenerationRequest,
    writer: ReplyWriter,
    identity: ReplyIdentity,
    record: Record,
    facts: RequestFacts,
) -> AsyncGenerator[bytes, None]:
    """The stream of a reply that belongs to no connection: whoever reads it decides when it ends."""
    request = replace(request, keep_s=identity.keep_s, head=identity.head if identity.keep_s else "")
    client: Generates = model.client if identity.recorded is None else _Resumed(model, identity.recorded)
    facts.ask(model.id, streamed=True)
    return _chunks(client, [request], writer, record, facts)
