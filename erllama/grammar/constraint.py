"""What a request wants its reply to follow: a value that is frozen, picklable and knows nothing of
how it is enforced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Self

from erllama.errors import InvalidParameter

MAX_GRAMMAR_BYTES = 64 * 1024  # of GBNF, Lark or a regular expression
MAX_SCHEMA_BYTES = 256 * 1024  # of JSON Schema


class ConstraintKind(StrEnum):
    """The language of a constraint's text. `lark` is llguidance's dialect, with a rule `start`."""

    GBNF = "gbnf"
    REGEX = "regex"
    JSON_SCHEMA = "json_schema"
    LARK = "lark"


class RefusedText(Exception):
    """A grammar or a schema that cannot be followed; the message is a reason for its author."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """`text` in the language `kind`. `param` is the request's field that it came from: errors name
    it.

    `parts` are constraints of other kinds that a Lark text refers to as rules, by name. A schema that
    is not `strict` leaves what cannot be enforced to the model, instead of being refused. Raises
    `InvalidParameter` for a text that is empty, too long or not text; whether it can be followed
    tells `GrammarCompiler.check`.
    """

    kind: ConstraintKind
    text: str
    param: str = "grammar"
    parts: tuple[tuple[str, Constraint], ...] = ()
    strict: bool = True

    def __post_init__(self) -> None:
        if self.kind not in tuple(ConstraintKind):
            kinds = ", ".join(ConstraintKind)
            raise InvalidParameter(
                f"the kind of a constraint is one of {kinds}, got {self.kind!r:.40}", param=self.param
            )
        if self.parts and (
            self.kind != ConstraintKind.LARK or any(part.kind == ConstraintKind.LARK for _, part in self.parts)
        ):
            raise self.refusal("only Lark has parts, and they are of other kinds")
        if not isinstance(self.text, str):
            raise self.refusal(f"it must be a string, got {type(self.text).__name__}")
        if not self.text.strip():
            raise self.refusal("it is empty")
        if "\0" in self.text:
            raise self.refusal("it contains a NUL character")
        try:
            n_bytes = len(self.text.encode())
        except UnicodeEncodeError:
            raise self.refusal("it contains a lone surrogate") from None
        most = MAX_SCHEMA_BYTES if self.kind == ConstraintKind.JSON_SCHEMA else MAX_GRAMMAR_BYTES
        if n_bytes > most:
            raise self.refusal(f"it has {n_bytes} bytes, at most {most}")

    @classmethod
    def of_schema(cls, schema: Mapping[str, Any], param: str, *, strict: bool = True) -> Self:
        """The JSON texts that fit `schema`; the order of its properties is their order in the
        reply.
        """
        try:
            return cls(ConstraintKind.JSON_SCHEMA, json.dumps(dict(schema), allow_nan=False), param, strict=strict)
        except RecursionError:
            raise InvalidParameter("the JSON schema is refused: it is nested too deeply", param=param) from None
        except (ValueError, TypeError) as error:
            raise InvalidParameter(f"the JSON schema is refused: it is not JSON: {error}", param=param) from None

    @classmethod
    def one_of(cls, texts: Sequence[str], param: str) -> Self:
        """One of `texts`, as it stands."""
        rule = " | ".join(f'"{"".join(map(_literal, text))}"' for text in texts)
        return cls(ConstraintKind.GBNF, f"root ::= {rule}", param)

    @property
    def has_schema(self) -> bool:
        """Whether the reply, or a part of it, is JSON."""
        return self.kind == ConstraintKind.JSON_SCHEMA or any(part.has_schema for _, part in self.parts)

    def refusal(self, reason: str) -> InvalidParameter:
        """The error for a constraint that cannot be followed."""
        what = "JSON schema" if self.kind == ConstraintKind.JSON_SCHEMA else "grammar"
        return InvalidParameter(f"the {what} is refused: {reason}", param=self.param)


def _literal(char: str) -> str:
    return char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}"


JSON_OBJECT: Mapping[str, Any] = MappingProxyType({"type": "object"})
"""The schema of any JSON object."""
