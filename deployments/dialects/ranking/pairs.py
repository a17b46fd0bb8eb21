"""From bodies to the tokens of pairs. It may take long: see `PromptPort.rank_query`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from deployments.dialects.ranking.wire import RerankBody, ScoreBody, Wire
from deployments.http.ports import PromptPort
from erllama.errors import ContextOverflow, InvalidParameter
from erllama.pooled import fitting
from erllama.prompts.pair import RankQuery

MAX_TOKENS = 1 << 20
"""Of all pairs of a request: each repeats the query."""


def rerank_pairs(body: RerankBody, prompts: PromptPort, limit: int) -> list[list[int]]:
    """The tokens of the query with each document; `limit` is what the model takes of a pair.

    Raises `InvalidParameter`, and `ContextOverflow` for a document that does not fit and may not be
    cut; both name it.
    """
    query = prompts.rank_query(body.query)
    pairs = ((query, document) for document in body.ranked)
    return _tokens(body, pairs, limit, "texts" if body.is_tei else "documents")


def score_pairs(body: ScoreBody, prompts: PromptPort, limit: int) -> list[list[int]]:
    """As `rerank_pairs`: the one text of `text_1` with each of `text_2`, or each with its own."""
    return _tokens(body, _paired(body.text_1, body.text_2, prompts), limit, "text_2")


def _paired(firsts: Sequence[str], seconds: Sequence[str], prompts: PromptPort) -> Iterator[tuple[RankQuery, str]]:
    if len(firsts) == 1:
        query = prompts.rank_query(firsts[0])
        yield from ((query, second) for second in seconds)
    else:
        yield from ((prompts.rank_query(first), second) for first, second in zip(firsts, seconds, strict=True))


def _tokens(body: Wire, pairs: Iterable[tuple[RankQuery, str]], limit: int, name: str) -> list[list[int]]:
    max_tokens = _max_tokens(body, limit)
    tokens: list[list[int]] = []
    left = MAX_TOKENS
    for i, (query, document) in enumerate(pairs):
        pair = query.with_document(document, max_document=body.max_tokens_per_doc or None, max_tokens=max_tokens)
        tokens.append(fitting(pair, max_tokens or limit, i, name))
        left -= len(pair)
        if left < 0:
            raise ContextOverflow(
                f"{name} have more than {MAX_TOKENS} tokens in all, each with its query; send fewer at once", param=name
            )
    return tokens


def _max_tokens(body: Wire, limit: int) -> int | None:
    """What a pair is cut to; None: it is not."""
    asked = body.truncate_prompt_tokens
    if asked is None:
        return limit if body.truncate else None
    if asked == 0 or asked > limit:
        raise InvalidParameter(
            f"truncate_prompt_tokens must be -1 or 1 to {limit}, which this model takes; got {asked}",
            param="truncate_prompt_tokens",
        )
    return limit if asked == -1 else asked
