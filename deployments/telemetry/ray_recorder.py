"""Numbers for Ray's metrics endpoint, which every node has: Prometheus finds them there."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from deployments.metrics import Kind, Metric
from deployments.telemetry.recorder import Instruments, Tags

_NO_TAGS: Tags = {}


class RayRecorder:
    """The `Recorder` of a process of the cluster. One per process."""

    def __init__(self) -> None:
        self._instruments = Instruments(_make)

    def inc(self, name: str, n: float = 1.0, tags: Tags = _NO_TAGS) -> None:
        metric = self._instruments.of(name, Kind.COUNTER, tags)
        if n > 0:  # Ray refuses 0
            metric.inc(n, dict(tags))

    def set(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        self._instruments.of(name, Kind.GAUGE, tags).set(value, dict(tags))

    def observe(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        self._instruments.of(name, Kind.HISTOGRAM, tags).observe(value, dict(tags))


def _make(metric: Metric) -> Any:
    if metric.kind is Kind.HISTOGRAM:
        return Histogram(metric.name, metric.help, boundaries=list(metric.buckets), tag_keys=metric.tags)
    make: Any = Counter if metric.kind is Kind.COUNTER else Gauge
    return make(metric.name, metric.help, tag_keys=metric.tags)
