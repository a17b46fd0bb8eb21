"""Keeps the text of messages from being read as control tokens. Pure.

A rendered prompt is tokenised with its control tokens, since the template writes them as text. A
user's "<|im_end|>" would then end the user's turn, and whatever follows it speaks with another's
voice. So before rendering, every such text in a message gets a mark in front, a word that occurs
nowhere else; the template carries the marks along, and where they come out is text:

    marked    <|im_start|>user\\nWhat is xGuard0x<|im_end|>?<|im_end|>\\n
    pieces    <|im_start|>  | user\\nWhat is <|im_end|>? |  <|im_end|>\\n
              with specials | as plain text              |  with specials

A piece of plain text reaches from one control token of the template to the next, so that it
tokenises as llama.cpp would tokenise it there. Prompts without such texts are tokenised as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from erllama.chat.token_cache import TokenCache

_NOTHING = re.compile(r"(?!)")


class GuardVocab(Protocol):
    """What tokenising a guarded prompt asks of a vocabulary."""

    adds_bos: bool
    bos_text: str

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class ContentGuard:
    """`controls` finds the texts of a vocabulary's control tokens, `cache` knows the ids of what was
    tokenised before, for the same `owner`. Any thread.
    """

    controls: re.Pattern[str]
    cache: TokenCache
    owner: str = ""

    @classmethod
    def of(cls, control_texts: Iterable[str], cache: TokenCache | None = None) -> ContentGuard:
        # the longest first: one may begin with another
        texts = sorted(filter(None, control_texts), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, texts))) if texts else _NOTHING
        return cls(pattern, TokenCache(()) if cache is None else cache)

    def mark_for(self, *values: Any) -> str | None:
        """A word that is in none of `values`, if any text in them names a control token, else
        None.
        """
        texts = [text for value in values for text in _texts(value)]
        if not any(map(self.controls.search, texts)):
            return None
        n = 0
        while any(f"xGuard{n}x" in text for text in texts):
            n += 1
        return f"xGuard{n}x"

    def marked(self, value: Any, mark: str) -> Any:
        """A copy of `value` (JSON) with `mark` before every text that names a control token."""
        if isinstance(value, str):
            return type(value)(self.controls.sub(lambda match: mark + match.group(), value))
        if isinstance(value, Mapping):
            return {key: self.marked(item, mark) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(item, mark) for item in value]
        return value

    def tokenize(self, vocab: GuardVocab, text: str, mark: str | None, *, begins: bool = True) -> list[int]:
        """Token ids of a rendered prompt, or of a part of one that does not begin it (`begins`
        False). A template that writes BOS itself does not get a second one (llama.cpp's rule).
        """
        add_special = begins and vocab.adds_bos and not (vocab.bos_text and text.startswith(vocab.bos_text))

        def with_controls(piece: str, first: bool) -> list[int]:
            return vocab.tokenize(piece, add_special=first, parse_special=True)

        if mark is None or mark not in text:
            return self.cache.tokenize(text, with_controls, add_special=add_special, owner=self.owner)
        ids: list[int] = []
        for number, (piece, special) in enumerate(self._pieces(text, mark)):
            first = add_special and not number
            if special:
                ids += self.cache.tokenize(piece, with_controls, add_special=first, owner=self.owner)
            else:
                ids += vocab.tokenize(piece, add_special=first, parse_special=False)
        return ids

    def _pieces(self, text: str, mark: str) -> Iterator[tuple[str, bool]]:
        """The text without marks, in pieces: (text, whether control tokens are read in it)."""

        def is_marked(begin: int) -> bool:
            return text[max(0, begin - len(mark)) : begin] == mark

        real = [match.span() for match in self.controls.finditer(text) if not is_marked(match.start())]
        cuts = [0, *(edge for span in real for edge in span), len(text)]
        with_specials = ""
        for number, (begin, end) in enumerate(pairwise(cuts)):
            part = text[begin:end]
            if number % 2 or mark not in part:
                with_specials += part
                continue
            if with_specials:
                yield with_specials, True
                with_specials = ""
            yield part.replace(mark, ""), False
        if with_specials:
            yield with_specials, True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


NO_GUARD = ContentGuard.of(())
"""Reads control tokens wherever they stand, as `parse_special_in_content` asks for."""
