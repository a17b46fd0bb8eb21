"""The text of a custom tool's call, read out of the JSON arguments while they are written.

{"input": "*** Begin Patch\\n..."}     gives the text between the quotes, unescaped
"""

from __future__ import annotations

import json
import re
from typing import Any

_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_OPENING_PREFIX = re.compile(r'\s*(\{\s*("(i(n(p(u(t("(\s*(:\s*)?)?)?)?)?)?)?)?)?)?\Z')
# whole characters and escapes; an escaped half of a surrogate pair is whole only with the other
_WHOLE = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4})*"
)
_BAD = re.compile(r"\\u[0-9a-fA-F]{4}|\\[^u]")
_LONGEST_ESCAPE = 12  # two halves of a character


class CustomInput:
    """Reads one call. Arguments that are not an object with the text `input` first are given as they
    stand, at the end.
    """

    def __init__(self) -> None:
        self._waiting = ""  # not given out yet
        self._whole: list[str] = []
        self._state = "before"

    def push(self, text: str) -> str:
        """What became certain of the input with `text`, a piece of the arguments."""
        self._whole.append(text)
        if self._state in ("behind", "other"):
            return ""
        self._waiting += text
        if self._state == "before":
            opening = _OPENING.match(self._waiting)
            if opening is None:
                if not _OPENING_PREFIX.match(self._waiting):
                    self._state = "other"
                return ""
            self._state, self._waiting = "inside", self._waiting[opening.end() :]
        return self._inside(final=False)

    def finish(self) -> str:
        """The rest of the input, at the end of the call."""
        if self._state == "inside":
            return self._inside(final=True)
        return "" if self._state == "behind" else _other("".join(self._whole))

    def _inside(self, *, final: bool) -> str:
        given = ""
        while True:
            whole = _WHOLE.match(self._waiting)
            assert whole is not None
            given += _unescaped(whole.group())
            self._waiting = self._waiting[whole.end() :]
            if self._waiting.startswith('"'):
                self._state = "behind"
                return given
            if len(self._waiting) < _LONGEST_ESCAPE and not (final and self._waiting):
                return given
            given += "\ufffd"  # half of a character, or no escape at all
            bad = _BAD.match(self._waiting)
            self._waiting = self._waiting[bad.end() if bad else len(self._waiting) :]


def _unescaped(text: str) -> str:
    """JSON's escapes undone. Models write line breaks as they are, which JSON does not allow."""
    value: str = json.loads(f'"{text}"', strict=False)
    return value


def _other(arguments: str) -> str:
    try:
        value: Any = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    given = value.get("input") if isinstance(value, dict) else None
    return given.encode(errors="replace").decode() if isinstance(given, str) else arguments
