"""`/metrics` in Prometheus' text format, for those without Ray's exporter: the numbers of this ingress,
and those of the models as their replicas tell them now. Some have llama.cpp's names, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.responses import Response

from deployments.dialects.erllama_admin.cluster_snapshot import ClusterWatch, Snapshot
from deployments.http.middleware import require_admin
from deployments.metrics import BY_NAME, Kind
from deployments.telemetry.recorder import Sample
from deployments.telemetry.replica_samples import replica_samples

PATH = "/metrics"
Family = CounterMetricFamily | GaugeMetricFamily


def metrics_route(own: CollectorRegistry, cluster: ClusterWatch, *, is_open: bool) -> APIRouter:
    """`own` has the numbers of this process. An admin's key is needed unless `is_open`."""
    router = APIRouter()

    @router.get(PATH, include_in_schema=False)
    async def metrics(request: Request) -> Response:
        if not is_open:
            require_admin(request)
        text = generate_latest(own) + models_text(await cluster.snapshot())
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router


def models_text(snapshot: Snapshot) -> bytes:
    """The numbers of all models. Those whose replicas do not answer are missing."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected([*_families(model_samples(snapshot)), *_llama_families(snapshot)]))
    return generate_latest(registry)


def model_samples(snapshot: Snapshot) -> Iterator[Sample]:
    for model in snapshot.models:
        for state in model.replicas:
            yield from replica_samples(model.id, state.replica_id, state.stats, state.store, state.memory)


class _Collected:
    """A collector of what is there already."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def _families(samples: Iterable[Sample]) -> Iterator[Family]:
    made: dict[str, Family] = {}
    for sample in samples:
        metric = BY_NAME[sample.name]
        if metric.name not in made:
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            made[metric.name] = make(metric.name, metric.help, labels=metric.tags)
        made[metric.name].add_metric([sample.tags[tag] for tag in metric.tags], sample.value)
    yield from made.values()


def _llama_families(snapshot: Snapshot) -> Iterator[Family]:
    """What llama.cpp's server calls them, over all models: its clients look for these."""
    stats = [state.stats for model in snapshot.models for state in model.replicas]
    counts = [one.counts for one in stats]
    computed = sum(one.prompt_tokens - one.cached_tokens for one in counts)
    predicted = sum(one.completion_tokens for one in counts)
    yield CounterMetricFamily("llamacpp:prompt_tokens", "Number of prompt tokens processed.", computed)
    yield CounterMetricFamily("llamacpp:tokens_predicted", "Number of generation tokens processed.", predicted)
    yield CounterMetricFamily(
        "llamacpp:n_decode", "Total number of llama_decode() calls.", sum(one.steps for one in counts)
    )
    running, queued = sum(one.n_running for one in stats), sum(one.n_queued for one in stats)
    yield GaugeMetricFamily("llamacpp:requests_processing", "Number of requests processing.", running)
    yield GaugeMetricFamily("llamacpp:requests_deferred", "Number of requests deferred.", queued)
