"""Anthropic's headers of rate limits. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from deployments.access.rate_limit import Standing


def limit_headers(standings: Iterable[Standing], now_s: float) -> dict[str, str]:
    """For each limit what it is, what is left, and when it is whole again. `now_s` is unix time."""
    headers: dict[str, str] = {}
    for standing in standings:
        whole = datetime.fromtimestamp(now_s + standing.reset_s, UTC).isoformat(timespec="seconds")
        headers[f"anthropic-ratelimit-{standing.what}-limit"] = str(standing.limit)
        headers[f"anthropic-ratelimit-{standing.what}-remaining"] = str(standing.remaining)
        headers[f"anthropic-ratelimit-{standing.what}-reset"] = whole.replace("+00:00", "Z")
    return headers
