"""The path of a request that every dialect shares: read the body, prepare off the loop, generate,
answer as a whole or as a stream.

The event loop never does more than a few milliseconds of work at once, since all streams of the
ingress share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import ParamSpec, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from deployments.http.dialect import ReplyWriter
from deployments.http.disconnect import unless_disconnected
from deployments.http.errors import BodyTooLarge, ClientDisconnected
from deployments.http.fan_out import Indexed, fan_out
from deployments.http.ports import PromptPort, Record, ServedModel
from deployments.http.stream import StreamResponse
from erllama.errors import ContextOverflow, ErllamaError
from erllama.events import Completion, CompletionParts
from erllama.request import GenerationRequest, Prompt

INLINE_CHARS = 8192  # tokenising runs at 1-3 MB/s, so this much costs some 5 ms; a hop to a thread 0.1 ms

P = ParamSpec("P")
T = TypeVar("T")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises `BodyTooLarge` before it is all in memory, `ClientDisconnected` if it never
    ends.
    """
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
    return bytes(body)


async def prepare(prompts: PromptPort, n_chars: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work`, in a thread when it is long or would first load the vocabulary."""
    if prompts.loaded and n_chars <= INLINE_CHARS:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def check_fits(prompt: Prompt, n_ctx: int | None, param: str) -> None:
    """Refuse here what the engine would refuse, before the tokens travel."""
    if n_ctx is not None and len(prompt) + 1 > n_ctx:
        raise ContextOverflow(
            f"This model's context holds {n_ctx} tokens, one of them for the reply; the prompt has {len(prompt)}.",
            param=param,
        )


async def _items(model: ServedModel, requests: Sequence[GenerationRequest], record: Record | None) -> Indexed:
    """What the choices produce. A reply is recorded before its end leaves: the client may answer at
    once.
    """
    parts = [CompletionParts() for _ in requests]
    async with aclosing(fan_out(model.client, requests)) as items:
        async for index, events in items:
            if record is not None:
                for event in events:
                    reply = parts[index].add(event)
                    if isinstance(reply, Completion):
                        record(reply)
            yield index, events


async def whole_replies(
    request: Request,
    model: ServedModel,
    requests: Sequence[GenerationRequest],
    record: Record | None = None,
) -> list[Completion]:
    """The reply to each of `requests`. A client that goes away cancels all of them at once."""

    async def work() -> list[Completion]:
        parts = [CompletionParts() for _ in requests]
        replies: dict[int, Completion] = {}
        async with aclosing(_items(model, requests, record)) as items:
            async for index, events in items:
                for event in events:
                    reply = parts[index].add(event)
                    if isinstance(reply, Completion):
                        replies[index] = reply
        return [replies[index] for index in range(len(requests))]

    return await unless_disconnected(request.receive, work())


async def _chunks(
    model: ServedModel, requests: Sequence[GenerationRequest], writer: ReplyWriter, record: Record | None
) -> AsyncGenerator[bytes, None]:
    async with aclosing(_items(model, requests, record)) as items:
        async for index, events in items:
            yield writer.feed(index, events)
    yield writer.close()


def streamed_reply(
    request: Request,
    model: ServedModel,
    requests: Sequence[GenerationRequest],
    writer: ReplyWriter,
    *,
    keepalive_s: float,
    record: Record | None = None,
    in_stream: tuple[type[ErllamaError], ...] = (),
) -> Response:
    """The reply as it is made; see `StreamResponse` for when the status leaves, and what `in_stream`
    is.
    """
    chunks = _chunks(model, requests, writer, record)
    return StreamResponse(request, chunks, writer, keepalive_s=keepalive_s, in_stream=in_stream)
