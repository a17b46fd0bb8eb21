"""Ray takes every number as it is declared."""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler

import pytest
from ray.util import metrics as ray_metrics

from deployments.metrics import METRICS, Kind
from deployments.serve_log import share_serve_log
from deployments.telemetry.access_log import JsonFormatter
from deployments.telemetry.ray_recorder import RayRecorder

RECORDS = {Kind.COUNTER: "inc", Kind.GAUGE: "set", Kind.HISTOGRAM: "observe"}
CLASSES = {Kind.COUNTER: "Counter", Kind.GAUGE: "Gauge", Kind.HISTOGRAM: "Histogram"}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_ray_takes_it(metric, monkeypatch):
    told = []
    kind = getattr(ray_metrics, CLASSES[metric.kind])
    monkeypatch.setattr(kind, RECORDS[metric.kind], lambda self, value, tags: told.append((self.info, value, tags)))
    tags = dict.fromkeys(metric.tags, "x")
    recorder = RayRecorder()
    getattr(recorder, RECORDS[metric.kind])(metric.name, 2.0, tags)
    [(info, value, given)] = told
    assert (info["name"], info["tag_keys"], value, given) == (metric.name, metric.tags, 2.0, tags)


def test_nothing_is_counted_for_nothing():
    """Ray refuses it."""
    RayRecorder().inc("erllama_hub_swaps", 0, {"what": "woken"})


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_of_a_process_have_the_form_that_is_asked_for(form):
    serve, ours = (
        logging.getLogger("ray.serve"),
        [logging.getLogger(n) for n in ("deployments", "erllama", "cache_store")],
    )
    file = logging.StreamHandler()
    before = [(one, one.handlers, one.level, one.propagate, list(one.filters)) for one in (serve, *ours)]
    try:
        serve.handlers = [MemoryHandler(10, target=file)]
        share_serve_log(form)
        assert isinstance(file.formatter, JsonFormatter) == (form == "json")
        assert all(one.handlers == serve.handlers for one in ours)
    finally:
        for one, handlers, level, propagate, filters in before:
            one.handlers, one.level, one.propagate, one.filters = handlers, level, propagate, filters
