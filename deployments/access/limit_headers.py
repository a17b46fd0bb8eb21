"""OpenAI's headers of rate limits, which others have taken over. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from deployments.access.rate_limit import Standing


def openai_limit_headers(standings: Iterable[Standing]) -> dict[str, str]:
    """For each limit what it is, what is left, and in what time it is whole again."""
    headers: dict[str, str] = {}
    for standing in standings:
        headers[f"x-ratelimit-limit-{standing.what}"] = str(standing.limit)
        headers[f"x-ratelimit-remaining-{standing.what}"] = str(standing.remaining)
        headers[f"x-ratelimit-reset-{standing.what}"] = duration(standing.reset_s)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1.5s, 6m0s."""
    ms = round(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)  # rest / 1000 has five digits at most, which :g keeps
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
