"""Measured tables, word for word as they lie in bench/results/, with their command."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "bench" / "results"
# Those in which another server, or another way of doing the same, was measured beside ours.
WITH_PEERS = {
    "throughput": "throughput-0.5b-2cores.json",
    "warm": "warm-0.5b-2cores.json",
    "shared-prefix": "shared-prefix-0.5b-2cores.json",
    "constrained": "constrained-0.5b-152k-2cores.json",
    "conformance": "conformance-demo.json, conformance-demo-llama-server.json",
    "swap": "swap-0.5b-2cores.json",
}
WHOLE_FILES = {"agents": "agents.md", "dialects": "conformance-dialects.md"}


def result(name: str) -> str:
    """What stands below the heading of a result. Raises `KeyError` where there is none."""
    if name in WHOLE_FILES:
        return (RESULTS / WHOLE_FILES[name]).read_text().partition("\n")[2].strip()
    return sections()[WITH_PEERS[name]]


def sections() -> dict[str, str]:
    """Of the README of the results, by heading."""
    _, *parts = (RESULTS / "README.md").read_text().split("\n## ")
    return {heading: body.strip() for heading, _, body in (part.partition("\n") for part in parts)}
