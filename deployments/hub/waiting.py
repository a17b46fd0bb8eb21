"""The requests that wait for their models. Owned by the manager's event loop; times are monotonic ns.

Who waits asks again every few seconds (`ANSWER_S`), with the same ticket: so that nobody waits at a
manager that is gone, and a manager does not keep the place of an ingress that is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from deployments.hub.messages import Granted, Wanted
from deployments.hub.policy import Ticket
from erllama.errors import ErllamaError

ANSWER_S = 5.0
_SILENT_S = 20.0  # a ticket that nobody has asked for again since then is void


@dataclass(slots=True)
class _Waiter:
    wanted: Wanted
    ticket: Ticket
    asked_ns: int
    answer: asyncio.Future[Granted] | None = None


class WaitingRequests:
    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._waiters: dict[str, _Waiter] = {}

    async def answer(self, wanted: Wanted, now_ns: int) -> Granted | None:
        """What becomes of a request within `answer_s`; None when nothing does. Raises what `fail` was
        told.
        """
        waiter = self._waiters.get(wanted.ticket_id)
        if waiter is None:
            ticket = Ticket(wanted.ticket_id, wanted.model_id, now_ns - int(wanted.waited_s * 1e9))
            waiter = self._waiters[wanted.ticket_id] = _Waiter(wanted, ticket, now_ns)
        waiter.asked_ns, waiter.answer = now_ns, asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._answer_s):
                return await waiter.answer
        except TimeoutError:
            return None
        finally:
            waiter.answer = None

    def grant(self, ticket_id: str, granted: Granted) -> Wanted | None:
        """Let a request go; None when nobody is there to take it, who then asks again."""
        waiter = self._waiters[ticket_id]
        if waiter.answer is None or waiter.answer.done():
            return None
        waiter.answer.set_result(granted)
        return self._waiters.pop(ticket_id).wanted

    def fail(self, ticket_ids: Iterable[str], error: ErllamaError) -> None:
        for ticket_id in ticket_ids:
            waiter = self._waiters.pop(ticket_id)
            if waiter.answer is not None and not waiter.answer.done():
                waiter.answer.set_exception(error)

    def drop(self, ticket_id: str) -> None:
        """The request does not wait any more. Idempotent."""
        self._waiters.pop(ticket_id, None)

    def expire(self, now_ns: int) -> None:
        for ticket_id, waiter in list(self._waiters.items()):
            if waiter.answer is None and now_ns - waiter.asked_ns > int(_SILENT_S * 1e9):
                del self._waiters[ticket_id]

    def tickets(self) -> list[Ticket]:
        return [waiter.ticket for waiter in self._waiters.values()]

    def of(self, model_id: str) -> list[str]:
        """The tickets that wait for a model."""
        return [one for one, waiter in self._waiters.items() if waiter.wanted.model_id == model_id]

    def model_of(self, ticket_id: str) -> str:
        return self._waiters[ticket_id].wanted.model_id

    def by_model(self) -> Counter[str]:
        """How many wait for each model."""
        return Counter(waiter.wanted.model_id for waiter in self._waiters.values())
