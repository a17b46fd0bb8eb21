"""Tells models what their clients will send next, while nobody asks for anything of them.

A reply is complete, and its client reads it: what the next prompt will begin with is rendered in a
thread, and the replica that served the reply computes it, if it has nothing else to do either. A turn
that waits here while other requests of its model are answered costs nothing; under load the oldest are
forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from starlette.requests import Request

from deployments.generation.next_turn import ChatRecord, FollowUp
from deployments.http.ports import ModelPort, Record, ServedModel
from erllama.errors import ErllamaError
from erllama.events import Completion
from erllama.request import GenerationRequest

log = logging.getLogger(__name__)

MAX_WAITING = 8  # turns of one model


@dataclass(frozen=True, slots=True)
class _Expected:
    client: ModelPort
    follow_up: FollowUp
    reply: Completion


class ExpectedTurns:
    """Those of one ingress. One event loop."""

    def __init__(self) -> None:
        self._answering: Counter[str] = Counter()  # by the model's id
        self._waiting: dict[str, OrderedDict[str, _Expected]] = {}  # and by the request's, the latest last
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @classmethod
    def of(cls, request: Request) -> Self:
        """Those of the ingress that answers `request`."""
        expected: Self = request.app.state.expected_turns
        return expected

    @contextmanager
    def answering(self, model: ServedModel) -> Iterator[None]:
        """Around the answer to a request: nothing is rendered meanwhile."""
        self._answering[model.id] += 1
        try:
            yield
        finally:
            self._answering[model.id] -= 1
            if self._is_due(model.id) and model.id not in self._tasks:
                self._tasks[model.id] = asyncio.create_task(self._work(model.id), name=f"expected turns of {model.id}")

    def noting(self, model: ServedModel, requests: Sequence[GenerationRequest], record: Record | None) -> Record | None:
        """`record`, which then also notes what follows on the reply. Of several choices nobody knows which
        one comes back.
        """
        if not isinstance(record, ChatRecord) or record.follow_up is None or len(requests) != 1:
            return record
        [request], follow_up = requests, record.follow_up

        def noted(reply: Completion) -> None:
            record(reply)
            self._expect(model, request, follow_up, reply)

        return noted

    def _expect(self, model: ServedModel, request: GenerationRequest, follow_up: FollowUp, reply: Completion) -> None:
        waiting = self._waiting.setdefault(model.id, OrderedDict())
        waiting[request.request_id] = _Expected(model.client, follow_up, reply)
        while len(waiting) > MAX_WAITING:
            waiting.popitem(last=False)

    async def settled(self) -> None:
        """Wait until nothing is rendered or told any more."""
        await asyncio.gather(*self._tasks.values())

    async def close(self) -> None:
        """Forget all of them. Idempotent."""
        self._waiting.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _is_due(self, model_id: str) -> bool:
        return bool(self._waiting.get(model_id)) and not self._answering[model_id]

    async def _work(self, model_id: str) -> None:
        try:
            while self._is_due(model_id):
                request_id, it = self._waiting[model_id].popitem()
                await self._tell(request_id, it)
        finally:
            del self._tasks[model_id]

    async def _tell(self, request_id: str, it: _Expected) -> None:
        try:
            turn = await asyncio.to_thread(it.follow_up.turn, request_id, it.reply)
            if turn is not None:
                await it.client.expect(turn)
        except ErllamaError as error:  # the template refuses what would come, or the model has gone: nothing is lost
            log.debug("event=turn_not_expected request_id=%s error=%s", request_id, error.message)
        except Exception as error:  # nobody waits for this task
            log.warning("event=turn_not_expected request_id=%s", request_id, exc_info=error)
