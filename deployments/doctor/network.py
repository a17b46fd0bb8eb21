"""Ports that a server needs, and to whom it is open."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from deployments.doctor.finding import Finding, fail, ok, warn

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
_TIMEOUT_S = 2.0
# HAProxy's, fixed by Ray Serve unless its variables say otherwise
_HAPROXY = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}


@dataclass(frozen=True, slots=True)
class PortFacts:
    """`taken`: by name, those that somebody listens on. `healthy`: what listens on the HTTP port answers
    `/health` as a server does. `keys`: how many API keys there are.
    """

    host: str
    port: int
    taken: tuple[tuple[str, int], ...] = ()
    healthy: bool = False
    keys: int = 0


def network_findings(facts: PortFacts) -> Iterator[Finding]:
    names = ", ".join(f"{port} ({name})" for name, port in facts.taken)
    if not facts.taken:
        yield ok("ports", f"{facts.port} and HAProxy's are free")
    elif facts.healthy:
        why = "if it is this server, all is well; another one cannot start beside it"
        yield warn("ports", f"a server answers at {facts.host}:{facts.port}", why, "stop it before you start another")
    else:
        todo = f"find who listens (ss -ltnp), or another http_options.port, {' or '.join(_HAPROXY)}"
        yield fail("ports", f"{names} taken", "Serve cannot start its door", todo)
    if facts.host not in _LOOPBACK and not facts.keys:
        why = "everyone who reaches the machine can use the models"
        todo = "http.api_keys (erllama key new), or host: 127.0.0.1"
        yield warn("access", f"the server listens on {facts.host} and asks for no key", why, todo)
    else:
        yield ok("access", f"{facts.host}, {facts.keys} keys")


def collect_network(host: str, port: int, keys: int) -> PortFacts:
    """Takes at most a few seconds; asks a server that runs for its health."""
    haproxy = [(name, int(os.environ.get(name, number))) for name, number in _HAPROXY.items()]
    taken = tuple((name, number) for name, number in [("HTTP", port), *haproxy] if not _is_free(host, number))
    return PortFacts(host, port, taken, ("HTTP", port) in taken and _is_healthy(host, port), keys)


def _is_free(host: str, port: int) -> bool:
    """Whether a socket can be bound; what was closed a moment ago does not count."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError:
            return False
    return True


def _is_healthy(host: str, port: int) -> bool:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    try:
        return httpx.get(f"http://{reachable}:{port}/health", timeout=_TIMEOUT_S).is_success
    except httpx.HTTPError:
        return False
