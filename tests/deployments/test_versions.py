"""What a model's replicas depend on, and so what restarts them."""

import pickle
from copy import deepcopy

import pytest

from deployments.config import BuildArgs
from deployments.memory.service import MemoryScheduler
from deployments.model_app import make_deployment
from deployments.versions import model_version, pin_version

BASE = {"models": [{"id": "a", "path": "demo"}, {"id": "b", "path": "demo"}]}
KEY = {"key": "secret", "name": "alice"}


def version(name="a", **changes):
    args = BuildArgs.model_validate({**BASE, **changes})
    return model_version(next(spec for spec in args.models if spec.id == name), args)


def model(**changes):
    return [{"id": "a", "path": "demo", **changes}, {"id": "b", "path": "demo"}]


@pytest.mark.parametrize(
    "changes",
    [
        {"models": model(n_ctx=1024)},
        {"models": model(path="other.gguf")},
        {"models": model(type_k="q8_0")},
        {"models": model(drain_s=1.0)},
        {"models": model(chat_template="{{ messages }}")},
        {"store": {"tiers": []}},
        {"policy": {"min_tokens": 7}},
        {"scheduler": {"sources": ["none"]}},
        {"routing": {"enabled": False}},
    ],
    ids=str,
)
def test_what_its_replicas_are_made_with_restarts_a_model(changes):
    assert version(**changes) != version()


@pytest.mark.parametrize(
    "changes",
    [
        {"models": [*model(), {"id": "c", "path": "demo"}]},
        {"models": [model()[0], {"id": "b", "path": "demo", "n_ctx": 512}]},
        {"models": model(aliases=["gpt-*"], sampling={"temperature": 0.1}, keep_alive_s=5.0)},
        {"http": {"api_keys": [KEY], "keepalive_s": 3.0}},
        {"scheduler": {"high": 0.9}},
        {"failover": {"max_attempts": 2}},
        {"hub": {"enabled": True}},
        {"default_model": "b"},
    ],
    ids=str,
)
def test_what_is_others_affair_does_not(changes):
    assert version(**changes) == version()


def test_new_tenants_matter_to_a_model_that_prewarms_for_them():
    assert version(models=model(prewarm=1), http={"api_keys": [KEY]}) != version(models=model(prewarm=1))


def test_serves_own_version_does_not_replace_ours():
    deployment = pin_version(make_deployment(MemoryScheduler, "x", num_replicas=1), "ours")
    config = deepcopy(deployment.options(num_replicas=2)._deployment_config)
    config.version = "the hash of all"
    assert config.version == "ours"
    assert type(config).from_proto_bytes(config.to_proto_bytes()).version == "ours"
    assert deployment._version == "ours"
    assert pickle.loads(pickle.dumps(config.num_replicas)) == 2


def test_another_ray_restarts_everything_and_says_so(caplog):
    class Strange:
        __slots__ = ()

    strange = Strange()
    assert pin_version(strange, "ours") is strange
    assert "all models restart" in caplog.text
