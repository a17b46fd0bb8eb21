"""Why a request was slow, in words of a fixed set. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from deployments.telemetry.facts import RequestFacts


class SlowReason(StrEnum):
    """What took longest of what made a request slow."""

    PREPARING = "preparing"  # its body came slowly, or was long to render and tokenise
    MODEL_LOADING = "model_loading"  # no replica took it: it was loaded, or another one had to take over
    QUEUED = "queued"  # all sequences were taken
    SLOW_RESTORE = "slow_restore"  # what was kept took long to come back
    COLD_PREFILL = "cold_prefill"  # most of its prompt was not kept, and was computed
    PREFILL = "prefill"  # most was kept, and the rest took long to compute, beside others perhaps
    SLOW_TOKENS = "slow_tokens"  # its first token was in time, the others came slowly
    SLOW_READER = "slow_reader"  # the client took its time to read


@dataclass(frozen=True, slots=True)
class SlowLimits:
    """What is slow, in milliseconds: to the first token, from token to token, to be read."""

    first_token_ms: float = 2000.0
    token_ms: float = 200.0
    unread_ms: float = 2000.0


def slow_reason(facts: RequestFacts, limits: SlowLimits) -> SlowReason | None:
    """None for a request that was not slow, or of whose time nothing is known. What comes first, the
    wait for the first token, decides before what comes later.
    """
    if facts.error == "slow_reader":
        return SlowReason.SLOW_READER
    if not facts.computed:
        return None
    if (facts.ttft_ms or 0.0) >= limits.first_token_ms:
        parts = _first_token_parts(facts)
        return max(parts, key=lambda reason: parts[reason])
    if (facts.token_ms or 0.0) >= limits.token_ms:
        return SlowReason.SLOW_TOKENS
    if facts.unread_ms >= limits.unread_ms:
        return SlowReason.SLOW_READER
    return None


def _first_token_parts(facts: RequestFacts) -> Mapping[SlowReason, float]:
    warm = 2 * facts.cached >= facts.prompt > 0
    return {
        SlowReason.PREPARING: facts.prepare_ms,
        SlowReason.MODEL_LOADING: facts.dispatch_ms,
        SlowReason.QUEUED: facts.queue_ms,
        SlowReason.SLOW_RESTORE: facts.restore_ms,
        SlowReason.PREFILL if warm else SlowReason.COLD_PREFILL: facts.prefill_ms - facts.restore_ms,
    }
