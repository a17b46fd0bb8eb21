"""What is told of a request that was served, as JSON. Pure."""

from __future__ import annotations

from typing import Any

from deployments.http.ports import PromptPort
from erllama.diagnosis.record import Ids, PromptRecord


def request_card(record: PromptRecord, model: str, tenant: str | None) -> dict[str, Any]:
    """Without any text of the prompt. `tenant` is the name of whose it is, None for one that is not
    configured any more. `cost_ms` is null while no speed of computing was measured.
    """
    cost_ms = record.cost_ms
    return {
        "object": "request",
        "id": record.client_id,
        "model": model,
        "tenant": tenant,
        "time": record.time_s,
        "prompt_tokens": record.n_prompt,
        "cached_tokens": record.n_cached,
        "computed_tokens": record.n_computed,
        "cached_share": round(record.n_cached / record.n_prompt, 4),
        "tier": record.tier or None,
        "cause": record.cause,
        "position": record.n_known,
        "cost_ms": None if cost_ms is None else round(cost_ms, 1),
    }


def why_card(record: PromptRecord, model: str, tenant: str | None, prompts: PromptPort) -> dict[str, Any]:
    """With the text on both sides of the point where the prompt left what was known. Control tokens stand
    there by their names.
    """

    def side(ids: Ids) -> dict[str, Any]:
        tokens = ids.tolist()
        return {"text": b"".join(map(prompts.token_text, tokens)).decode(errors="replace"), "tokens": tokens}

    return request_card(record, model, tenant) | {
        "object": "request.why",
        "detail": record.detail,
        "known_in": record.known_in or None,
        "before": side(record.before),
        "prompt": side(record.prompt),
        "stored": side(record.stored),
    }
