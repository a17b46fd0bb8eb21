"""Speculation across models: one drafts, another one verifies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from erllama.errors import InvalidParameter
from erllama.events import Failed, Tokens
from erllama.model_part import ModelPart


@dataclass(frozen=True, slots=True)
class Verified:
    """The first `n_accepted` tokens of a draft are those that the model generates; then comes
    `next_token`, None where it ends.
    """

    n_accepted: int
    next_token: int | None


class DraftMethods(ModelPart):
    """A part of `Model`. Every method may be called from any thread."""

    def draft_tokens(self, tokens: Sequence[int], n: int, **params: Any) -> tuple[int, ...]:
        """Up to `n` tokens that this model continues `tokens` with, greedily unless `params` say
        otherwise. Raises as `Model.complete` does.
        """
        if n < 1:
            raise InvalidParameter(f"n must be at least 1, got {n}", param="n")
        with self.infer(tokens, {"temperature": 0.0, **params, "response_tokens": n}) as stream:
            return stream.result().tokens

    def verify(self, tokens: Sequence[int], draft: Sequence[int], **params: Any) -> Verified:
        """How far this model generates `draft` behind `tokens`, and what it generates there instead, or
        behind all of it; greedily unless `params` say otherwise. Where the KV can be cut, several
        tokens are computed in one decode. Raises as `Model.complete` does.
        """
        prediction = tuple(draft)
        asked = {"temperature": 0.0, **params, "prediction": prediction, "response_tokens": len(prediction) + 1}
        n_accepted = 0
        with self.infer(tokens, asked) as stream:
            for event in stream:
                if isinstance(event, Failed):
                    raise event.error
                for token in event.ids if isinstance(event, Tokens) else ():
                    if n_accepted == len(prediction) or token != prediction[n_accepted]:
                        return Verified(n_accepted, token)
                    n_accepted += 1
        return Verified(n_accepted, None)
