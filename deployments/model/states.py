"""What has become of each model of an application, as Serve's controller tells, with the reason of
a failure in one line.

Serve's own message is a page: the traceback of the last try between two sentences.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ray import serve
from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

log = logging.getLogger(__name__)

CANNOT_LOAD = "cannot be loaded: "  # what `Replica` puts before its reason
_MARKED = re.compile(f"{CANNOT_LOAD}(.+)")
_RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\w*: (.+)$", re.MULTILINE)
_MAX_CHARS = 500


class Phase(Enum):
    LOADING = "loading"
    READY = "ready"
    ASLEEP = "asleep"  # scaled to zero
    FAILED = "failed"  # Serve has stopped trying


@dataclass(frozen=True, slots=True)
class LoadState:
    """`reason` is that of the last try that failed, "" when none has."""

    phase: Phase
    reason: str = ""


def load_state(app_name: str, deployment: str) -> LoadState:
    """The state of one deployment. Asks the controller, so it blocks; what cannot be asked is taken
    to be loading."""
    try:
        application = serve.status().applications.get(app_name)
    except Exception as error:  # the controller restarts, or goes
        log.info("the state of %s is unknown: %r", deployment, error)
        application = None
    return LoadState(Phase.LOADING) if application is None else state_in(application, deployment)


def state_in(application: ApplicationStatusOverview, deployment: str) -> LoadState:
    """An application whose graph cannot be built has no deployments."""
    status = application.deployments.get(deployment)
    if status is not None:
        return _state(status)
    if application.status.value == "DEPLOY_FAILED":
        return LoadState(Phase.FAILED, one_line(application.message))
    return LoadState(Phase.LOADING)


def _state(status: DeploymentStatusOverview) -> LoadState:
    if status.status.value == "DEPLOY_FAILED":
        return LoadState(Phase.FAILED, one_line(status.message))
    replicas: Mapping[Any, int] = status.replica_states  # by an enum of Serve's or by its value
    if replicas.get("RUNNING", 0):
        return LoadState(Phase.READY)
    if status.status.value == "HEALTHY":
        return LoadState(Phase.ASLEEP)
    return LoadState(Phase.LOADING, one_line(status.message) if "rror" in status.message else "")


def one_line(message: str) -> str:
    """The reason in a message of Serve's: in our own words if they are there, else what was raised
    last, else its first line.
    """
    found = _MARKED.findall(message) or _RAISED.findall(message)[-1:] or message.splitlines()[:1]
    return found[-1].strip()[:_MAX_CHARS] if found else ""
