"""Where numbers go, and that all of them are declared."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deployments.metrics import BY_NAME, METRICS, TAGS, Kind, Source, status_class
from deployments.telemetry.recorder import PrometheusRecorder, Recorders, Sample, SampleFeed
from deployments.telemetry.replica_samples import replica_samples
from tests.support.cluster_fakes import replica_state

OPEN = "erllama_requests_open"
REQUESTS = "erllama_requests"
OPENAI = {"dialect": "openai", "status": "2xx"}


def values(recorder):
    families = text_string_to_metric_families(generate_latest(recorder.registry).decode())
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_declaration_is_whole(metric):
    assert re.fullmatch(r"erllama_[a-z_]+[a-z]", metric.name)
    assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
    assert set(metric.tags) <= TAGS.keys()
    assert metric.help.endswith(".")
    assert metric.unit in ("", *metric.name.split("_"))
    assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_tags_are_bounded_and_used():
    assert {tag for metric in METRICS for tag in metric.tags} == TAGS.keys()
    assert all(tag.values or tag.bound for tag in TAGS.values())
    assert len(BY_NAME) == len(METRICS)


@given(st.integers())
def test_a_status_has_a_class_whatever_it_is(status):
    assert status_class(status) in TAGS["status"].values


@pytest.mark.parametrize(
    ("status", "name"), [(200, "2xx"), (304, "3xx"), (404, "4xx"), (429, "429"), (499, "499"), (529, "5xx")]
)
def test_the_class_of_a_status(status, name):
    assert status_class(status) == name


def test_a_replica_tells_every_number_that_is_declared_for_it_and_no_other():
    state = replica_state()
    samples = list(replica_samples("demo", "r1", state.stats, state.store, state.memory))
    assert {sample.name for sample in samples} == {m.name for m in METRICS if m.source is Source.REPLICA}
    assert all(set(sample.tags) == set(BY_NAME[sample.name].tags) for sample in samples)
    keys = [(sample.name, *sorted(sample.tags.items())) for sample in samples]
    assert len(set(keys)) == len(keys)
    for sample in samples:
        for tag, value in sample.tags.items():
            assert TAGS[tag].values is None or value in TAGS[tag].values


def test_a_replica_without_a_store_tells_the_rest():
    state = replica_state()
    names = {sample.name for sample in replica_samples("demo", "r1", state.stats, None, state.memory)}
    assert names == {m.name for m in METRICS if m.source is Source.REPLICA and "_store_" not in m.name}


def test_a_feed_adds_what_has_been_counted_since():
    recorder = PrometheusRecorder()
    feed = SampleFeed(recorder)
    for total, n_open in ((3, 5), (3, 4), (7, 0)):
        feed.feed([Sample(REQUESTS, total, OPENAI), Sample(OPEN, n_open)])
    assert values(recorder)["erllama_requests_total", frozenset(["openai", "2xx"])] == 7
    assert values(recorder)[OPEN, frozenset()] == 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda to: to.inc("erllama_nothing"), KeyError),
        (lambda to: to.inc(OPEN), ValueError),
        (lambda to: to.inc(REQUESTS, 1, {"dialect": "openai"}), ValueError),
        (lambda to: to.inc(REQUESTS, 1, {**OPENAI, "request_id": "req-1"}), ValueError),
        (lambda to: to.observe("erllama_requests", 1.0, OPENAI), ValueError),
    ],
)
def test_what_is_not_declared_is_refused(call, error):
    with pytest.raises(error):
        call(PrometheusRecorder())


def test_several_sinks_get_the_same():
    one, two = PrometheusRecorder(), PrometheusRecorder()
    both = Recorders(one, two)
    both.inc(REQUESTS, 2, OPENAI)
    both.set(OPEN, 3)
    both.observe("erllama_queue_seconds", 0.02, {"model": "demo"})
    told = values(one)
    assert {key: value for key, value in told.items() if not key[0].endswith("_created")} == {
        key: value for key, value in values(two).items() if not key[0].endswith("_created")
    }
    assert told["erllama_queue_seconds_bucket", frozenset(["demo", "0.025"])] == 1
    assert told["erllama_queue_seconds_bucket", frozenset(["demo", "0.01"])] == 0
