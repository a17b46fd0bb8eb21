"""What has become of each model of an application, as Serve's controller tells, with the reason of
a failure in one line.

Serve's own message is a page: the traceback of the last try between two sentences.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from deployments.model.load_limit import MAX_LOADS, told_failures, told_reason
from deployments.model.ray_errors import ModelUnavailable

log = logging.getLogger(__name__)

_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\w*: (.+)$", re.MULTILINE)
_REPLACED = "HEALTH_CHECK_FAILED"  # why an update failed whose replicas start: Serve replaces what died
_MAX_CHARS = 500


class Phase(Enum):
    LOADING = "loading"
    READY = "ready"
    ASLEEP = "asleep"  # scaled to zero
    FAILED = "failed"  # it is not tried again
    ENDED = "ended"  # its application was there and is not any more


@dataclass(frozen=True, slots=True)
class LoadState:
    """`reason` is that of the last try that failed, "" when none has. A model that is ready has one
    when replicas of it are missing for good.
    """

    phase: Phase
    reason: str = ""


def load_state(app_name: str, deployment: str, *, was_there: bool = False) -> LoadState:
    """The state of one deployment. Asks the controller, so it blocks; what cannot be asked is taken
    to be loading, and so is an application that is not there, unless it `was_there`."""
    try:
        application = serve.status().applications.get(app_name)
    except Exception as error:  # the controller restarts, or goes
        log.info("the state of %s is unknown: %r", deployment, error)
        return LoadState(Phase.LOADING)
    if application is None:
        return LoadState(Phase.ENDED, "its process has ended") if was_there else LoadState(Phase.LOADING)
    return state_in(application, deployment)


def state_in(application: ApplicationStatusOverview, deployment: str) -> LoadState:
    """An application whose graph cannot be built has no deployments."""
    status = application.deployments.get(deployment)
    if status is not None:
        return _state(status)
    if application.status.value == "DEPLOY_FAILED":
        return LoadState(Phase.FAILED, one_line(application.message))
    return LoadState(Phase.LOADING)


def _state(status: DeploymentStatusOverview) -> LoadState:
    stopped = status.status.value == "DEPLOY_FAILED" and status.status_trigger != _REPLACED
    given_up = stopped or told_failures(status.message) >= MAX_LOADS
    reason = one_line(status.message) if given_up else ""
    replicas: Mapping[Any, int] = status.replica_states  # by an enum of Serve's or by its value
    if replicas.get("RUNNING", 0):
        return LoadState(Phase.READY, reason)
    if given_up:
        return LoadState(Phase.FAILED, reason)
    if status.status.value == "HEALTHY":
        return LoadState(Phase.ASLEEP)
    return LoadState(Phase.LOADING, one_line(status.message) if "rror" in status.message else "")


def one_line(message: str) -> str:
    """The reason in a message of Serve's: in our own words if they are there, else what was raised
    last, else its first line.
    """
    told = told_reason(message)
    found = [told] if told else _RAISED.findall(message)[-1:] or message.splitlines()[:1]
    return found[0].strip()[:_MAX_CHARS] if found else ""


class RecentState:
    """What `ask` tells, for many who wait at once: it may block, runs once at a time, and its answer
    counts for `kept_s`. One event loop.
    """

    def __init__(self, ask: Callable[[], LoadState], kept_s: float) -> None:
        self._ask = ask
        self._kept_s = kept_s
        self._lock = asyncio.Lock()
        self._state = LoadState(Phase.LOADING)
        self._until = 0.0

    async def get(self) -> LoadState:
        async with self._lock:
            if time.monotonic() >= self._until:
                self._state = await asyncio.to_thread(self._ask)
                self._until = time.monotonic() + self._kept_s
            return self._state


def unknown_state() -> LoadState:
    """What is known of a model that nobody can be asked about."""
    return LoadState(Phase.LOADING)


class ModelEnded(ModelUnavailable):
    """The model's application is gone. It is one of the hub, and the next attempt has it loaded anew."""

    resumable = True


def cannot_load(state: LoadState) -> ModelUnavailable:
    """What a caller is told of a model whose loading has failed, or that has ended."""
    if state.phase is Phase.ENDED:
        return ModelEnded(f"the model is gone: {state.reason}", retry_after_s=1)
    return ModelUnavailable(f"the model cannot be loaded: {state.reason}", retry_after_s=1)
