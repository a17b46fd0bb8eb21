"""What the memory scheduler counts reaches a recorder under declared names."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deployments.config import ReleaseKind
from deployments.memory.messages import Reading, ReleaseOrder, ReleaseRecord, ReleaseResult
from deployments.memory.service import RayMeter
from deployments.metrics import METRICS, Source
from deployments.telemetry.recorder import PrometheusRecorder

ORDER = ReleaseOrder("r", "demo", "a", "ram", ReleaseKind.CONTEXT, 100)


def told(*results: ReleaseResult, exhausted: bool = False) -> dict[str, float]:
    recorder = PrometheusRecorder()
    meter = RayMeter(recorder)
    meter.reading(Reading("a", "ram", 60, 100), exhausted=exhausted)
    for result in results:
        meter.release(ReleaseRecord(1.0, ORDER, result, 0.5))
    families = text_string_to_metric_families(generate_latest(recorder.registry).decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("exhausted", [False, True])
def test_every_number_of_the_scheduler_is_told(exhausted):
    numbers = told(ReleaseResult(70), exhausted=exhausted)
    assert {m.exported for m in METRICS if m.source is Source.SCHEDULER} <= numbers.keys()
    assert (numbers["erllama_memory_used_bytes"], numbers["erllama_memory_total_bytes"]) == (60, 100)
    assert numbers["erllama_memory_exhausted"] == exhausted


@pytest.mark.parametrize("freed", [0, -5])  # a process may have grown meanwhile
def test_a_release_that_freed_nothing_counts_without_bytes(freed):
    numbers = told(ReleaseResult(freed, "in use"), ReleaseResult(30))
    assert (numbers["erllama_memory_releases_total"], numbers["erllama_memory_freed_bytes_total"]) == (2, 30)
