"""Token pieces in, text that may be shown out.

Two things make a piece of text uncertain, and both are held back until they are decided: a
character whose UTF-8 bytes are spread over tokens, and text that could be the beginning of a stop
string. What has been returned is never taken back, and no part of a stop string is ever returned.

The stop strings are one compiled alternation, longest first, so that its first match is the stop
string that begins earliest and among those the longest. That match counts once nothing that follows
can bring a better one. The answer depends on the whole text alone, not on how it was cut into
tokens, and costs a look-ahead only where one stop string overlaps another ("ab" and "abc", or "bc"
and "abcd").

Not thread-safe: one `TextStream` belongs to one sequence, and to the thread that advances it.
"""

from __future__ import annotations

import codecs
import re


class TextStream:
    """The text of one reply. `stop` holds non-empty strings; an empty tuple switches stop strings
    off.

    `stopped` turns True once, with the push (or `finish`) that decides it; `stop_sequence` then
    names the stop string and every later piece is dropped. Invalid UTF-8 becomes U+FFFD exactly as
    `bytes.decode("utf-8", "replace")` would do on the whole reply; nothing raises.
    """

    __slots__ = ("_beginnings", "_decoder", "_held", "_longest", "_stop", "stop_sequence")

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop_sequence: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = re.compile("|".join(map(re.escape, sorted(stop, key=len, reverse=True)))) if stop else None
        self._beginnings = frozenset(text[:n] for text in stop for n in range(1, len(text)))
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""  # decoded, not yet returned

    def __repr__(self) -> str:
        state = f"stopped by {self.stop_sequence!r}" if self.stopped else f"holds {self._held!r}"
        return f"<TextStream {state}>"

    @property
    def stopped(self) -> bool:
        return self.stop_sequence is not None

    def push(self, piece: bytes) -> str:
        """The text that became certain with `piece` (a token's bytes, or none); "" after a stop."""
        return "" if self.stopped else self._scan(self._decoder.decode(piece), final=False)

    def finish(self) -> str:
        """What is still held back, at the end of the reply: incomplete bytes as U+FFFD, the
        beginning of a stop string as text.

        A stop string that was complete but waiting for a longer one takes effect here. Calling it
        again returns "".
        """
        return "" if self.stopped else self._scan(self._decoder.decode(b"", final=True), final=True)

    def _scan(self, new: str, *, final: bool) -> str:
        if self._stop is None:
            return new
        text = self._held + new
        open_from = len(text) if final else self._open_from(text)
        found = self._stop.search(text)
        if found is not None and found.start() < open_from:
            self.stop_sequence, self._held = found[0], ""
            return text[: found.start()]
        self._held = text[open_from:]
        return text[:open_from]

    def _open_from(self, text: str) -> int:
        """Where the longest end of `text` begins that is the beginning, and not yet all, of a stop
        string; its length without one.
        """
        n_chars = len(text)
        starts = range(max(0, n_chars - self._longest), n_chars)
        return next((i for i in starts if text[i:] in self._beginnings), n_chars)
