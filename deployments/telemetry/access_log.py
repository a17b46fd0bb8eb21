"""The line that each HTTP request leaves in the log, as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from deployments.telemetry.facts import RequestFacts
from deployments.telemetry.slow import SlowReason

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
FIELDS = "fields"
"""The attribute of a log record that holds what its message says, by name."""


def request_fields(facts: RequestFacts, slow: SlowReason | None, trace: str = "") -> dict[str, Any]:
    """What is told of a request, which belongs to a `trace`. Times of the model, and tokens, only where
    it has computed.
    """
    fields: dict[str, Any] = {
        "event": "request",
        "request_id": facts.request_id,
        "method": facts.method,
        "path": facts.path,
        "status": facts.status,
        "ms": round(facts.duration_ms, 1),
        "tenant": facts.tenant,
        "dialect": facts.dialect,
        "route": facts.route,
        "model": facts.model,
        "trace_id": trace,
        "error": facts.error,
        "slow": None if slow is None else str(slow),
    }
    if facts.computed:
        fields |= {
            "queue_ms": round(facts.queue_ms, 1),
            "restore_ms": round(facts.restore_ms, 1),
            "prefill_ms": round(facts.prefill_ms, 1),
            "ttft_ms": None if facts.ttft_ms is None else round(facts.ttft_ms, 1),
            "cache_tier": facts.tier,
            "prompt_tokens": facts.prompt,
            "cached_tokens": facts.cached,
            "completion_tokens": facts.completion,
        }
    return fields


def trace_id(traceparent: str) -> str:
    """The trace that a W3C header names, "" for none."""
    match = _TRACEPARENT.fullmatch(traceparent)
    return "" if match is None else match[1]


def as_text(fields: Mapping[str, Any]) -> str:
    """key=value, without what is empty. A value that would not be one word stands in quotes."""
    return " ".join(f"{name}={_word(value)}" for name, value in fields.items() if value not in (None, ""))


def _word(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `logger`, and either the fields of a record or its
    `message`; `exception` with the traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        fields = getattr(record, FIELDS, None)
        if request_id := getattr(record, "request_id", None):  # Serve's, of the request that is being answered
            line["request_id"] = request_id
        line |= fields if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
