"""Transcripts of sessions: what was committed, how far the caller agrees, and what becomes of the
oldest.
"""

import pickle

import pytest

from erllama.engine.sessions import Sessions
from erllama.errors import InvalidParameter, SessionNotFound, TranscriptMismatch


@pytest.fixture
def sessions() -> Sessions:
    sessions = Sessions()
    sessions.commit("chat", [1, 2, 3, 4])
    return sessions


def test_the_transcript_is_what_was_committed_last(sessions: Sessions):
    sessions.commit("chat", [1, 2, 9])
    assert sessions.transcript("chat") == (1, 2, 9)


def test_a_transcript_does_not_change_with_the_list_it_was_made_of():
    sessions, tokens = Sessions(), [1, 2]
    sessions.commit("chat", tokens)
    tokens.append(3)
    assert sessions.transcript("chat") == (1, 2)


@pytest.mark.parametrize("expect", [None, 4, [1, 2, 3, 4], (1, 2, 3, 4)])
def test_who_agrees_gets_the_transcript(sessions: Sessions, expect: object):
    assert sessions.transcript("chat", expect) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("expect", "at"),
    [([1, 2, 7, 4], 2), ([9], 0), ([1, 2], 2), ([], 0), ([1, 2, 3, 4, 5], 4), (3, 3), (0, 0), (7, 4)],
    ids=str,
)
def test_who_does_not_agree_is_told_from_where_on(sessions: Sessions, expect: object, at: int):
    with pytest.raises(TranscriptMismatch, match=f"agree up to index {at}") as caught:
        sessions.transcript("chat", expect)
    assert caught.value.diverges_at == at
    assert caught.value.http_status == 409


def test_where_two_transcripts_part_survives_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(TranscriptMismatch("no", param="expect_committed", diverges_at=7)))
    assert (error.diverges_at, error.param, str(error)) == (7, "expect_committed", "no")


@pytest.mark.parametrize("expect", ["1234", True, 1.5, {1: 2}], ids=repr)
def test_an_expectation_is_ids_or_a_number(sessions: Sessions, expect: object):
    with pytest.raises(InvalidParameter, match="expect_committed"):
        sessions.transcript("chat", expect)


def test_an_unknown_session_is_an_error_that_says_what_to_do(sessions: Sessions):
    with pytest.raises(SessionNotFound, match="no session 'other' is known here; send the whole prompt"):
        sessions.transcript("other")


def test_ending_a_session_forgets_it_and_is_idempotent(sessions: Sessions):
    sessions.end("chat")
    sessions.end("chat")
    assert len(sessions) == 0
    with pytest.raises(SessionNotFound):
        sessions.transcript("chat")


def test_beyond_the_limit_the_one_committed_longest_ago_is_forgotten():
    sessions = Sessions(max_sessions=2)
    for name in ("a", "b", "a", "c"):
        sessions.commit(name, [1])
    assert len(sessions) == 2
    assert sessions.transcript("a") == sessions.transcript("c") == (1,)
    with pytest.raises(SessionNotFound):
        sessions.transcript("b")
