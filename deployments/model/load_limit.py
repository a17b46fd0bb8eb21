"""How often a model is tried that cannot be loaded.

While a deployment has not been up, Serve itself stops after `MAX_LOADS` failures. Once it has been,
Serve would start replicas for ever, and user code has no way to tell it not to. So a replica counts
what will fail each time: the number stands in what its constructor raises, Serve keeps that as the
deployment's message, and the next replica finds it there. At `MAX_LOADS` a constructor tries nothing
and does not return until Serve stops it: Serve then waits instead of starting the next one, and
replicas that run are left in peace. A change of what the model depends on (`deployments/versions.py`)
begins anew, and so does waking from zero replicas.

What may pass (memory that is short, a tier that is gone) is tried for ever, as Serve does it. So is
what fails in a deployment some of whose replicas run and that has never been up as a whole.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from ray import serve
from ray.serve.schema import DeploymentStatusOverview

from deployments.model.drain import PERIOD_S, serve_is_stopping
from erllama.errors import LoadFailedForNow, ModelLoadError

log = logging.getLogger(__name__)

MAX_LOADS = 3
_SERVE_COUNTS = "UPDATING"  # the status of a deployment that has not been up since it was deployed
_MARK = "cannot be loaded"
_TOLD = re.compile(rf"{_MARK}(?: \(failure (\d+) of \d+\))?: (.+)")


def load_error(model_id: str, error: Exception, n_failures: int = 0) -> ModelLoadError:
    """What a replica raises whose load ended with `error`, in words that `told_reason` and
    `told_failures` find again in Serve's message. `n_failures`: this one counted; 0 is not.
    """
    count = f" (failure {n_failures} of {MAX_LOADS})" if n_failures else ""
    return ModelLoadError(f"{model_id} {_MARK}{count}: {' '.join((str(error) or repr(error)).split())}")


def told_reason(message: str) -> str | None:
    """The reason in a message of Serve's, if it is in our words."""
    found = _TOLD.findall(message)
    return found[-1][1] if found else None


def told_failures(message: str) -> int:
    """How many failures in a row a message of Serve's tells of, of a model that ran before."""
    found = _TOLD.findall(message)
    return int(found[-1][0] or 0) if found else 0


class LoadLimit:
    """`status`: what Serve says of the deployment now, None when it cannot be asked."""

    def __init__(
        self,
        model_id: str,
        status: Callable[[], DeploymentStatusOverview | None],
        is_stopping: Callable[[], bool] = serve_is_stopping,
    ) -> None:
        self._model_id = model_id
        self._status = status
        self._is_stopping = is_stopping

    def load(self, load: Callable[[], None]) -> None:
        """Calls `load`, and raises `ModelLoadError` when it fails. After `MAX_LOADS` failures it
        blocks until Serve stops this replica.
        """
        n_failures = self._n_failures()
        if n_failures is not None and n_failures >= MAX_LOADS:
            self._stay_failed()
        try:
            load()
        except Exception as error:
            counts = n_failures is not None and _fails_each_time(error)
            raise load_error(self._model_id, error, (n_failures or 0) + 1 if counts else 0) from error

    def _n_failures(self) -> int | None:
        """In a row, before this replica; None while Serve counts."""
        status = self._status()
        return None if status is None or status.status.value == _SERVE_COUNTS else told_failures(status.message)

    def _stay_failed(self) -> None:
        log.error(
            "%s failed to load %d times and is not tried again before its own settings change",
            self._model_id,
            MAX_LOADS,
        )
        while not self._is_stopping():
            time.sleep(PERIOD_S)
        raise ModelLoadError(f"{self._model_id} was not tried again")


def deployment_status() -> DeploymentStatusOverview | None:
    """Serve's state of the deployment that this process is a replica of. Asks the controller."""
    context = serve.get_replica_context()
    try:
        application = serve.status().applications[context.app_name]
        return application.deployments.get(context.deployment)
    except Exception as error:  # the controller restarts: the next replica asks again
        log.info("the state of %s is unknown: %r", context.deployment, error)
        return None


def _fails_each_time(error: Exception) -> bool:
    return isinstance(error, ModelLoadError) and not isinstance(error, LoadFailedForNow)
