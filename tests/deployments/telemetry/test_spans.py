"""Requests as OpenTelemetry spans."""

from __future__ import annotations

import json
import logging
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import ValidationError

from deployments.http.options import HttpOptions
from deployments.ingress.http_app import make_http_app
from deployments.telemetry import spans as spans_module
from deployments.telemetry import trace_options
from deployments.telemetry.access_log import JsonFormatter, trace_id
from deployments.telemetry.spans import RequestSpans, operation_of
from deployments.telemetry.trace_options import TraceOptions
from erllama.errors import EngineStopped
from erllama.events import CacheHitKind, Done, FinishReason, RequestStats, Tokens
from tests.support.http_fakes import FakeModel, http_client, replies, served

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}
OPTIONS = TraceOptions(endpoint="http://nowhere:4318/v1/traces", service_name="tests")


async def warm_reply(request):
    yield [Tokens((65, 66), "AB")]
    stats = RequestStats(
        *(len(request.prompt_tokens), 2, 5, 3.0, 30.0, 4.0, CacheHitKind.PARTIAL, FinishReason.STOP),
        cache_tier="disk",
        restore_ms=12.0,
    )
    yield [Done(stats, "key")]


async def traced(*calls, model=None, sample=1.0):
    """The spans of requests by name, those of one trace in the order of their beginning."""
    exporter = InMemorySpanExporter()
    options = TraceOptions(endpoint=OPTIONS.endpoint, service_name="tests", sample=sample)
    with closing(RequestSpans(SimpleSpanProcessor(exporter), options, "1.2.3")) as spans:
        app = make_http_app([served(model or FakeModel(warm_reply))], HttpOptions(resume_grace_s=0.0), spans=spans)
        async with http_client(app) as client:
            for path, body, headers in calls:
                if body is None:
                    await client.get(path, headers=headers)
                else:
                    await client.post(path, json=body, headers=headers)
    return sorted(exporter.get_finished_spans(), key=lambda span: span.start_time)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_is_a_trace_of_its_parts(stream):
    spans = await traced((CHAT, {**HI, "stream": stream}, CLIENT))
    by_name = {span.name: span for span in spans}
    root, model = by_name[f"POST {CHAT}"], by_name["chat demo"]
    assert (root.kind, model.kind) == (SpanKind.SERVER, SpanKind.INTERNAL)
    assert by_name.keys() == {root.name, model.name, "queue", "prefill", "restore", "decode"}
    assert {span.context.trace_id for span in spans} == {int(TRACE, 16)}
    assert (root.parent.span_id, root.context.trace_state["vendor"]) == (int(PARENT, 16), "1")
    inside = {"chat demo": root, "queue": model, "prefill": model, "decode": model, "restore": by_name["prefill"]}
    for name, around in inside.items():
        assert by_name[name].parent.span_id == around.context.span_id, name
    took_ms = {span.name: (span.end_time - span.start_time) / 1e6 for span in spans}
    told = {"queue": 3.0, "prefill": 30.0, "restore": 12.0, "decode": 4.0}
    assert {name: took_ms[name] for name in told} == pytest.approx(told, abs=0.01)
    assert by_name["restore"].start_time == by_name["prefill"].start_time == by_name["queue"].end_time
    assert by_name["decode"].start_time == by_name["prefill"].end_time == model.events[0].timestamp
    assert (model.events[0].name, by_name["restore"].attributes["erllama.cache.tier"]) == ("first_token", "disk")
    assert abs(root.end_time - time.time_ns()) < 60e9  # the time of day


async def test_attributes_are_those_of_the_conventions():
    [root, *spans] = [
        span
        for span in await traced((CHAT, HI, {"x-request-id": "my-id"}))
        if span.name in (f"POST {CHAT}", "chat demo")
    ]
    http = dict(root.attributes)
    assert (http["http.route"], http["http.response.status_code"], http["erllama.request_id"]) == (CHAT, 200, "my-id")
    assert dict(root.resource.attributes)["service.name"] == "tests"
    [model] = spans
    told = dict(model.attributes)
    known = {getattr(gen_ai_attributes, name) for name in dir(gen_ai_attributes) if name.startswith("GEN_AI_")}
    assert {name for name in told if name.startswith("gen_ai.")} <= known
    assert (told["gen_ai.operation.name"], told["gen_ai.request.model"]) == ("chat", "demo")
    assert (told["gen_ai.usage.output_tokens"], told["gen_ai.usage.cache_read.input_tokens"]) == (2, 5)
    assert (told["gen_ai.response.finish_reasons"], told["gen_ai.request.stream"]) == (("stop",), False)
    assert 0 <= told["gen_ai.response.time_to_first_chunk"] < 60


async def test_what_fails_is_an_error_and_what_asks_no_model_has_one_span():
    failing = FakeModel(replies("", error=EngineStopped("gone")))
    spans = await traced(
        (CHAT, HI, {}), ("/v1/models", None, {}), ("/nowhere", None, {}), ("/health", None, {}), model=failing
    )
    names = {span.name: span.status.status_code for span in spans}
    assert names == {
        f"POST {CHAT}": StatusCode.ERROR,
        "chat demo": StatusCode.UNSET,
        "GET /v1/models": StatusCode.UNSET,
    }


