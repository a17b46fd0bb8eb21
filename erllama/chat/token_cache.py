"""Token ids of pieces of prompts, remembered: a client sends its whole history with every turn, and
all but the last of it was tokenised for the turn before.

A prompt is cut before each control token that the template wrote. llama.cpp tokenises what lies
between two of them on its own, so the pieces' ids are the prompt's; a control token that takes the
white space before it along (LSTRIP) would look across a cut, and a vocabulary that has such a token
is not cut.

Each owner finds only what was tokenised for it: else the time would tell what others have sent.

Thread-safe. An LRU, bounded by the characters that it holds.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

Tokenize = Callable[[str, bool], list[int]]
"""Token ids of a text; the flag says whether the vocabulary adds its special tokens (BOS)."""

MIN_CHARS = 16  # shorter pieces are tokenised faster than they are found


class TokenCache:
    """`cut_before` are the texts of the control tokens; none of them switches the cache off."""

    def __init__(self, cut_before: Iterable[str], max_chars: int = 16 * 2**20) -> None:
        texts = sorted(filter(None, cut_before), key=len, reverse=True)
        self._cuts = re.compile("|".join(map(re.escape, texts))) if texts else None
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str, bool], list[int]] = OrderedDict()
        self._n_chars = 0

    def __repr__(self) -> str:
        return f"<TokenCache {len(self._known)} pieces, {self._n_chars} of {self._max_chars} characters>"

    def tokenize(self, text: str, tokenize: Tokenize, *, add_special: bool, owner: str = "") -> list[int]:
        """What `tokenize(text, add_special)` gives. `owner` is the salt of a tenant."""
        if self._cuts is None:
            return tokenize(text, add_special)
        ids: list[int] = []
        for number, piece in enumerate(self._pieces(text, self._cuts)):
            ids += self._piece(owner, piece, tokenize, add_special and not number)
        return ids

    def _pieces(self, text: str, cuts: re.Pattern[str]) -> Iterator[str]:
        begin = 0
        for match in cuts.finditer(text):
            if match.start() > begin:
                yield text[begin : match.start()]
                begin = match.start()
        yield text[begin:]

    def _piece(self, owner: str, piece: str, tokenize: Tokenize, add_special: bool) -> list[int]:
        if len(piece) < MIN_CHARS:
            return tokenize(piece, add_special)
        key = (owner, piece, add_special)
        with self._lock:
            ids = self._known.get(key)
            if ids is not None:
                self._known.move_to_end(key)
                return ids
        ids = tokenize(piece, add_special)
        with self._lock:
            if key not in self._known:
                self._known[key] = ids
                self._n_chars += len(piece)
            while self._n_chars > self._max_chars:
                (_, gone, _), _ = self._known.popitem(last=False)
                self._n_chars -= len(gone)
        return ids
