"""What a model's replicas depend on, and so what restarts them."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private import deploy_utils
from ray.serve._private.application_state import override_deployment_info
from ray.serve._private.build_app import build_app as serve_builds
from ray.serve._private.deployment_info import DeploymentInfo
from ray.serve._private.version import DeploymentVersion
from ray.serve.schema import ServeApplicationSchema

from deployments import app
from deployments.config import BuildArgs
from deployments.cpu_shares import CpuShare, CpuSupply
from deployments.memory.service import MemoryScheduler
from deployments.model_app import make_deployment, static_model_app
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
        {"routing": {"chunk_tokens": 64}},
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
        {"routing": {"guard_tokens": 1.0}},
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


# --- against Serve's own code: what it would restart ----------------------------------------------


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, DeploymentVersion]]:
    """What Serve's controller knows of each deployment of a config file with these `args` and, of
    models, overrides under `deployments:`. Nodes have 8 CPUs.
    """
    monkeypatch.setattr(app, "cpu_supply", lambda *_: CpuSupply(8))
    context = SimpleNamespace(get_job_id=lambda: "01000000")
    monkeypatch.setattr(deploy_utils, "ray", SimpleNamespace(get_runtime_context=lambda: context))

    def versions(args: dict[str, Any], overrides: tuple[dict[str, Any], ...] = ()) -> dict[str, DeploymentVersion]:
        schema = ServeApplicationSchema(import_path="deployments.app:build_app", args=args, deployments=list(overrides))
        infos = {}
        for one in serve_builds(app.build_app(args), name="erllama").deployments:
            sent = deploy_utils.get_deploy_args(
                one.name,
                replica_config=one._replica_config,
                deployment_config=one._deployment_config,
                version=deploy_utils.get_app_code_version(schema),
            )
            infos[one.name] = deploy_utils.deploy_args_to_deployment_info(**sent, app_name="erllama")
        return {name: known(info) for name, info in override_deployment_info(infos, schema).items()}

    return versions


def known(info: DeploymentInfo) -> DeploymentVersion:
    return DeploymentVersion(info.version, info.deployment_config, info.replica_config.ray_actor_options)


def restarted(old: dict[str, DeploymentVersion], new: dict[str, DeploymentVersion]) -> set[str]:
    return {name for name in old.keys() & new.keys() if old[name].requires_actor_restart(new[name])}


A, B = ({"id": name, "path": "demo", "num_cpus": 1} for name in "ab")
ALWAYS = {"ingress", "scheduler"}


@pytest.mark.parametrize(
    ("new", "models"),
    [
        ({"models": [A, {**B, "n_ctx": 512}, {**B, "id": "c"}]}, {"model-b"}),
        ({"models": [A]}, set()),
        ({"models": [A, {**B, "num_cpus": 2}]}, {"model-b"}),
        ({"models": [A, {**B, "num_replicas": 2}]}, set()),
        ({"models": [A, {**B, "autoscaling": {"max_replicas": 3}}]}, set()),
        ({"models": [A, {**B, "max_surge_percent": 100, "graceful_shutdown_timeout_s": 60.0}]}, set()),
        ({"models": [A, B], "http": {"api_keys": [KEY]}}, set()),
        ({"models": [A, B], "store": {"tiers": []}}, {"model-a", "model-b"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value),  # the same in every process
)
def test_what_serve_restarts(deployed, new, models):
    assert restarted(deployed({"models": [A, B]}), deployed(new)) == ALWAYS | models


def test_overrides_in_a_config_file_keep_the_version(deployed):
    old = deployed({"models": [A, B]})
    new = deployed({"models": [A, B], "default_model": "a"}, ({"name": "model-a", "num_replicas": 2},))
    assert restarted(old, new) == ALWAYS
    assert new["model-a"].deployment_config.num_replicas == 2


def test_a_second_replica_needs_nothing_that_the_first_was_not_made_with():
    def made_with(n: int) -> Any:
        args = BuildArgs.model_validate({"models": [{**A, "num_replicas": n}]})
        kwargs = dict(static_model_app(args.models[0], args, CpuShare(1, 1))._bound_deployment.init_kwargs)
        return {name: value for name, value in kwargs.items() if name != "salts"}

    assert made_with(1) == made_with(2)
