"""Markdown on a terminal while it is being written.

What is finished is printed once and scrolls away; only the paragraph, list or code block that is
still growing is drawn again, a few times per second. So a long reply costs what it is long, and not
the square of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

_FRAME_S = 1 / 8


class MarkdownStream:
    """Use it as a context manager: at the end all is printed, whatever ended it. One thread: rich's own
    refreshing one may draw between what another prints and what that erases, and leaves lines behind.
    `clock` is in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._open = ""
        self._drawn_s = float("-inf")
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(Text())
        self._live.stop()
        self._print(self._open)
        self._open = ""

    def feed(self, text: str) -> None:
        """The next piece of the text."""
        done, self._open = split_finished(self._open + text)
        if done:
            self._live.console.print(Markdown(done))
        now_s = self._clock()
        is_due = bool(done) or now_s - self._drawn_s >= _FRAME_S
        self._live.update(Markdown(_tail(self._open, self._console.height)), refresh=is_due)
        if is_due:
            self._drawn_s = now_s

    def _print(self, text: str) -> None:
        if text.strip():
            self._console.print(Markdown(text))


def split_finished(text: str) -> tuple[str, str]:
    """What no further text can change, and the rest: up to the last empty line outside of a code block.
    Lists and quotes go on over empty lines; each part of one is then drawn by itself, which looks the
    same.
    """
    end, fence, at = 0, "", 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        mark = line.lstrip()[:3]
        if fence:
            fence = "" if line.strip() == fence else fence
        elif mark in ("```", "~~~"):
            fence = mark
        elif not line.strip() and line.endswith("\n"):
            end = at
    return text[:end], text[end:]


def _tail(text: str, height: int) -> str:
    """As many of the last lines as the terminal can draw again."""
    lines = text.splitlines()
    return text if len(lines) < height else "\n".join(lines[-max(1, height - 2) :])
