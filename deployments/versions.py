"""What restarts with a changed configuration: each deployment by what it depends on itself.

Serve gives all deployments of an application from a config file one code version, the hash of the
file's `import_path`, `runtime_env` and `args` (`get_app_code_version`), and replaces every replica
whose code version changes. Any changed key would so restart every model. But the version travels in
the `DeploymentConfig` that our own `Deployment` object carries: `get_deploy_args` sets
`deployment_config.version` and serialises it at once. A config that keeps a version of its own keeps
the replicas of a model as long as that stays; what Serve itself compares besides (resources, numbers
of replicas, timeouts) is left to it. Imperative deployments (`serve.run`) take `Deployment._version`.
`deployments:` of a config file overrides neither. There is no public way: the `version` of
`serve.deployment` is gone, and an application per model would need the ingress to know their names.

A model that failed to load is tried again only when its own version changes, too: Serve takes no
notice of a deployment that is equal to the one before.

Private names of Ray, hence: where they are missing everything restarts together, as it would
without this module, and a line in the log says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from typing import Any

import ray
from ray import serve

from deployments.config import BuildArgs, ModelSpec, RoutingSpec
from deployments.dialects.llama_server.props import server_version

log = logging.getLogger(__name__)

# what Serve compares by itself, or changes in a replica that runs
_LEFT_TO_SERVE = frozenset(
    [
        *("aliases", "sampling", "reply_grammar"),  # the ingress's affair
        *("num_replicas", "autoscaling", "num_cpus", "num_gpus", "memory", "resources"),
        *("graceful_shutdown_timeout_s", "max_surge_percent", "keep_alive_s"),
    ]
)


def model_version(spec: ModelSpec, args: BuildArgs) -> str:
    """Of a model's replicas: of all that they are made with, and of nothing else. A new argument of
    `Replica` belongs here, too: where the version stays, Serve keeps the arguments of before.
    """
    own = {name: value for name, value in asdict(spec).items() if name not in _LEFT_TO_SERVE}
    salts = args.http.salts(spec.id) if spec.prewarm else ()  # nothing else asks for them
    scheduler = (args.scheduler.enabled, args.scheduler.sources, args.scheduler.total_bytes)
    shared = (asdict(args.store), args.policy, scheduler, _published(args.routing))
    return _digest(own, shared, salts, server_version(), _runtime_env())


def _published(routing: RoutingSpec) -> tuple[int | float, ...] | None:
    """What of it a replica heeds that tells routers what it holds; the rest is theirs."""
    return (routing.chunk_tokens, routing.stats_period_s, routing.max_published) if routing.enabled else None


def pin_version(deployment: serve.Deployment, own: str) -> serve.Deployment:
    """A deployment whose replicas are replaced when `own` changes, and not when others' do."""
    try:
        config: Any = deployment._deployment_config
        config.__class__ = _pinned(type(config), own)
        deployment._version = own
    except (AttributeError, TypeError, ValueError) as error:
        log.warning("with any change of the configuration all models restart: Ray has changed (%r)", error)
    return deployment


def _pinned(base: type[Any], own: str) -> type[Any]:
    class PinnedConfig(base):  # type: ignore[misc]
        """Ignores the version that Serve gives to all."""

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, own if name == "version" else value)

    return PinnedConfig


def _runtime_env() -> str:
    """Serve builds the application in the environment that its replicas get."""
    return str(ray.get_runtime_context().runtime_env) if ray.is_initialized() else ""


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()
