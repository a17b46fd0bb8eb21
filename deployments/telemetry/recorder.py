"""Where numbers go. Names and tags are those that `deployments.metrics` declares; another name is a
`KeyError`, other tags are a `ValueError`. Any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from deployments.metrics import BY_NAME, Kind, Metric

Tags = Mapping[str, str]
_NO_TAGS: Tags = {}


@dataclass(frozen=True, slots=True)
class Sample:
    """A number at this moment: of a counter its total, of a histogram one observation."""

    name: str
    value: float
    tags: Tags = field(default_factory=dict)


class Recorder(Protocol):
    """One sink."""

    def inc(self, name: str, n: float = 1.0, tags: Tags = _NO_TAGS) -> None:
        """Add to a counter; nothing for 0."""

    def set(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        """What a gauge is now."""

    def observe(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        """One value of a histogram."""


def declared(name: str, kind: Kind, tags: Tags) -> Metric:
    """The declaration that a call means. Raises for one that does not fit."""
    metric = BY_NAME[name]
    if metric.kind is not kind or tags.keys() != set(metric.tags):
        raise ValueError(f"{name} is a {metric.kind} with the tags {metric.tags}, not a {kind} with {tuple(tags)}")
    return metric


class Instruments:
    """What a metrics library has for each metric: made when it is first used, by `make`. Any thread."""

    def __init__(self, make: Callable[[Metric], Any]) -> None:
        self._make = make
        self._made: dict[str, Any] = {}
        self._lock = Lock()

    def of(self, name: str, kind: Kind, tags: Tags) -> Any:
        """Raises as `declared` does."""
        metric = declared(name, kind, tags)
        with self._lock:
            made = self._made.get(name)
            if made is None:
                made = self._made[name] = self._make(metric)
        return made


class PrometheusRecorder:
    """Keeps them in this process, for Prometheus' text format: see `registry`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instruments = Instruments(self._make)

    def inc(self, name: str, n: float = 1.0, tags: Tags = _NO_TAGS) -> None:
        self._of(name, Kind.COUNTER, tags).inc(n)

    def set(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        self._of(name, Kind.GAUGE, tags).set(value)

    def observe(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        self._of(name, Kind.HISTOGRAM, tags).observe(value)

    def _of(self, name: str, kind: Kind, tags: Tags) -> Any:
        instrument = self._instruments.of(name, kind, tags)
        return instrument.labels(**tags) if tags else instrument

    def _make(self, metric: Metric) -> Any:
        if metric.kind is Kind.HISTOGRAM:
            return Histogram(metric.name, metric.help, metric.tags, registry=self.registry, buckets=metric.buckets)
        make: Any = Counter if metric.kind is Kind.COUNTER else Gauge
        return make(metric.name, metric.help, metric.tags, registry=self.registry)


class Recorders:
    """Several sinks as one."""

    def __init__(self, *sinks: Recorder) -> None:
        self._sinks = sinks

    def inc(self, name: str, n: float = 1.0, tags: Tags = _NO_TAGS) -> None:
        for sink in self._sinks:
            sink.inc(name, n, tags)

    def set(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        for sink in self._sinks:
            sink.set(name, value, tags)

    def observe(self, name: str, value: float, tags: Tags = _NO_TAGS) -> None:
        for sink in self._sinks:
            sink.observe(name, value, tags)


class SampleFeed:
    """Feeds a recorder from totals that someone else counts: of a counter it gets what was added since
    the last time. One thread at a time.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def feed(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            match BY_NAME[sample.name].kind:
                case Kind.COUNTER:
                    self._add(sample)
                case Kind.GAUGE:
                    self._recorder.set(sample.name, sample.value, sample.tags)
                case Kind.HISTOGRAM:
                    self._recorder.observe(sample.name, sample.value, sample.tags)

    def _add(self, sample: Sample) -> None:
        key = sample.name, tuple(sorted(sample.tags.items()))
        added = sample.value - self._totals.get(key, 0.0)
        self._totals[key] = sample.value
        if added > 0:
            self._recorder.inc(sample.name, added, sample.tags)
