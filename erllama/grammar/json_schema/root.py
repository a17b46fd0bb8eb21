"""The document that a schema is part of: where its references lead, and what happens to a keyword
that cannot be enforced.

Pure; every failure is `RefusedText`, whose message names the place as a JSON pointer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from erllama.grammar.constraint import RefusedText

SchemaObject = Mapping[str, Any]
MAX_VISITS = 20_000  # subschemas looked at, those of unions and merges counted as often as they are copied


def refuse(reason: str, where: str = "") -> NoReturn:
    raise RefusedText(reason + (f" (at {where})" if where else ""))


class SchemaRoot:
    """`document` is what the references of its schemas begin with. `strict`: what cannot be
    enforced is refused; otherwise it is left to the model, as OpenAI does it without `strict`.
    """

    def __init__(self, document: SchemaObject, *, strict: bool) -> None:
        self.strict = strict
        self._document = document
        self._n_visits = 0

    def visit(self, where: str) -> None:
        """Count a look at one schema. Raises `RefusedText` when there were too many."""
        self._n_visits += 1
        if self._n_visits > MAX_VISITS:
            refuse(f"it expands to more than {MAX_VISITS} parts", where)

    def resolve(self, ref: Any, where: str) -> Any:
        """What `ref`, a pointer into the document, leads to. Raises `RefusedText`."""
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            refuse(f"only references within the schema (#/...) are followed, got {ref!r}", where)
        target: Any = self._document
        try:
            for part in ref.split("/")[1:]:
                key = unquote(part).replace("~1", "/").replace("~0", "~")
                target = target[int(key[:9]) if isinstance(target, list) and key.isdecimal() else key]
        except (LookupError, TypeError):
            refuse(f"the reference {ref!r} leads nowhere", where)
        return target

    def unenforceable(self, keyword: str, reason: str, where: str) -> None:
        """Raises `RefusedText` if the schema is strict."""
        if self.strict:
            refuse(f"{keyword!r} cannot be enforced: {reason}", where)


def json_type(value: Any) -> str:
    """The name of the type that JSON Schema gives a value."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
