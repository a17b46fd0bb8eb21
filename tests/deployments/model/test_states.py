"""What Serve says of a deployment, in one line. No Ray runs."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from deployments.model import states
from deployments.model.states import (
    LoadState,
    ModelEnded,
    Phase,
    RecentState,
    cannot_load,
    load_state,
    one_line,
    state_in,
)
from tests.support.serve_states import application, deployment

PAGE = """The deployment failed to start 3 times in a row. This may be due to a problem with its constructor or initial \
health check failing. See controller logs for details. Error:
\x1b[36mray::ServeReplica:erllama:model-x.initialize_and_get_metadata()\x1b[39m (pid=1, ip=192.0.2.2)
  File "replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "check.py", line 92, in inspect_gguf
    raise error
erllama.errors.ModelLoadError: /m/x.gguf: there is no such file

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "deployment.py", line 60, in __init__
    raise ModelLoadError(f"{spec.id} {CANNOT_LOAD}{reason}") from error
erllama.errors.ModelLoadError: x cannot be loaded: /m/x.gguf: there is no such file
"""
REASON = "/m/x.gguf: there is no such file"
DIED = "HEALTH_CHECK_FAILED"
AGAIN = "A replica failed to start with exception. Retrying. Error:\nx cannot be loaded (failure {} of 3): " + REASON


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (PAGE, REASON),
        ("Error:\nTraceback:\n  File x\nModuleNotFoundError: No module named 'y'\n", "No module named 'y'"),
        ("The actor died unexpectedly before finishing this task.\n\tclass_name: x", "The actor died unexpectedly before finishing this task."),
        ("", ""),
        ("w" * 1000, "w" * 500),
    ],
)  # fmt: skip
def test_a_page_of_traceback_becomes_its_reason(message, line):
    assert one_line(message) == line


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (application("DEPLOYING"), LoadState(Phase.LOADING)),
        (application("DEPLOY_FAILED", "ImportError: no"), LoadState(Phase.FAILED, "no")),
        *[
            (application("DEPLOYING", model_x=status), state)
            for status, state in (
                (deployment("UPDATING", starting=1), LoadState(Phase.LOADING)),
                (deployment("UPDATING", message=PAGE), LoadState(Phase.LOADING, REASON)),
                (deployment("HEALTHY", running=1), LoadState(Phase.READY)),
                (deployment("UPDATING", running=1, starting=1), LoadState(Phase.READY)),
                (deployment("UNHEALTHY", message="A replica's health check failed."), LoadState(Phase.LOADING)),
                (deployment("HEALTHY"), LoadState(Phase.ASLEEP)),
                (deployment("DEPLOY_FAILED", message=PAGE), LoadState(Phase.FAILED, REASON)),
                (deployment("DEPLOY_FAILED", message=PAGE, running=1), LoadState(Phase.READY, REASON)),
                (deployment("DEPLOY_FAILED", message="It died.", trigger=DIED), LoadState(Phase.LOADING)),
                (deployment("UNHEALTHY", message=AGAIN.format(2)), LoadState(Phase.LOADING, REASON)),
                (deployment("UNHEALTHY", message=AGAIN.format(3)), LoadState(Phase.FAILED, REASON)),
            )
        ],
    ],
)
def test_the_state_of_a_model_is_what_its_replicas_say(told, state):
    assert state_in(told, "model-x") == state


def test_many_who_wait_ask_once():
    asked = []

    def ask() -> LoadState:
        asked.append(LoadState(Phase.READY))
        return asked[-1]

    async def story(kept_s: float) -> None:
        recent = RecentState(ask, kept_s)
        assert await asyncio.gather(*(recent.get() for _ in range(20))) == [LoadState(Phase.READY)] * 20

    asyncio.run(story(kept_s=3600))
    assert len(asked) == 1
    asyncio.run(story(kept_s=0))
    assert len(asked) == 21


@pytest.mark.parametrize("was_there", [False, True])
def test_an_application_that_is_not_there_is_to_come_or_has_ended(monkeypatch, was_there):
    monkeypatch.setattr(states.serve, "status", lambda: SimpleNamespace(applications={}))
    state = load_state("erllama.hub.x", "model-x", was_there=was_there)
    assert state.phase is (Phase.ENDED if was_there else Phase.LOADING)
    assert isinstance(cannot_load(state), ModelEnded) is was_there


def test_a_controller_that_cannot_be_asked_has_ended_nothing(monkeypatch):
    def fails():
        raise RuntimeError("the controller restarts")

    monkeypatch.setattr(states.serve, "status", fails)
    assert load_state("erllama.hub.x", "model-x", was_there=True) == LoadState(Phase.LOADING)
