"""What a `Model` computes beside generating: embeddings, and scores of pairs. A part of `Model`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from erllama.errors import ContextOverflow, InvalidParameter, NotSupported
from erllama.model_part import ModelPart
from erllama.prompts.pair import RankQuery

T = TypeVar("T")

_AT_ONCE = 16  # inputs, and
_TOKENS_AT_ONCE = 8192  # tokens of them, after which running requests get a step


class PooledOutputs(ModelPart):
    """Any thread."""

    def embed(self, tokens: Sequence[int]) -> list[float]:
        """The pooled, L2-normalised embedding of token ids. May raise `NotSupported`."""
        return self.embed_many([tokens])[0]

    def embed_many(self, inputs: Sequence[Sequence[int]]) -> list[list[float]]:
        """One each. Running requests get their steps between parts of a long list."""
        return [vector.tolist() for part in _parts(inputs) for vector in self._compute(self._backend.embed, part)]

    def rank(self, inputs: Sequence[Sequence[int]]) -> list[float]:
        """The score of each input, the tokens of a pair as `RankQuery` makes them. Raises
        `NotSupported` for a model without a rank head.
        """
        return [score for part in _parts(inputs) for score in self._compute(self._backend.rank, part)]

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How well each document matches the query: more is better, and only the order counts.

        Raises `NotSupported` for a model without a rank head, `ContextOverflow` that names the
        document which does not fit.
        """
        limit = self._backend.rank_tokens
        if not limit:
            raise NotSupported("this model has no rank head: it cannot rank documents", param="model")
        pair = RankQuery(self._vocab, query)
        return self.rank([fitting(pair.with_document(text), limit, i) for i, text in enumerate(documents)])

    def _compute(
        self, compute: Callable[[Sequence[Sequence[int]]], list[T]], inputs: Sequence[Sequence[int]]
    ) -> list[T]:
        outputs = self._call(lambda _: compute(inputs))
        self._loop.note_use()
        return outputs


def fitting(pair: list[int], limit: int, index: int, name: str = "documents") -> list[int]:
    """The tokens of the pair at `index` of the field `name`, if there are some and they fit. Raises
    `InvalidParameter` and `ContextOverflow`.
    """
    param = f"{name}[{index}]"
    if not pair:
        raise InvalidParameter(f"{param} and the query are empty", param=param)
    if len(pair) > limit:
        message = f"{param} and the query have {len(pair)} tokens; this model ranks at most {limit}"
        raise ContextOverflow(message, param=param, n_prompt=len(pair), n_most=limit)
    return pair


def _parts(inputs: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    """What the engine thread computes between two of its steps: a few inputs, and of long ones fewer,
    or it would seem to be stuck.
    """
    start = n_tokens = 0
    for i, tokens in enumerate(inputs):
        n_tokens += len(tokens)
        if i > start and (i - start == _AT_ONCE or n_tokens > _TOKENS_AT_ONCE):
            yield inputs[start:i]
            start, n_tokens = i, len(tokens)
    if inputs:
        yield inputs[start:]
