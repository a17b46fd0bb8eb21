"""What the console tells while models load, fail and come back. No Ray runs."""

from __future__ import annotations

from collections.abc import Sequence

from ray.serve.schema import ApplicationStatusOverview, DeploymentStatusOverview

from deployments.console import Progress
from tests.support.serve_states import application, deployment

URL = "http://127.0.0.1:8000/v1"
LOADING = deployment("UPDATING", starting=1)
RETRYING = deployment("UPDATING", message="Retrying. Error:\nOSError: the disk is gone")
READY = deployment("HEALTHY", running=1)
ASLEEP = deployment("HEALTHY")
FAILED = deployment("DEPLOY_FAILED", message="Error:\nOSError: the disk is gone")


def told(**deployments: DeploymentStatusOverview) -> dict[str, ApplicationStatusOverview]:
    return {"app": application("DEPLOYING", **deployments)}


def progress(*ids: str, times: Sequence[float] = ()) -> Progress:
    clock = iter(times)
    return Progress([("app", f"model-{name}", name) for name in ids], URL, clock=lambda: next(clock))


def test_each_change_is_told_once_and_the_url_when_all_are_ready():
    console = progress("a", "b", times=(10.0, 10.0, 13.25))
    assert console.lines({}) == ["a: loading", "b: loading"]
    assert console.lines(told(model_a=LOADING, model_b=LOADING, ingress=LOADING)) == []
    assert console.lines(told(model_a=READY, model_b=LOADING, ingress=READY)) == ["a: ready in 3.2 s"]
    assert console.lines(told(model_a=READY, model_b=ASLEEP, ingress=READY)) == [
        "b: asleep, the first request loads it",
        f"Serving at {URL}",
    ]
    assert console.lines(told(model_a=READY, model_b=ASLEEP, ingress=READY)) == []


def test_a_failure_is_told_with_its_reason_and_the_others_are_served():
    console = progress("a", "b", times=(0.0, 0.0))
    assert console.lines(told(model_a=ASLEEP, model_b=RETRYING, ingress=READY)) == [
        "a: asleep, the first request loads it",
        "b: loading, after a failure: the disk is gone",
    ]
    assert console.lines(told(model_a=ASLEEP, model_b=FAILED, ingress=READY)) == [
        "b: failed: the disk is gone",
        f"Serving at {URL}, without b",
    ]


def test_a_model_some_of_whose_replicas_are_missing_for_good_is_ready_with_the_reason():
    console = progress("a", times=(0.0, 1.0))
    crippled = deployment("DEPLOY_FAILED", message="Error:\nOSError: the disk is gone", running=1)
    assert console.lines(told(model_a=LOADING)) == ["a: loading"]
    assert console.lines(told(model_a=READY)) == ["a: ready in 1.0 s"]
    assert console.lines(told(model_a=crippled)) == ["a: ready, but not all of it: the disk is gone"]


def test_without_a_front_there_is_no_url():
    console = progress("a")
    assert console.lines(told(model_a=ASLEEP, ingress=FAILED)) == ["a: asleep, the first request loads it"]
