"""Token pieces in, text that may be shown out.

Two things make a piece of text uncertain, and both are held back until they are decided: a character whose UTF-8 bytes are spread over
tokens, and text that could be the beginning of a stop string. What has been returned is never taken back, and no part of a stop string is
ever returned.

The stop strings live in one Aho-Corasick automaton: after each character its state is the longest end of the text that begins some stop
string, so the depth of the state *is* the number of characters to hold back, and a character costs amortised O(1) whatever came before.

Which stop string wins is decided on the whole text and hence independent of how it was cut into tokens: the one that begins earliest, among
those the longest. This costs a look-ahead only where one stop string overlaps another ("ab" and "abc", or "bc" and "abcd").

Not thread-safe: one `TextStream` belongs to one sequence, and to the thread that advances it.
"""

from __future__ import annotations

import codecs
from collections import deque

ROOT = 0


class _StopAutomaton:
    """Aho-Corasick over characters. Node 0 is the root; immutable after construction."""

    __slots__ = ("depth", "fail", "found", "goto")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self.goto: list[dict[str, int]] = [{}]
        self.fail: list[int] = [ROOT]
        self.depth: list[int] = [0]  # number of characters from the root
        self.found: list[int] = [0]  # length of the longest stop string that ends here, 0 for none
        for text in stop:
            self._insert(text)
        self._link()

    def _insert(self, text: str) -> None:
        node = ROOT
        for char in text:
            child = self.goto[node].get(char)
            if child is None:
                child = len(self.goto)
                self.goto[node][char] = child
                self.goto.append({})
                self.fail.append(ROOT)
                self.depth.append(self.depth[node] + 1)
                self.found.append(0)
            node = child
        self.found[node] = len(text)

    def _link(self) -> None:
        queue = deque(self.goto[ROOT].values())
        while queue:
            node = queue.popleft()
            for char, child in self.goto[node].items():
                self.fail[child] = self.step(self.fail[node], char)
                # A node's own string is longer than any that ends at its failure node, so the first one found stays.
                self.found[child] = self.found[child] or self.found[self.fail[child]]
                queue.append(child)

    def step(self, node: int, char: str) -> int:
        while node != ROOT and char not in self.goto[node]:
            node = self.fail[node]
        return self.goto[node].get(char, ROOT)


class TextStream:
    """The text of one reply. `stop` holds non-empty strings; an empty tuple switches stop strings off.

    `stopped` turns True once, with the push (or `finish`) that decides it; `stop_sequence` then names the stop string and every later piece
    is dropped. Invalid UTF-8 becomes U+FFFD exactly as `bytes.decode("utf-8", "replace")` would do on the whole reply; nothing raises.
    """

    __slots__ = ("_automaton", "_decoder", "_held", "_match_length", "_match_start", "_node", "stop_sequence")

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.stop_sequence: str | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._automaton = _StopAutomaton(stop) if stop else None
        self._node = ROOT
        self._held = ""  # decoded, not yet returned; positions below count from its beginning
        self._match_start = 0
        self._match_length = 0  # 0: no stop string is complete yet

    def __repr__(self) -> str:
        state = f"stopped by {self.stop_sequence!r}" if self.stopped else f"holds {self._held!r}"
        return f"<TextStream {state}>"

    @property
    def stopped(self) -> bool:
        return self.stop_sequence is not None

    def push(self, piece: bytes) -> str:
        """The text that became certain with `piece` (the bytes of one token, or of none); "" after a stop."""
        if self.stopped:
            return ""
        return self._scan(self._decoder.decode(piece))

    def finish(self) -> str:
        """What is still held back, at the end of the reply: incomplete bytes as U+FFFD, the beginning of a stop string as text.

        A stop string that was complete but waiting for a longer one takes effect here. Calling it again returns "".
        """
        if self.stopped:
            return ""
        certain = self._scan(self._decoder.decode(b"", final=True))
        if self._match_length:
            return certain + self._stop()
        held, self._held, self._node = self._held, "", ROOT
        return certain + held

    def _scan(self, new: str) -> str:
        automaton = self._automaton
        if automaton is None or not new:
            return new
        position = len(self._held)
        self._held += new
        node = self._node
        for char in new:
            node = automaton.step(node, char)
            position += 1
            length = automaton.found[node]
            if length:
                self._note_match(position - length, length)
            if self._match_length and self._decided(node, position):
                return self._stop()
        self._node = node
        return self._release(position - automaton.depth[node])

    def _note_match(self, start: int, length: int) -> None:
        if not self._match_length or (start, -length) < (self._match_start, -self._match_length):
            self._match_start, self._match_length = start, length

    def _decided(self, node: int, position: int) -> bool:
        """No stop string that begins earlier, or as early and runs longer, is still possible."""
        assert self._automaton is not None
        pending_start = position - self._automaton.depth[node]
        return pending_start > self._match_start or (pending_start == self._match_start and not self._automaton.goto[node])

    def _release(self, n_chars: int) -> str:
        certain, self._held = self._held[:n_chars], self._held[n_chars:]
        self._match_start -= n_chars  # meaningless without a match; with one, n_chars <= match_start because it was not decided
        return certain

    def _stop(self) -> str:
        end = self._match_start + self._match_length
        self.stop_sequence = self._held[self._match_start : end]
        certain, self._held, self._match_length = self._held[: self._match_start], "", 0
        return certain
