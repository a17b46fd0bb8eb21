"""Whole calls of a reply, for dialects that write their arguments as an object: such a call leaves at
once, when all of it is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from deployments.http.body import encode
from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, ReplyPart, ToolCall


@dataclass(frozen=True, slots=True)
class WholeCall:
    """`arguments` are an object that can be written as JSON."""

    name: str
    arguments: dict[str, Any]

    @classmethod
    def of(cls, call: ToolCall) -> WholeCall | None:
        """None for one whose arguments are no object: the reply was cut off in the midst of it, and half
        a call must not be made.
        """
        try:
            arguments = json.loads(call.arguments_json or "{}", parse_constant=_no_json)
            encode(arguments)  # 1e999 is read, and cannot be written
        except (ValueError, RecursionError):
            return None
        return cls(call.name, arguments) if isinstance(arguments, dict) else None

    @property
    def is_text(self) -> bool:
        """Whether no text of it holds half a character, which only an escape can write."""
        try:
            encode(self.arguments).encode()
        except UnicodeEncodeError:
            return False
        return True


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


class OpenCall:
    """Puts the calls of one reply together from their pieces."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._pieces: list[str] = []

    @property
    def is_open(self) -> bool:
        """Whether a call has begun that may go on."""
        return self._name is not None

    def push(self, part: ReplyPart | None) -> WholeCall | None:
        """The call that is over with `part`, if one is; None is the end of the reply."""
        if isinstance(part, ArgumentsDelta) and self.is_open:
            self._pieces.append(part.text)
            return None
        name, arguments = self._name, "".join(self._pieces)
        self._name, self._pieces = part.name if isinstance(part, CallStart) else None, []
        return None if name is None else WholeCall.of(ToolCall(name, arguments))
