"""Keeps the numbers of a JSON reply within what a double holds.

llguidance takes any digits (`1e999`, or a thousand of them), which parsers read as infinite or
refuse. So the number that a reply is writing is watched: a token that would take it beyond a
double, or beyond `MAX_CHARS`, is not allowed. A string may hold any digits: where a letter may
follow, too, it is no number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

MAX_CHARS = 330  # of one number: the longest integer of a double has 309 digits
_BEGUN = re.compile(rb"[0-9][0-9.eE+-]*\Z")
_LEADING = re.compile(rb"[0-9.eE+-]+")
_SAFE_CHARS = 250  # a number of so many characters, without an exponent, is far from the end


class NumberTokens:
    """The tokens of a vocabulary that may go on with a number. Built once, read-only."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        begun = {token: _LEADING.match(piece) for token, piece in enumerate(pieces)}
        self.runs = {token: match.group() for token, match in begun.items() if match}
        self.with_exponent = {token: run for token, run in self.runs.items() if re.search(rb"[eE][+-]?[0-9]{3}", run)}
        self.letter = next(
            (token for token, piece in enumerate(pieces) if re.fullmatch(rb"[g-mo-su-zG-Z]+", piece)), None
        )
        """A token that no number, and nothing else in JSON outside of a string, begins with."""
        self._pieces = pieces

    def piece(self, token: int) -> bytes:
        return self._pieces[token] if token < len(self._pieces) else b""


class NumberWatch:
    """The number at the end of one reply. `may_follow` asks llguidance about a token."""

    def __init__(self, tokens: NumberTokens, may_follow: Callable[[int], bool], begun: bytes = b"") -> None:
        self._tokens = tokens
        self._may_follow = may_follow
        self.begun = begun  # empty where the reply does not end within a number

    def accept(self, token: int) -> None:
        match = _BEGUN.search(self.begun + self._tokens.piece(token))
        self.begun = match.group() if match else b""

    def forbids(self, token: int) -> bool:
        run = self._tokens.runs.get(token)
        return run is not None and _beyond(self.begun + run) and not self._in_text()

    def forbidden(self) -> list[int]:
        """All tokens that would go too far."""
        begun = self.begun.lower()
        runs = self._tokens.runs if b"e" in begun or len(begun) > _SAFE_CHARS else self._tokens.with_exponent
        beyond = [token for token, run in runs.items() if _beyond(self.begun + run)]
        return beyond if beyond and not self._in_text() else []

    def _in_text(self) -> bool:
        return self._tokens.letter is not None and self._may_follow(self._tokens.letter)


def _beyond(text: bytes) -> bool:
    if len(text) > MAX_CHARS:
        return True
    try:
        return math.isinf(float(text.rstrip(b"eE+-.")))
    except ValueError:  # no number, or not yet one
        return False