@pytest.mark.parametrize(
    ("headers", "sample", "n"),
    [
        ({}, 0.0, 0),
        ({}, 1.0, 6),
        (CLIENT, 0.0, 6),  # the client has begun the trace, and decides
        ({"traceparent": CLIENT["traceparent"][:-1] + "0"}, 1.0, 0),
        ({"traceparent": "nonsense"}, 1.0, 6),
    ],
)
async def test_who_decides_what_is_sampled(headers, sample, n):
    assert len(await traced((CHAT, HI, headers), sample=sample)) == n


@pytest.mark.parametrize(
    ("header", "told"),
    [(CLIENT["traceparent"], TRACE), ("", ""), ("nonsense", ""), (f"00-{TRACE}-{PARENT}", ""), ("é" * 55, "")],
)
async def test_the_log_names_the_trace_of_the_client(header, told, caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    assert trace_id(header) == told
    async with http_client(make_http_app([served(FakeModel())])) as client:
        await client.get("/v1/models", headers={"traceparent": header.encode("latin-1")})
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert line["trace_id"] == told


async def test_the_log_names_the_trace_that_begins_here(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    [root, *_] = await traced((CHAT, HI, {}))
    line = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert int(line["trace_id"], 16) == root.context.trace_id
    caplog.clear()
    await traced((CHAT, HI, {}), sample=0.0)
    assert json.loads(JsonFormatter().format(caplog.records[-1]))["trace_id"] == ""


class Broken:
    def record(self, facts, slow):
        raise RuntimeError("gone")

    def close(self):
        pass


async def test_what_makes_spans_costs_no_request(caplog):
    caplog.set_level(logging.INFO, logger="deployments.http")
    async with http_client(make_http_app([served(FakeModel())], spans=Broken())) as client:
        assert (await client.post(CHAT, json=HI)).status_code == 200
    assert "event=request_not_counted" in caplog.text
    assert "event=request " in caplog.text


@pytest.mark.parametrize(
    ("dialect", "route", "operation"),
    [
        ("openai", CHAT, "chat"),
        ("openai", "/v1/completions", "text_completion"),
        ("llamaserver", "/completion", "text_completion"),
        ("ollama", "/api/chat", "chat"),
        ("ollama", "/api/generate", "text_completion"),
        ("anthropic", "/v1/messages", "chat"),
        ("responses", "/v1/responses", "chat"),
        ("gemini", "/v1beta/models/{name}", "generate_content"),
    ],
)
async def test_operations_have_the_names_of_the_conventions(dialect, route, operation):
    assert operation_of(dialect, route) == operation
    assert operation in {one.value for one in gen_ai_attributes.GenAiOperationNameValues}


async def test_spans_are_sent_by_otlp_over_http():
    got: list[tuple[str, bytes, str | None]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, body, self.headers["x-key"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        options = TraceOptions(endpoint=f"http://127.0.0.1:{server.server_port}/v1/traces", headers={"x-key": "secret"})
        with closing(RequestSpans.exported(options)) as spans:
            async with http_client(make_http_app([served(FakeModel(warm_reply))], spans=spans)) as client:
                await client.post(CHAT, json=HI)
        server.shutdown()
        thread.join()
    [(path, body, key)] = got
    sent = ExportTraceServiceRequest.FromString(body)
    names = [span.name for scope in sent.resource_spans[0].scope_spans for span in scope.spans]
    assert (path, key, len(names)) == ("/v1/traces", "secret", 6)
    assert "secret" not in repr(options)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"endpoint": "localhost:4318"}, "must be an URL"),
        ({"endpoint": "ftp://host/x"}, "must be an URL"),
        ({"endpoint": "http://host", "sample": 1.5}, "less than or equal to 1"),
        ({"endpoint": "http://host", "samples": 1}, "[Uu]nexpected"),
    ],
)
async def test_wrong_options_are_refused_by_name(wrong, words):
    with pytest.raises(ValidationError, match=words):
        HttpOptions(traces=wrong)


async def test_without_the_packages_traces_are_refused_at_start(monkeypatch):
    monkeypatch.setattr(trace_options, "has_exporter", lambda: False)
    with pytest.raises(ValidationError, match=r"pip install 'erllama\[otel\]'"):
        HttpOptions(traces={"endpoint": OPTIONS.endpoint})


@pytest.mark.parametrize(("found", "there"), [(object(), True), (None, False), (ModuleNotFoundError(), False)])
async def test_it_is_known_whether_the_packages_are_there(found, there, monkeypatch):
    def find_spec(name):
        if isinstance(found, Exception):  # not even its parents are there
            raise found
        return found

    monkeypatch.setattr(trace_options, "find_spec", find_spec)
    assert trace_options.has_exporter() is there


async def test_a_collector_that_does_not_answer_is_not_waited_for(monkeypatch):
    """The SDK goes on trying in the background; the stop does not wait for that."""
    monkeypatch.setattr(spans_module, "_CLOSE_S", 0.01)
    answered, ended = Event(), Event()

    class Hangs(SpanProcessor):
        def shutdown(self):
            answered.wait(60)
            ended.set()

    RequestSpans(Hangs(), OPTIONS).close()
    assert not ended.is_set()
    answered.set()
    assert ended.wait(60)
