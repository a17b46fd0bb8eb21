"""Log lines of our packages in Serve's own log files."""

from __future__ import annotations

import logging
from logging.handlers import MemoryHandler
from typing import Literal

from deployments.telemetry.access_log import JsonFormatter

_ROUTINE = ("CALL memory_report OK", "CALL apply_deltas OK")  # as Serve's access log begins


def share_serve_log(form: Literal["text", "json"] = "text") -> None:
    """Send our packages' log lines where Serve's own go: the replica's file, with the request id in
    every line. In the form "json" all lines of this process are objects of JSON."""
    serve_log = logging.getLogger("ray.serve")
    serve_log.addFilter(_is_worth_a_line)
    for name in ("deployments", "erllama", "cache_store"):
        ours = logging.getLogger(name)
        ours.handlers = serve_log.handlers
        ours.setLevel(serve_log.level)
        ours.propagate = False
    if form == "json":
        for handler in serve_log.handlers:  # Serve gathers lines in front of its file
            target = handler.target if isinstance(handler, MemoryHandler) else handler
            (target or handler).setFormatter(JsonFormatter())


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for Serve's lines about what the memory scheduler asks every replica every few
    seconds."""
    return not (getattr(record, "serve_access_log", False) and record.getMessage().startswith(_ROUTINE))
