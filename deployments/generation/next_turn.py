"""With which tokens the next prompt of a chat begins, once its reply is complete.

The client will send the reply back, and behind it a user's text, or the results of the calls in it. So
the conversation is rendered twice as it will come, with different texts in that place: what both have
in common does not depend on the text. It holds what the template closes the reply with and begins the
next message with, and the reply as history shows it, which for many templates is without its
reasoning. No knowledge of templates is needed, and where one writes a conversation differently with
every text, there is nothing in common but what was there before.

Whether a client sends the reasoning back is told by what it has sent so far. In a first turn nothing
tells, and what both ways have in common is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from deployments.generation.pins import n_common
from deployments.http.ports import Record
from erllama.chat.tool_formats.base import ReplySplitter, SplitReply, collect_parts
from erllama.chat.transcript_layout import reasoning_of
from erllama.events import Completion, FinishReason
from erllama.prompts.next_turn import NextTurn
from erllama.request import Prompt

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], Sequence[int]]
"""The tokens of the conversation with these messages behind it. Raises what rendering raises."""

_TEXTS = ("?", "1")  # which no text of a user or a tool has in common


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What comes after the reply to `prompt`, of which the conversation is `messages`. `splitter` makes
    what cuts a reply's text. `render` may take as long as the prompt did. `piece_of` gives the bytes of a
    token, b"" for one that no text runs into.
    """

    prompt: Prompt
    messages: Sequence[Message]
    splitter: Callable[[], ReplySplitter | None]
    render: Render
    piece_of: Callable[[int], bytes]

    def turn(self, request_id: str, reply: Completion) -> NextTurn | None:
        """None where nothing is known beyond what the request has computed, or where the reply was cut
        off: nobody knows what becomes of it. Raises what rendering raises.
        """
        if reply.stats.finish_reason is not FinishReason.STOP or reply.stats.resumed_tokens or not reply.tokens:
            return None
        said = self._said(reply)
        if not said.content and not said.calls:
            return None
        ways = [replied(said, reasoning=tells) for tells in self._tells_reasoning(said)]
        prompts = [self.render([*way, *follow(said, text)]) for way in ways for text in _TEXTS]
        known = reduce(lambda one, other: one[: n_common(one, other)], prompts)
        known = known[: self._n_settled(known)]
        answered = (*self.prompt.tokens, *reply.tokens)
        if len(known) <= (n_kept := n_common(known, answered)):
            return None
        n_kept = min(n_kept, len(answered) - 1)  # the KV of the last token need not be there
        return NextTurn(request_id, tuple(known), n_kept) if n_kept else None

    def _n_settled(self, known: Sequence[int]) -> int:
        """Without those that may become one token with the beginning of a text: white space, else a piece
        of text.
        """
        n = len(known)
        while n and self.piece_of(known[n - 1]).isspace():
            n -= 1
        return n - 1 if n and n == len(known) and self.piece_of(known[n - 1]) else n

    def _said(self, reply: Completion) -> SplitReply:
        splitter = self.splitter()
        if splitter is None:
            return SplitReply(reply.text, "", [])
        return collect_parts(splitter.push(reply.text) + splitter.finish())

    def _tells_reasoning(self, said: SplitReply) -> tuple[bool, ...]:
        """The ways in which the reply may come back: with its reasoning, or without."""
        if not said.reasoning:
            return (False,)
        replies = [one for one in self.messages if one.get("role") == "assistant"]
        return (any(map(reasoning_of, replies)),) if replies else (True, False)


def replied(said: SplitReply, *, reasoning: bool) -> list[Message]:
    """The reply as the message that the client sends back."""
    message: dict[str, Any] = {"role": "assistant", "content": said.content or None}
    if said.calls:
        message["tool_calls"] = [
            {"id": f"next_{n}", "type": "function", "function": {"name": one.name, "arguments": one.arguments_json}}
            for n, one in enumerate(said.calls)
        ]
    return [message | ({"reasoning_content": said.reasoning} if reasoning else {})]


def follow(said: SplitReply, text: str) -> list[Message]:
    """What comes behind it."""
    if not said.calls:
        return [{"role": "user", "content": text}]
    return [{"role": "tool", "tool_call_id": f"next_{n}", "content": text} for n in range(len(said.calls))]


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """What becomes of each whole reply of a chat: `remember` lets it be found when it comes back, and
    `follow_up` tells how, None where that is not asked for.
    """

    remember: Record
    follow_up: FollowUp | None = None

    def __call__(self, reply: Completion) -> None:
        self.remember(reply)
