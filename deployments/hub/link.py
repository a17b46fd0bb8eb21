"""An ingress and the manager of the hub's models: requests are admitted, and counted while they run.

One per process, on one event loop. A manager that restarts is asked again; it learns from `renew` what
runs.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from deployments.hub.messages import Granted, ModelNotInTime, Waiting, Wanted
from deployments.model.ray_errors import mapped_errors
from erllama.errors import ErllamaError

log = logging.getLogger(__name__)

_RENEW_S = 5.0
_RETRY_S = 0.5  # between tries of a manager that cannot be reached


class HubLink:
    """`handle` is that of the manager's deployment; `load_timeout_s` is how long a request may wait."""

    def __init__(self, handle: Any, load_timeout_s: float) -> None:
        self._handle = handle
        self._load_timeout_s = load_timeout_s
        self._ingress_id = uuid.uuid4().hex
        self._open: dict[str, str] = {}
        self._renewing: asyncio.Task[None] | None = None
        self._told: set[asyncio.Task[Any]] = set()

    async def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What a method of the manager returns. Raises what it raises, Ray's errors as our own."""
        with mapped_errors():
            return await getattr(self._handle, method).remote(*args, **kwargs)

    @asynccontextmanager
    async def admitted(self, model_id: str, digest: str) -> AsyncIterator[Granted]:
        """The deployment of a model in whose memory this request has a place until the end of the block.
        Waits. Raises `ModelNotInTime`, or what makes it impossible.
        """
        ticket_id = uuid.uuid4().hex
        try:
            granted = await self._acquire(ticket_id, model_id, digest)
            self._open[ticket_id] = model_id
            self._renew_while_open()
            yield granted
        finally:
            self._open.pop(ticket_id, None)
            self._tell("release", self._ingress_id, ticket_id)

    async def _acquire(self, ticket_id: str, model_id: str, digest: str) -> Granted:
        began = time.monotonic()
        reason = "the manager of the hub's models does not answer"
        while (waited_s := time.monotonic() - began) < self._load_timeout_s:
            try:
                wanted = Wanted(self._ingress_id, ticket_id, model_id, digest, waited_s)
                async with asyncio.timeout(self._load_timeout_s - waited_s):
                    answer: Granted | Waiting = await self.ask("acquire", wanted)
            except TimeoutError:
                break
            except ErllamaError as error:
                if not error.resumable:
                    raise
                log.info("event=hub_manager_gone model=%s error=%s", model_id, error.message)
                await asyncio.sleep(_RETRY_S)
                continue
            if isinstance(answer, Granted):
                return answer
            reason = answer.reason
        raise ModelNotInTime(
            f"{model_id} was not in memory within {self._load_timeout_s:g} s: {reason}", param="model", retry_after_s=5
        )

    def _renew_while_open(self) -> None:
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while self._open:
            await asyncio.sleep(_RENEW_S)
            try:
                async with asyncio.timeout(_RENEW_S):
                    await self.ask("renew", self._ingress_id, dict(self._open))
            except (TimeoutError, ErllamaError) as error:  # it is told again
                log.info("event=hub_not_renewed error=%r", error)

    def _tell(self, method: str, *args: Any) -> None:
        """Nobody waits for it; what gets lost is found out with the next `renew`."""
        task = asyncio.get_running_loop().create_task(self._told_once(method, *args))
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _told_once(self, method: str, *args: Any) -> None:
        try:
            await self.ask(method, *args)
        except ErllamaError as error:
            log.info("event=hub_not_told method=%s error=%s", method, error.message)
