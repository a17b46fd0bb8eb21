"""The ids of a vocabulary that prompts are put together with, beside those of its texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FimTokens:
    """What marks the parts of a text with a gap (fill in the middle). `repository` and `file` open
    a project and each of its files; not every vocabulary has them.
    """

    prefix: int
    suffix: int
    middle: int
    repository: int | None = None
    file: int | None = None


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """None is a token that the vocabulary does not have. `adds_eos` and `adds_sep`: whether the model
    was trained with that token behind a text, and between two.
    """

    bos: int | None = None
    eos: int | None = None
    sep: int | None = None
    adds_eos: bool = False
    adds_sep: bool = False
    fim: FimTokens | None = None
