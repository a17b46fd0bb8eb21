"""Replies with scores. Encoding many takes milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deployments.dialects.ranking.wire import RerankBody
from deployments.http.body import encode


def rerank_body(body: RerankBody, reply_id: str, model: str, scores: Sequence[float], n_tokens: int) -> bytes:
    """The best `top_n` documents, best first; of equals the first one sent."""
    best = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n or None]
    if body.is_tei:
        texts = body.ranked if body.return_text else None
        return encode([_tei_rank(i, scores[i], texts) for i in best]).encode()
    documents = body.ranked if body.return_documents else None
    return encode(
        {
            "id": reply_id,
            "object": "list",
            "model": model,
            "usage": _usage(n_tokens),
            "results": [_rank(i, scores[i], documents) for i in best],
        }
    ).encode()


def _rank(index: int, score: float, documents: Sequence[str] | None) -> dict[str, Any]:
    document = {} if documents is None else {"document": {"text": documents[index]}}
    return {"index": index, "relevance_score": score, **document}


def _tei_rank(index: int, score: float, texts: Sequence[str] | None) -> dict[str, Any]:
    return {"index": index, "score": score, **({} if texts is None else {"text": texts[index]})}


def score_body(reply_id: str, created: int, model: str, scores: Sequence[float], n_tokens: int) -> bytes:
    """vLLM's, in the order of the request. `created` is unix seconds."""
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    head = {"id": reply_id, "object": "list", "created": created, "model": model}
    return encode(head | {"data": data, "usage": _usage(n_tokens)}).encode()


def _usage(n_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
