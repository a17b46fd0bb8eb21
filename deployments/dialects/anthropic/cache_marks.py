"""Where a client wants the prompt to be cached up to: `cache_control` on tools, system blocks and the
blocks of messages. The last one counts; all tokens before it are worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deployments.dialects.anthropic.messages import template_messages
from deployments.dialects.anthropic.wire import ConversationBody
from deployments.dialects.anthropic.wire_messages import Block
from deployments.generation.pins import LONG_S, SHORT_S, PrefixMark


def prefix_mark(body: ConversationBody) -> PrefixMark | None:
    """The mark of a body. A message counts as a whole, wherever in it the mark stands. What is no mark
    is passed over: it is a hint.
    """
    ttl_s = _ttl_s([body.cache_control])
    if ttl_s is not None:  # the client leaves the place to the server: as far as there is something to cache
        return PrefixMark(len(template_messages(body)), ttl_s)
    for number in range(len(body.messages), 0, -1):
        ttl_s = _of_blocks(body.messages[number - 1].content)
        if ttl_s is not None:
            before = body.model_copy(update={"messages": body.messages[:number]})
            return PrefixMark(len(template_messages(before)), ttl_s)
    ttl_s = _of_blocks(body.system)
    if ttl_s is not None:
        return PrefixMark(1, ttl_s)
    ttl_s = _ttl_s(tool.cache_control for tool in body.tools or ())
    return None if ttl_s is None else PrefixMark(0, ttl_s)


def _of_blocks(blocks: list[Block]) -> float | None:
    return _ttl_s(block.cache_control for outer in blocks for block in (outer, *outer.content))


def _ttl_s(controls: Iterable[Any]) -> float | None:
    """For how long the last mark among them asks; None without one."""
    marks = [found for found in controls if isinstance(found, dict) and found.get("type") == "ephemeral"]
    if not marks:
        return None
    return LONG_S if marks[-1].get("ttl") == "1h" else SHORT_S
