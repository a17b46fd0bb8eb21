"""What each replica of a model said to a call that went to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from erllama.errors import EngineStopped, ErllamaError

T = TypeVar("T")
Said = TypeVar("Said", covariant=True)


@dataclass(frozen=True, slots=True)
class Answer(Generic[Said]):
    """What one replica said: a `value`, or the `error` instead."""

    value: Said | None = None
    error: ErllamaError | None = None


def values(answers: Sequence[Answer[T]]) -> list[T]:
    """What was said without an error. Raises the first error when all failed, `EngineStopped` when no
    replica runs.
    """
    said = [answer.value for answer in answers if answer.error is None]
    if said:
        return said  # type: ignore[return-value]
    raise next((answer.error for answer in answers if answer.error), None) or EngineStopped(
        "no replica of the model runs", retry_after_s=1
    )
