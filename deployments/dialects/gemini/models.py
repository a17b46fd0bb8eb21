"""The list of models as Gemini's API has it, and pages of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deployments.http.ports import ServedModel
from erllama.errors import InvalidParameter

DEFAULT_SIZE = 50
MAX_SIZE = 1000


def model_card(model: ServedModel) -> dict[str, Any]:
    n_ctx = model.context
    limits = {} if n_ctx is None else {"inputTokenLimit": n_ctx, "outputTokenLimit": n_ctx}
    return {
        "name": f"models/{model.id}",
        "baseModelId": model.id,
        "version": "1",
        "displayName": model.id,
        **limits,
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens", "embedContent"],
    }


def models_page(models: Sequence[ServedModel], query: Mapping[str, str]) -> dict[str, Any]:
    """At most `pageSize` cards from the one that `pageToken` names. Raises `InvalidParameter`."""
    size, token = query.get("pageSize", str(DEFAULT_SIZE)), query.get("pageToken")
    if not (size.isascii() and size.isdecimal()) or not 1 <= int(size[:9]) <= MAX_SIZE:
        raise InvalidParameter(f"pageSize must be an integer from 1 to {MAX_SIZE}, got {size[:40]!r}", param="pageSize")
    ids = [model.id for model in models]
    if token and token not in ids:
        raise InvalidParameter(f"pageToken must come from an earlier page, got {token[:128]!r}", param="pageToken")
    first = ids.index(token) if token else 0
    end = first + int(size)
    more = {"nextPageToken": ids[end]} if end < len(ids) else {}
    return {"models": [model_card(model) for model in models[first:end]], **more}
