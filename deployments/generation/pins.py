"""Which beginning of a conversation is worth keeping, in tokens.

A client marks a place behind a message, or behind the tools. The tokens before it are what the prompt
has in common with a second rendering that goes on differently from there: by the same template, so no
knowledge of templates is needed. A mark behind the last message, or behind more than half of the
conversation, stands for all of it and costs no rendering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.http.ports import PromptPort
from erllama.errors import ErllamaError
from erllama.request import Pin, Prompt

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

SHORT_S, LONG_S = 300.0, 3600.0  # what clients call 5m and 1h

_COMPARED = 512  # tokens at a time: tuples are compared in C
_ANY_USER = ({"role": "user", "content": "?"}, {"role": "user", "content": "1"})


@dataclass(frozen=True, slots=True)
class PrefixMark:
    """The tools and the first `n_messages` (as templates read them) are worth keeping for `ttl_s`."""

    n_messages: int
    ttl_s: float


def marked_pin(
    mark: PrefixMark | None,
    prompt: Prompt,
    prompts: PromptPort,
    messages: Messages,
    tools: Tools,
    variables: Mapping[str, Any],
) -> Pin | None:
    """The pin of a prompt that `messages` were rendered to. None without a mark, for prompts that are
    not worth it, and where the template cannot render the beginning alone. May take as long as the
    rendering did.
    """
    if mark is None or prompts.pins_from is None or len(prompt) < prompts.pins_from:
        return None
    if mark.n_messages >= len(messages) or _is_most(messages, tools, mark.n_messages):
        return Pin(len(prompt), mark.ttl_s)
    try:
        head = prompts.render_chat([*messages[: mark.n_messages], _ANY_USER[0]], tools, variables)
    except ErllamaError:
        return None
    n_tokens = n_common(prompt.tokens, head.prompt.tokens)
    return Pin(n_tokens, mark.ttl_s) if n_tokens >= prompts.pins_from else None


def _is_most(messages: Messages, tools: Tools, n_messages: int) -> bool:
    """Whether the tools and the first messages are more than half of a conversation: then keeping all of
    it costs less than finding out where they end.
    """
    sizes = [len(str(message.get("content") or "")) for message in messages]
    head = sum(sizes[:n_messages]) + sum(len(str(tool)) for tool in tools or ())
    return head > sum(sizes[n_messages:])


def chat_head(prompts: PromptPort, messages: Messages, tools: Tools) -> Sequence[int]:
    """The tokens with which every chat begins that has these tools and messages in front and goes on
    with a user's message. May take long. Raises what rendering raises.
    """
    one, other = (prompts.render_chat([*messages, more], tools, {}).prompt.tokens for more in _ANY_USER)
    return one[: n_common(one, other)]


def n_common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens `a` and `b`, of one type, begin with alike."""
    n = min(len(a), len(b))
    at = next((at for at in range(0, n, _COMPARED) if a[at : at + _COMPARED] != b[at : at + _COMPARED]), n)
    return next((i for i in range(at, n) if a[i] != b[i]), n)
