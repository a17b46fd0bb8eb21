"""What stood before a reply when it was sampled, where a template writes something else before the
replies of a history. Pure.

    the prompt that was answered    ...<|user|>\\nHello<|assistant|>
    the same in a history           ...<|user|>\\nHello<|assistant|>\\n<think></think>\\n

Templates do so where a model may think first (they write that it did not), where a reply goes on
behind a tool's result, or by mistake. Taken from the template, the tokens of the reply and all
behind them would have to be computed once more with every turn.

Which texts these are hangs on the role of the message before the reply, and on whether a user has
spoken since; so each such case is rendered once in a prompt, when a reply is not found without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from erllama.errors import ErllamaError

MAX_CHARS = 120  # longer ones say something: a template that instructs the model at the end of a prompt
MAX_RENDERED = 8

_NEAR_CHARS = 1000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Opening:
    """Where the text between a message's last word and the reply to it differs: `now`, in the
    history, and `then`, at the end of the prompt.
    """

    now: str = ""
    then: str = ""

    def restored(self, text: str) -> str | None:
        """`text` of the history as it stood in the prompt; None if it does not end with `now`."""
        return text.removesuffix(self.now) + self.then if text.endswith(self.now) else None


PRESENT = Opening()
"""The one that the template writes in the history, too."""


class Openings:
    """Of one prompt, whose rendered text is `text`. `render` writes messages and opens a reply to
    them. One thread.
    """

    def __init__(
        self, text: str, messages: Sequence[Mapping[str, Any]], render: Callable[[Sequence[Mapping[str, Any]]], str]
    ) -> None:
        self._text = text
        self._messages = messages
        self._render = render
        self._known: dict[tuple[str, bool, bool], Opening | None] = {}
        self._left = MAX_RENDERED
        self._last_user = max((i for i, one in enumerate(messages) if one["role"] == "user"), default=-1)

    def of(self, index: int, at: int, *, has_thought: bool) -> Opening | None:
        """That of the reply which is message `index` and begins, with reasoning or not, at this
        place of the text; None when both texts are the same, or cannot be told.
        """
        if not index:
            return None
        case = (self._messages[index - 1]["role"], index > self._last_user, has_thought)
        if case not in self._known and self._left:
            self._left -= 1
            now, then = self._between(index, at)
            if now is None or then is None:
                return None
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(now, then, strict=False)))
            opening = Opening(now[alike:], then[alike:])
            usable = now != then and max(len(opening.now), len(opening.then)) <= MAX_CHARS
            self._known[case] = opening if usable else None
        return self._known.get(case)

    def _between(self, index: int, at: int) -> tuple[str | None, str | None]:
        try:
            prompt = self._render(self._messages[:index])
        except ErllamaError:
            return None, None
        words = _WORD.findall(self._messages[index - 1]["content"])
        return (_behind(self._text[:at], words[-1]), _behind(prompt, words[-1])) if words else (None, None)


def _behind(text: str, word: str) -> str | None:
    """What follows the last occurrence of `word`, if it stands near the end."""
    near = text[-_NEAR_CHARS:]
    found = list(re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", near))
    return near[found[-1].end() :] if found else None
