"""What an ingress counts of each HTTP request, once it has been answered."""

from __future__ import annotations

from deployments.metrics import status_class
from deployments.telemetry.facts import RequestFacts
from deployments.telemetry.recorder import Recorder
from deployments.telemetry.slow import SlowReason

_MS = 1e-3


def record_request(recorder: Recorder, facts: RequestFacts, slow: SlowReason | None) -> None:
    """Some ten numbers, whatever the length of the reply."""
    of_dialect, of_model = {"dialect": facts.dialect}, {"model": facts.model}
    recorder.inc("erllama_requests", 1, {**of_dialect, "status": status_class(facts.outcome)})
    recorder.observe("erllama_request_seconds", facts.duration_ms * _MS, of_dialect)
    if slow is not None:
        recorder.inc("erllama_slow_requests", 1, {"reason": str(slow)})
    if not facts.computed:
        return
    if facts.ttft_ms is not None:
        recorder.observe("erllama_time_to_first_token_seconds", facts.ttft_ms * _MS, {**of_dialect, **of_model})
    if facts.token_ms is not None:
        recorder.observe("erllama_time_per_output_token_seconds", facts.token_ms * _MS, of_model)
    recorder.observe("erllama_queue_seconds", facts.queue_ms * _MS, of_model)
    recorder.observe("erllama_prefill_seconds", facts.prefill_ms * _MS, of_model)
    if facts.tier:
        recorder.observe("erllama_restore_seconds", facts.restore_ms * _MS, {**of_model, "tier": facts.tier})
