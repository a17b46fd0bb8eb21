"""Cuts a reply into reasoning, text and calls, for every family alike; what a call looks like is
the affair of a `CallReader`.

    reasoning   up to its closing text; only at the beginning of a reply
    text        up to a text that may begin a call
    call        as far as its reader takes it; what the reader refuses stays text

White space before a call, and white space after one that no text follows, is layout and dropped.
All other text is preserved, and what may still become a marker is held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from erllama.chat.tool_formats.base import ReasoningDelta, ReplyPart, ReplySplitter, TextDelta, ToolFormat, ToolSpec

# beginnings that are no call; after so many the rest is text: each is searched to the end of the
# reply
MAX_FAILED_CALLS = 256


class NotACall(Exception):
    """What looked like the beginning of a call is text."""


class CallReader(Protocol):
    """Reads one call, or one list of calls, from its opening on."""

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        """What became certain with `text`, which is everything from the opening on and longer each
        time; and where the call ends in it, None while it has not ended.

        `final` says that no more will come. Raises `NotACall` unless parts have been given out.
        """
        ...


class Splitter:
    """See `ReplySplitter`. `openings` are the texts that begin what may be a call, and `reader`
    makes who reads it. `only_first`: calls are the beginning of a reply, or text.
    `calls_end_reasoning`: so does an opening of a call, which is then no part of a thought.
    """

    def __init__(
        self,
        openings: tuple[str, ...],
        reader: Callable[[], CallReader],
        *,
        reasoning: tuple[str, str] | None,
        in_reasoning: bool = False,
        only_first: bool = False,
        calls_end_reasoning: bool = False,
    ) -> None:
        self._openings = openings
        self._pattern = re.compile("|".join(map(re.escape, openings)) or r"(?!)")
        self._make_reader = reader
        self._reasoning = reasoning  # None once it is over
        self._in_reasoning = in_reasoning
        self._skips_breaks = in_reasoning  # line breaks that come next are layout
        self._buffer = ""  # of a call: from its opening on
        self._space = ""  # white space before that opening
        self._reader: CallReader | None = None
        self._n_failed = 0
        self._after_call = False
        self._only_first = only_first
        self._thought_ends = openings if calls_end_reasoning else ()
        self._begun = False  # text or a call has been there

    @property
    def thinks(self) -> bool | None:
        return None if self._reasoning is None else self._in_reasoning

    def push(self, text: str) -> list[ReplyPart]:
        self._buffer += text
        return self._drain(final=False)

    def _skip_breaks(self) -> None:
        if self._skips_breaks:
            self._buffer = self._buffer.lstrip("\n")
            self._skips_breaks = not self._buffer

    def finish(self) -> list[ReplyPart]:
        out = self._drain(final=True)
        if not (self._after_call and self._buffer.isspace()):
            self._emit(out, len(self._buffer))
        return out

    def _drain(self, *, final: bool) -> list[ReplyPart]:
        out: list[ReplyPart] = []
        if self._reasoning is not None and not self._read_reasoning(out, *self._reasoning, final=final):
            return out
        while self._read_call(out, final=final) if self._reader is not None else self._read_text(out, final=final):
            pass
        return out

    def _read_reasoning(self, out: list[ReplyPart], opening: str, closing: str, *, final: bool) -> bool:
        """Whether the reasoning is over, or will not come. Line breaks around it are layout."""
        if not self._in_reasoning:
            begun = self._buffer.lstrip()
            if not begun.startswith(opening):
                if (begun and not opening.startswith(begun)) or final:
                    self._reasoning = None
                return self._reasoning is None
            self._buffer, self._in_reasoning, self._skips_breaks = begun.removeprefix(opening), True, True
        self._skip_breaks()
        ends = (closing, *self._thought_ends)
        found = re.search("|".join(map(re.escape, ends)), self._buffer)
        thought = self._buffer if found is None else self._buffer[: found.start()]
        if found is None:
            settled = len(thought) if final else len(thought) - held_prefix(thought, ends)
            thought = thought[:settled]
        n_certain = len(thought) if final and not found else len(thought.rstrip("\n"))
        if n_certain:
            out.append(ReasoningDelta(thought[:n_certain]))
            self._buffer = self._buffer[n_certain:]
        if found is not None:
            begin = found.end() if found.group() == closing else found.start()
            self._buffer = self._buffer[begin - n_certain :]
            self._reasoning, self._skips_breaks = None, True
        return self._reasoning is None

    def _read_text(self, out: list[ReplyPart], *, final: bool) -> bool:
        """Whether a call may begin where the text ends."""
        self._skip_breaks()
        if self._only_first and not self._begun:
            rest = self._buffer.lstrip()
            if not final and not rest.startswith(self._openings) and held_prefix(rest, self._openings) == len(rest):
                return False
            self._begun = not rest.startswith(self._openings)
        given_up = self._n_failed >= MAX_FAILED_CALLS or (self._only_first and self._begun)
        match = None if given_up else self._pattern.search(self._buffer)
        if match is None:
            held = 0 if final or given_up else held_prefix(self._buffer, self._openings)
            self._emit(out, len(self._buffer[: len(self._buffer) - held].rstrip()))
            return False
        self._emit(out, len(self._buffer[: match.start()].rstrip()))
        rest = self._buffer.lstrip()
        self._space, self._buffer = self._buffer[: len(self._buffer) - len(rest)], rest
        self._reader = self._make_reader()
        return True

    def _read_call(self, out: list[ReplyPart], *, final: bool) -> bool:
        """Whether the call has ended, one way or the other."""
        assert self._reader is not None
        try:
            parts, end = self._reader.read(self._buffer, final=final)
        except NotACall:
            self._n_failed += 1
            self._reader = None
            opening = self._pattern.match(self._buffer)
            assert opening is not None
            self._buffer = self._space + self._buffer
            # only the opening is known to be text: a call may follow inside
            self._emit(out, len(self._space) + opening.end())
            return True
        out += parts
        if end is None:
            return False
        self._buffer, self._reader, self._after_call, self._begun = self._buffer[end:], None, True, True
        return True

    def _emit(self, out: list[ReplyPart], n_chars: int) -> None:
        if n_chars:
            out.append(TextDelta(self._buffer[:n_chars]))
            self._buffer = self._buffer[n_chars:]
            self._after_call, self._begun = False, True


class FramedReader:
    """Reads calls with `reader`, and passes over the texts of `layout`, which are openings, too: a
    family's marks around the text of a reply.
    """

    def __init__(self, layout: tuple[str, ...], reader: CallReader) -> None:
        self._layout = layout
        self._reader = reader

    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        mark = next((mark for mark in self._layout if text.startswith(mark)), None)
        return ([], len(mark)) if mark is not None else self._reader.read(text, final=final)


def held_prefix(text: str, markers: tuple[str, ...]) -> int:
    """How many characters at the end of `text` may begin one of `markers`."""
    longest = max(map(len, markers), default=0) - 1
    for n in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[len(text) - n :]) for marker in markers):
            return n
    return 0


def reply_splitter(
    tool_format: ToolFormat, tools: Sequence[ToolSpec], *, in_reasoning: bool = False
) -> ReplySplitter | None:
    """What cuts a reply of a model that was offered `tools`. Without any, calls are text like any
    other (not in formats that have marks around text as well), and None means that there is nothing
    to cut.
    """
    if tools or tool_format.layout:
        return tool_format.splitter(tools, in_reasoning=in_reasoning)
    if tool_format.reasoning is None:
        return None
    return Splitter((), _NoCalls, reasoning=tool_format.reasoning, in_reasoning=in_reasoning)


class _NoCalls:
    def read(self, text: str, *, final: bool) -> tuple[list[ReplyPart], int | None]:
        raise NotACall
