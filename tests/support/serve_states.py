"""What Serve's controller says of an application, as `serve.status` returns it."""

from __future__ import annotations

from typing import Any

from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview


def deployment(
    status: str, *, message: str = "", trigger: str = "UNSPECIFIED", **replicas: int
) -> DeploymentStatusOverview:
    """`replicas`: how many there are by state."""
    states: dict[Any, int] = {state.upper(): n for state, n in replicas.items()}
    return DeploymentStatusOverview(DeploymentStatus(status), DeploymentStatusTrigger(trigger), states, message)


def application(status: str, message: str = "", **deployments: DeploymentStatusOverview) -> ApplicationStatusOverview:
    """Names of deployments have "_" for "-"."""
    named = {name.replace("_", "-"): state for name, state in deployments.items()}
    return ApplicationStatusOverview(ApplicationStatus(status), message, 0.0, named)
