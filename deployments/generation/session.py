"""How clients name the session of a request. A name keeps requests on one replica where it can, and binds
no history: a session asks for titles and quotas, too.
"""

from __future__ import annotations

from collections.abc import Mapping

SESSION_HEADERS = (
    "x-claude-code-session-id", "session-id", "session_id", "x-session-id", "x-session-affinity", "thread-id",
    "x-deepseek-harness-session-id", "x-hermes-session-id", "x-litellm-session-id",
)  # fmt: skip
"""Headers in which clients name their session: Claude Code, Codex, opencode, pi and others."""


def session_of(headers: Mapping[str, str]) -> str | None:
    """The session that a request names in its `headers`, which are looked up in any case."""
    return next((headers[name] for name in SESSION_HEADERS if headers.get(name)), None)
