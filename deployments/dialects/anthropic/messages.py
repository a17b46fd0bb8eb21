"""Messages as chat templates read them, from those that clients send. Pure.

    system                  a system message in front
    text                    content; blocks of one message are joined by line breaks, an
                            assistant's by nothing: its blocks are pieces of one reply
    thinking                reasoning_content; redacted_thinking says nothing to a model
    document, search_result a text; a file that is none is refused
    tool_use                one of tool_calls
    tool_result             a message of the role tool, in its place among the user's texts

The outcome depends on nothing but the text, so that each turn's prompt begins with the last one's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from deployments.dialects.anthropic.wire import ConversationBody
from deployments.dialects.anthropic.wire_messages import SKIPPED, Block, Message
from erllama.chat.template import Ending


def template_messages(body: ConversationBody) -> list[dict[str, Any]]:
    """The conversation. A result gets the name of the tool that it names by its id."""
    names: dict[str | None, str] = {}
    out = [{"role": "system", "content": _joined(body.system)}] if body.system else []
    for message in body.messages:
        if message.role == "assistant":
            names |= {block.id: block.name or "" for block in message.content if block.type == "tool_use"}
            out.append(_assistant(message.content))
        else:
            out.extend(_said(message, names))
    return out


def prompt_ending(body: ConversationBody) -> Ending:
    """A reply goes on inside of a last message that is the assistant's: what the API calls a
    prefill.
    """
    last = body.messages[-1]
    kinds = {block.type for block in last.content}
    return "continued" if last.role == "assistant" and "text" in kinds and "tool_use" not in kinds else "opened"


def _joined(blocks: Sequence[Block], joint: str = "\n") -> str:
    return joint.join(block.text or "" for block in blocks if block.type == "text")


def _said(message: Message, names: dict[str | None, str]) -> Iterator[dict[str, Any]]:
    """What a user or the system says, and the results among it, in their order."""
    content = [block for block in message.content if block.type != SKIPPED]
    if not content:
        yield {"role": message.role, "content": ""}
    for kind, run in groupby(content, lambda block: block.type):
        if kind == "text":
            yield {"role": message.role, "content": _joined(list(run))}
        else:
            yield from (_result(block, names) for block in run)


def _result(block: Block, names: dict[str | None, str]) -> dict[str, Any]:
    shown = [inner for inner in block.content if inner.type != SKIPPED]
    text = "\n".join((inner.text if inner.type == "text" else inner.tool_name) or "" for inner in shown)
    if block.is_error:
        text = f"Error: {text}"
    name = names.get(block.tool_use_id)
    result = {"role": "tool", "content": text, "tool_call_id": block.tool_use_id}
    return result | {"name": name} if name else result


def _assistant(blocks: Sequence[Block]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _joined(blocks, "")}
    thought = "".join(block.thinking or "" for block in blocks if block.type == "thinking")
    calls = [_call(block) for block in blocks if block.type == "tool_use"]
    return message | ({"reasoning_content": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})


def _call(block: Block) -> dict[str, Any]:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
