"""A model as one tenant's request meets it: under the tenant's salt, with its tokens counted and its
time bounded.

Routes get no other client (`ModelRegistry.of`), so that none of this can be forgotten in one of
them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TypeVar

from deployments.access.key_book import Access
from deployments.access.tenant import ANONYMOUS, Tenant
from deployments.http.ports import ModelPort, RecordedReply
from erllama.errors import ErllamaError, InvalidParameter, RequestError
from erllama.events import Event, Failed, Tokens
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest, Prompt
from erllama.stats import EngineStats, ModelInfo

T = TypeVar("T")


class RequestTimedOut(ErllamaError):
    """The request took longer than the server's options allow, and was cancelled."""

    http_status = 504
    code = "timeout"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; None is no bound. `prefill_s`: until the first token, the wait in a queue included.
    `token_s`: from one token to the next, while the client takes them. `total_s`: of a whole reply.
    """

    prefill_s: float | None = None
    token_s: float | None = None
    total_s: float | None = None


class TenantClient:
    """The `ModelPort` of one HTTP request. Wraps that of a model, for which it takes no care."""

    def __init__(self, client: ModelPort, access: Access, timeouts: Timeouts) -> None:
        self._client = client
        self.tenant: Tenant = access.tenant
        self._rate_limit = access.rate_limit
        self._timeouts = timeouts
        self._charged: list[Prompt] = []

    @property
    def shared(self) -> ModelPort:
        """The model's client that all tenants share: for what is not one tenant's, or says whose it is."""
        return self._client

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """As `ModelPort.generate`. What takes too long ends with `Failed` and is cancelled. Raises
        `InvalidParameter` for a priority that this tenant may not have.
        """
        return self._bounded(self._client.generate(self._owned(request)), request)

    def _owned(self, request: GenerationRequest) -> GenerationRequest:
        """A request, and what it pins, as this tenant's."""
        tenant = self.tenant
        if tenant != ANONYMOUS:
            request = replace(request, salt=tenant.salt, tenant=tenant.name, priority=self._priority(request))
        if request.pin is not None and request.pin.owner != tenant.owner:
            request = replace(request, pin=replace(request.pin, owner=tenant.owner))
        return request

    def _priority(self, request: GenerationRequest) -> int | None:
        own, asked = self.tenant.priority, request.priority
        if own is not None and asked is not None and asked < own:
            raise InvalidParameter(
                f"priority must be at least {own}, that of this API key (lower numbers go first), got {asked}",
                param="priority",
            )
        return own if asked is None else asked

    async def find(self, request_id: str) -> RecordedReply | None:
        """As `ModelPort.find`: what other tenants keep does not exist."""
        found = await self._client.find(request_id)
        return found if found is not None and found.salt == self.tenant.salt else None

    def resume(self, recorded: RecordedReply, request: GenerationRequest) -> AsyncGenerator[list[Event], None]:
        """As `ModelPort.resume`. The prompt was counted when the reply began; its tokens count again."""
        self._charged.append(request.prompt)
        return self._bounded(self._client.resume(recorded, self._owned(request)), request)

    async def cancel(self, ref: str) -> object:
        return await self._client.cancel(ref)

    async def expect(self, turn: NextTurn) -> None:
        """As `ModelPort.expect`. Nobody asked for it, so that it counts for no limit."""
        await self._client.expect(replace(turn, salt=self.tenant.salt))

    def _bounded(
        self, lists: AsyncGenerator[list[Event], None], request: GenerationRequest
    ) -> AsyncGenerator[list[Event], None]:
        if self._timeouts != Timeouts():
            lists = bounded(lists, self._timeouts)
        return self._counted(lists, request) if self._rate_limit.counts_tokens else lists

    async def _counted(
        self, lists: AsyncGenerator[list[Event], None], request: GenerationRequest
    ) -> AsyncGenerator[list[Event], None]:
        n_prompt = 0
        if not any(prompt is request.prompt for prompt in self._charged):  # choices share theirs
            self._charged.append(request.prompt)
            n_prompt = len(request.prompt)
        self._rate_limit.charge(n_prompt)
        async with aclosing(lists):
            async for events in lists:
                if isinstance(last := events[-1], Failed) and isinstance(last.error, RequestError):
                    self._rate_limit.charge(-n_prompt)  # it was refused: nothing was computed
                self._rate_limit.charge(sum(len(event.ids) for event in events if isinstance(event, Tokens)))
                yield events

    async def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        return await self._at_once(self._client.embed, inputs)

    async def rank(self, inputs: list[list[int]]) -> list[float]:
        return await self._at_once(self._client.rank, inputs)

    async def _at_once(self, method: Callable[[list[list[int]]], Awaitable[T]], inputs: list[list[int]]) -> T:
        """What has no stream: only the bound of a whole reply counts."""
        self._rate_limit.charge(sum(map(len, inputs)))
        try:
            async with asyncio.timeout(self._timeouts.total_s) as bound:
                return await method(inputs)
        except TimeoutError:
            if not bound.expired():
                raise
            raise _timed_out("the whole reply", self._timeouts.total_s) from None

    async def stats(self) -> list[EngineStats]:
        return await self._client.stats()

    async def ready(self) -> bool | None:
        return await self._client.ready()

    async def model_info(self) -> ModelInfo:
        return await self._client.model_info()

    def end_all(self, error: ErllamaError) -> None:
        self._client.end_all(error)


async def bounded(lists: AsyncGenerator[list[Event], None], timeouts: Timeouts) -> AsyncGenerator[list[Event], None]:
    """`lists`, closed when one of them takes too long; the last event then says so. Time in which
    nobody asks for the next one counts for the whole reply only.
    """
    started, has_token = time.monotonic(), False

    def left(bound_s: float | None, since: float) -> float:
        return math.inf if bound_s is None else max(0.0, since + bound_s - time.monotonic())

    async with aclosing(lists):
        while True:
            waits_s = left(timeouts.token_s, time.monotonic()) if has_token else left(timeouts.prefill_s, started)
            whole_s = left(timeouts.total_s, started)
            least_s = min(waits_s, whole_s)
            try:
                async with asyncio.timeout(None if least_s == math.inf else least_s) as bound:
                    events = await anext(lists, None)
            except TimeoutError:
                if not bound.expired():
                    raise
                if whole_s <= waits_s:
                    yield [Failed(_timed_out("the whole reply", timeouts.total_s))]
                elif has_token:
                    yield [Failed(_timed_out("the next token", timeouts.token_s))]
                else:
                    yield [Failed(_timed_out("the first token", timeouts.prefill_s))]
                return
            if events is None:
                return
            yield events
            has_token = has_token or any(isinstance(event, Tokens) for event in events)


def _timed_out(what: str, bound_s: float | None) -> RequestTimedOut:
    return RequestTimedOut(f"The request was cancelled: {what} took longer than the {bound_s:g} s that are allowed.")
