"""Requests as OpenTelemetry spans: the HTTP request, the model's work in it, and what that consists of.

    POST /v1/chat/completions                 SERVER, child of the client's `traceparent`
      chat demo                               INTERNAL, GenAI attributes, event `first_token`
        queue                                 wait for a sequence of the engine
        prefill                               to the first token
          restore                             until what was kept was back
        decode                                the other tokens

They are made when a request has ended, from what is known of it then: a token that streams costs
nothing, and what is not sampled next to nothing. The engine's times end where the ingress saw the first
token. Needs the extra `erllama[otel]`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deployments.telemetry.facts import NO_DIALECT, RequestFacts
from deployments.telemetry.slow import SlowReason
from deployments.telemetry.trace_options import TraceOptions

_EXPORT_S = 10.0
_CLOSE_S = 3.0
_NS_PER_MS = 1e6
_TEXT_ROUTES = ("/completion", "/completions", "/infill", "/api/generate")
Attributes = Mapping[str, Any]


class RequestSpans:
    """The sink of one process. Any thread; what cannot be exported is dropped, never waited for."""

    def __init__(self, processor: SpanProcessor, options: TraceOptions, version: str = "") -> None:
        resource = Resource({"service.name": options.service_name, "service.version": version})
        sampler = ParentBased(TraceIdRatioBased(options.sample))
        self._provider = TracerProvider(resource=resource, sampler=sampler, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("erllama", version)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def exported(cls, options: TraceOptions, version: str = "") -> RequestSpans:
        """Sent to `options.endpoint` by OTLP over HTTP, in batches."""
        exporter = OTLPSpanExporter(options.endpoint, headers=dict(options.headers), timeout=_EXPORT_S)
        return cls(BatchSpanProcessor(exporter), options, version)

    def close(self) -> None:
        """Send what is left. Blocks, for three seconds where nobody answers: the SDK tries half a minute.
        Idempotent.
        """
        closing = threading.Thread(target=self._provider.shutdown, name="erllama-spans", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def record(self, facts: RequestFacts, slow: SlowReason | None) -> str:
        """A request that has ended; the id of its trace, "" where none is kept. Probes, scrapes and
        unknown paths, which are no dialect's, have none.
        """
        if facts.dialect == NO_DIALECT:
            return ""
        wall_ns = time.time_ns() - facts.clock()  # spans have the time of day, and what was measured has not
        ended_ns = facts.clock() if facts.ended_ns is None else facts.ended_ns
        carrier = {"traceparent": facts.traceparent, "tracestate": facts.tracestate}
        root = self._tracer.start_span(
            f"{facts.method} {facts.route}".rstrip(),
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            _http_attributes(facts),
            start_time=wall_ns + facts.started_ns,
        )
        if root.is_recording() and facts.asked_ns is not None:
            self._record_model(root, facts, slow, wall_ns, ended_ns)
        if facts.outcome >= 500:
            root.set_status(Status(StatusCode.ERROR, facts.error))
        root.end(wall_ns + ended_ns)
        context = root.get_span_context()
        return format_trace_id(context.trace_id) if context.trace_flags.sampled else ""

    def _record_model(
        self, root: Span, facts: RequestFacts, slow: SlowReason | None, wall_ns: int, ended_ns: int
    ) -> None:
        asked_ns = facts.started_ns if facts.asked_ns is None else facts.asked_ns
        operation = operation_of(facts.dialect, facts.route)
        inside = set_span_in_context(root)
        model = self._tracer.start_span(
            f"{operation} {facts.model}",
            inside,
            SpanKind.INTERNAL,
            _model_attributes(facts, operation, slow),
            start_time=wall_ns + asked_ns,
        )
        if facts.first_ns is not None:
            model.add_event("first_token", timestamp=wall_ns + facts.first_ns)
            if facts.computed:
                self._record_parts(set_span_in_context(model), facts, wall_ns, facts.first_ns)
        model.end(wall_ns + ended_ns)

    def _record_parts(self, context: Context, facts: RequestFacts, wall_ns: int, first_ns: int) -> None:
        admitted_ns = first_ns - int(facts.prefill_ms * _NS_PER_MS)
        self._part("queue", context, wall_ns + admitted_ns - int(facts.queue_ms * _NS_PER_MS), wall_ns + admitted_ns)
        prefill = self._part("prefill", context, wall_ns + admitted_ns, wall_ns + first_ns)
        if facts.restore_ms:
            restored_ns = admitted_ns + int(facts.restore_ms * _NS_PER_MS)
            tier = {"erllama.cache.tier": facts.tier} if facts.tier else {}
            inside = set_span_in_context(prefill)
            self._part("restore", inside, wall_ns + admitted_ns, wall_ns + restored_ns, tier)
        decoded_ns = first_ns + int(facts.generation_ms * _NS_PER_MS)
        self._part("decode", context, wall_ns + first_ns, wall_ns + decoded_ns)

    def _part(
        self, name: str, context: Context, start_ns: int, end_ns: int, attributes: Attributes | None = None
    ) -> Span:
        span = self._tracer.start_span(name, context, SpanKind.INTERNAL, dict(attributes or {}), start_time=start_ns)
        span.end(end_ns)
        return span


def operation_of(dialect: str, route: str) -> str:
    """The name of an operation in the GenAI conventions."""
    if dialect == "gemini":
        return "generate_content"
    texts = route.endswith(_TEXT_ROUTES) and not route.endswith("/chat/completions")
    return "text_completion" if texts else "chat"


def _http_attributes(facts: RequestFacts) -> dict[str, Any]:
    return {
        "http.request.method": facts.method,
        "http.route": facts.route,
        "http.response.status_code": facts.status,
        "url.path": facts.path,
        "erllama.request_id": facts.request_id,
        "erllama.tenant": facts.tenant,
        "erllama.dialect": facts.dialect,
        **({"error.type": facts.error} if facts.error else {}),
    }


def _model_attributes(facts: RequestFacts, operation: str, slow: SlowReason | None) -> dict[str, Any]:
    """Names of the GenAI conventions as of 1.40, our own beside them."""
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "erllama",
        "gen_ai.request.model": facts.model,
        "gen_ai.request.stream": facts.streamed,
    }
    if facts.first_ns is not None and facts.asked_ns is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = (facts.first_ns - facts.asked_ns) / 1e9
    if facts.computed:
        attributes |= {
            "gen_ai.response.model": facts.model,
            "gen_ai.response.id": facts.request_id,
            "gen_ai.response.finish_reasons": list(facts.finish_reasons),
            "gen_ai.usage.input_tokens": facts.prompt,
            "gen_ai.usage.output_tokens": facts.completion,
            "gen_ai.usage.cache_read.input_tokens": facts.cached,
        }
    if slow is not None:
        attributes["erllama.slow"] = str(slow)
    return attributes
