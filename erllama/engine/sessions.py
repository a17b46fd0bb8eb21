"""Conversations that a client continues by name: the tokens committed to each session. Engine
thread only.

A session is a transcript and, while there is room, a pinned sequence in the context (`live_kv`).
Losing the sequence costs a restore, losing the transcript (a restart, or too many sessions) an
error that says so: the client then sends its whole prompt again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from erllama.errors import InvalidParameter, SessionNotFound, TranscriptMismatch
from erllama.request import GenerationRequest
from erllama.session_name import shown_session

MAX_SESSIONS = 4096  # transcripts cost 4 bytes a token in arrays and some 30 here; the oldest go first


class Sessions:
    """Transcripts by session id, least recently used first."""

    def __init__(self, max_sessions: int = MAX_SESSIONS) -> None:
        self._max = max_sessions
        self._transcripts: OrderedDict[str, tuple[int, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._transcripts)

    def recent(self) -> tuple[str, ...]:
        """All session ids, the latest first."""
        return tuple(reversed(self._transcripts))

    def commit(self, session_id: str, tokens: Sequence[int]) -> None:
        """The session's transcript is `tokens` now."""
        self._transcripts[session_id] = tuple(tokens)
        self._transcripts.move_to_end(session_id)
        while len(self._transcripts) > self._max:
            self._transcripts.popitem(last=False)

    def transcript(self, session_id: str, expect: Sequence[int] | int | None = None) -> tuple[int, ...]:
        """The committed tokens. `expect` is what the caller believes them to be: all ids, or their
        number.

        Raises `SessionNotFound`, or `TranscriptMismatch` that tells where the two part.
        """
        tokens = self._transcripts.get(session_id)
        if tokens is None:
            raise SessionNotFound(
                f"no session {shown_session(session_id)!r} is known here; send the whole prompt", param="session_id"
            )
        if expect is not None:
            _check(session_id, tokens, expect)
        return tokens

    def texts_beside(self, request: GenerationRequest) -> list[tuple[int, ...]]:
        """What was committed to the session of a request, where its prompt does not begin with it."""
        committed = self._transcripts.get(request.session_name or "")
        if committed is None or request.prompt_tokens[: len(committed)] == committed:
            return []
        return [committed]

    def fork(self, session_id: str, new_id: str) -> None:
        """A new session with the same transcript. Raises `SessionNotFound`, `InvalidParameter` for a known one."""
        tokens = self.transcript(session_id)
        if new_id in self._transcripts:
            raise InvalidParameter(f"a session {shown_session(new_id)!r:.80} is known already", param="new_session_id")
        self.commit(new_id, tokens)

    def end(self, session_id: str) -> None:
        """Forget a session. Idempotent."""
        self._transcripts.pop(session_id, None)


def _check(session_id: str, tokens: tuple[int, ...], expect: object) -> None:
    if isinstance(expect, bool | str) or not isinstance(expect, int | Sequence):
        raise InvalidParameter(
            f"expect_committed must be token ids or their number, got {expect!r:.80}", param="expect_committed"
        )
    n_expected = expect if isinstance(expect, int) else len(expect)
    at = min(n_expected, len(tokens))
    if not isinstance(expect, int):
        at = next((i for i in range(at) if tokens[i] != expect[i]), at)
    if at < len(tokens) or n_expected != len(tokens):
        raise TranscriptMismatch(
            f"session {shown_session(session_id)!r} has {len(tokens)} committed tokens, {n_expected} were expected; "
            f"they agree up to index {at}",
            param="expect_committed",
            diverges_at=at,
        )
