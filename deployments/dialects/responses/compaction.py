"""A conversation made short: its user's messages, and what the model says of the rest. Pure.

The summary travels in a sealed item of the type `compaction`, which a client puts in the place of
its history. What another server has sealed cannot be read and is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from deployments.dialects.responses.sealed import seal, unseal
from deployments.dialects.responses.stored.response import new_id
from deployments.dialects.responses.wire import ResponseBody

_ASKED = (
    "Summarise this conversation so far for whoever goes on with it without having read it. Write down what was asked "
    "for, what was done and found out, which files and decisions matter, and what is left to do. Answer with the "
    "summary alone."
)
_TOLD = "This is a summary of the conversation before this message:\n"


def summary_body(body: ResponseBody) -> ResponseBody:
    """The body that asks for a summary of a conversation, in free text."""
    given = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else list(body.input or ())
    asked = {"type": "message", "role": "user", "content": _ASKED}
    return body.model_copy(update={"input": [*given, asked], "tool_choice": "none", "text": None, "store": False})


def told_summary(item: Mapping[str, Any]) -> str:
    """What a template is shown of such an item; "" for one of another server."""
    sealed = item.get("encrypted_content")
    summary = unseal(sealed) if isinstance(sealed, str) else ""
    return _TOLD + summary if summary else ""


def compacted(items: Iterable[Any], summary: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    """The answer. `items` are those of the conversation, each with an id."""
    kept = [item for item in items if isinstance(item, dict) and item.get("role") == "user"]
    sealed = {"id": new_id("cmp"), "type": "compaction", "encrypted_content": seal(summary)}
    return {
        "id": new_id("resp"),
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*map(_as_message, kept), sealed],
        "usage": dict(usage),
    }


def _as_message(item: Mapping[str, Any]) -> dict[str, Any]:
    """Strict clients read messages whose parts are typed, and no short forms."""
    content = item.get("content")
    parts = [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    return {"type": "message", "status": "completed", **item, "content": parts}
