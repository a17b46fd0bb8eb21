"""A model that ran before and cannot be loaded again: how often it is tried, and what then stands
in Serve's status. No Ray runs; a stand-in does what Serve does with replicas that do not start.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from ray.serve.schema import DeploymentStatusOverview

from deployments.model.load_limit import MAX_LOADS, LoadLimit
from deployments.model.states import LoadState, Phase, state_in
from erllama.errors import LoadFailedForNow, ModelLoadError
from tests.support.serve_states import application, deployment

REASON = "/m/x.gguf: there is no such file"


class Serve:
    """Starts replicas, and keeps what the last failure said."""

    def __init__(self, status: str, message: str = "", **replicas: int) -> None:
        self._replicas = replicas
        self.told: DeploymentStatusOverview | None = self._status(status, message)
        self.n_loads = 0
        self.n_held = 0

    def start(self, load: Callable[[], None]) -> str:
        """One replica; the last line of what it raised, "" when it runs."""

        def counted() -> None:
            self.n_loads += 1
            load()

        def is_stopping() -> bool:
            self.n_held += 1
            return True

        try:
            LoadLimit("x", lambda: self.told, is_stopping).load(counted)
        except ModelLoadError:
            page = f"A replica failed to start with exception. Retrying. Error:\n{traceback.format_exc()}"
            if self.told is not None and not self.n_held:
                self.told = self._status(self.told.status.value, page)
            return page.splitlines()[-1]
        return ""

    def _status(self, status: str, message: str) -> DeploymentStatusOverview:
        trigger = "HEALTH_CHECK_FAILED" if status == "DEPLOY_FAILED" else "UNSPECIFIED"
        return deployment(status, message=message, trigger=trigger, **self._replicas)

    @property
    def state(self) -> LoadState:
        assert self.told is not None
        return state_in(application("RUNNING", model_x=self.told), "model-x")


def failing(error: Exception) -> Callable[[], None]:
    def load() -> None:
        raise error

    return load


@pytest.mark.parametrize("status", ["UNHEALTHY", "HEALTHY", "UPSCALING", "DOWNSCALING", "DEPLOY_FAILED"])
def test_a_model_that_ran_before_is_tried_three_times_and_then_stays_failed_with_its_reason(status):
    serve = Serve(status, "A replica's health check failed.", starting=1)
    for _ in range(MAX_LOADS):
        assert serve.state.phase != Phase.FAILED
        assert serve.start(failing(ModelLoadError(REASON))).endswith(REASON)
    assert serve.state == LoadState(Phase.FAILED, REASON)
    assert serve.n_held == 0
    serve.start(failing(ModelLoadError(REASON)))
    assert (serve.n_loads, serve.n_held) == (MAX_LOADS, 1)
    assert serve.state == LoadState(Phase.FAILED, REASON)


def test_a_replica_that_still_runs_is_ready_with_the_reason_why_others_do_not():
    serve = Serve("UNHEALTHY", running=1, starting=1)
    serve.start(failing(ModelLoadError(REASON)))
    assert serve.state == LoadState(Phase.READY)
    for _ in range(MAX_LOADS - 1):
        serve.start(failing(ModelLoadError(REASON)))
    assert serve.state == LoadState(Phase.READY, REASON)


def test_while_a_deployment_has_not_been_up_serve_counts():
    serve = Serve("UPDATING")
    for _ in range(2 * MAX_LOADS):
        assert serve.start(failing(ModelLoadError(REASON))).endswith(f"x cannot be loaded: {REASON}")
    assert (serve.n_loads, serve.n_held) == (2 * MAX_LOADS, 0)


@pytest.mark.parametrize("error", [LoadFailedForNow("memory is short"), OSError("the tier is gone")])
def test_what_may_pass_is_tried_on_and_ends_the_row(error):
    serve = Serve("UNHEALTHY")
    for one in [ModelLoadError(REASON)] * (MAX_LOADS - 1) + [error] * 5 + [ModelLoadError(REASON)] * (MAX_LOADS - 1):
        serve.start(failing(one))
        assert serve.state.phase == Phase.LOADING
    assert serve.n_held == 0
    assert serve.start(lambda: None) == ""


def test_a_model_that_came_up_begins_anew():
    serve = Serve("UNHEALTHY")
    for _ in range(2):
        for _ in range(MAX_LOADS - 1):
            serve.start(failing(ModelLoadError(REASON)))
        assert serve.start(lambda: None) == ""
        serve.told = deployment("HEALTHY", running=1)
    assert serve.n_held == 0


def test_without_a_controller_nothing_is_counted():
    serve = Serve("UNHEALTHY")
    serve.told = None
    for _ in range(2 * MAX_LOADS):
        assert serve.start(failing(ModelLoadError(REASON))).endswith(f"x cannot be loaded: {REASON}")
    assert serve.n_held == 0
