"""Routes that rank, under each path at which a client of another server looks for them. Errors have
OpenAI's shape, as those servers' have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar, TypeVar
from uuid import uuid4

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from deployments.dialects.ranking.pairs import rerank_pairs, score_pairs
from deployments.dialects.ranking.reply import rerank_body, score_body
from deployments.dialects.ranking.wire import RerankBody, ScoreBody, Wire, parse_body
from deployments.generation.reply import prepare, read_body
from deployments.http.dialect import SSE, Dialect, own_routes
from deployments.http.disconnect import unless_disconnected
from deployments.http.openai_error import error_body
from deployments.http.options import HttpOptions
from deployments.http.ports import PromptPort, ServedModel
from deployments.http.registry import ModelRegistry
from erllama.errors import ErllamaError, NotSupported

_RERANK = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking", "/v2/rerank")
_SCORE = ("/score", "/v1/score")

W = TypeVar("W", bound=Wire)


class Ranking(Dialect):
    prefixes = (*_RERANK, *_SCORE)
    framing = SSE
    bodies: ClassVar[dict[str, type[BaseModel]]] = {
        **dict.fromkeys(_RERANK, RerankBody),
        **dict.fromkeys(_SCORE, ScoreBody),
    }

    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        return error_body(error)

    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        router = own_routes(self)

        async def rerank(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_body(RerankBody, raw)
            model = models.of(request).resolve(body.model)
            cost = len(raw) + len(body.query) * len(body.ranked)
            scores, n_tokens = await _scores(request, model, cost, rerank_pairs, body)
            reply_id = f"rerank-{uuid4().hex}"
            return _json(
                await prepare(model.prompts, len(raw), rerank_body, body, reply_id, model.id, scores, n_tokens)
            )

        async def score(request: Request) -> Response:
            raw = await read_body(request, options.max_body_bytes)
            body = parse_body(ScoreBody, raw)
            model = models.of(request).resolve(body.model)
            cost = len(raw) + len(body.text_1[0]) * len(body.text_2)
            scores, n_tokens = await _scores(request, model, cost, score_pairs, body)
            return _json(score_body(f"score-{uuid4().hex}", int(time.time()), model.id, scores, n_tokens))

        for path in _RERANK:
            router.add_api_route(path, rerank, methods=["POST"])
        for path in _SCORE:
            router.add_api_route(path, score, methods=["POST"])
        return router


async def _scores(
    request: Request, model: ServedModel, cost: int, pairs_of: Callable[[W, PromptPort, int], list[list[int]]], body: W
) -> tuple[list[float], int]:
    """The score of each pair, and the tokens of all."""

    async def work() -> tuple[list[float], int]:
        limit = (await model.client.model_info()).rank_tokens
        if not limit:
            raise NotSupported(f"{model.id} has no rank head: it cannot score pairs of texts", param="model")
        pairs = await prepare(model.prompts, cost, pairs_of, body, model.prompts, limit)
        return await model.client.rank(pairs), sum(map(len, pairs))

    return await unless_disconnected(request.receive, work())


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
