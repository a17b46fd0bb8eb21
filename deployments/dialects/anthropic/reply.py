"""What replies are written with: errors, usage, reasons to stop, blocks; and the reply that is not
streamed.

An error has Anthropic's shape, `{"type": "error", "error": {"type", "message"}, "request_id"}`,
whole as a body or as an event of a stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deployments.generation.chat import ReadyChat
from deployments.generation.identity import ReplyIds
from deployments.http.body import encode
from erllama.chat.tool_formats.base import ArgumentsDelta, CallStart, ReasoningDelta, ReplyPart, TextDelta
from erllama.errors import ContextOverflow, ErllamaError
from erllama.events import Completion, FinishReason, RequestStats

OVERLOADED = 529  # what Anthropic says where others say 503

# Thinking blocks have one, and clients drop blocks whose signature is empty. It proves nothing: a
# model that runs here may read any thinking.
SIGNATURE = "ZXJsbGFtYQ=="

_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_type(http_status: int) -> str:
    """Anthropic's name of a status: other 4xx are `invalid_request_error`, other 5xx `api_error`."""
    return _ERROR_TYPES.get(http_status) or ("invalid_request_error" if http_status < 500 else "api_error")


def error_body(error: ErllamaError, request_id: str) -> bytes:
    """There is no place for the field but the message. A prompt that is too long is told in the
    words on which clients compact it.
    """
    message = error.message
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    if isinstance(error, ContextOverflow) and error.n_prompt:
        message = f"prompt is too long: {error.n_prompt} tokens > {error.n_most} maximum"
    fields = {"type": error_type(error.http_status), "message": message}
    return encode({"type": "error", "error": fields, "request_id": request_id}).encode()


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What a reply says first. `model` is the name in the request, `max_tokens` the bound in it,
    `ids` are those of the reply and its calls.
    `edits_context`: the client asked for context edits, and is told that there were none.
    """

    model: str
    prompt_tokens: int
    ids: ReplyIds
    max_tokens: int | None = None
    edits_context: bool = False

    @property
    def edits(self) -> dict[str, Any]:
        """What the end of a reply says of context edits: templates drop old thinking themselves."""
        return {"context_management": {"applied_edits": []}} if self.edits_context else {}

    def message(self) -> dict[str, Any]:
        return {
            "id": f"msg_{self.ids.new(24)}",
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }


def usage(input_tokens: int, cached: int, output_tokens: int, *, created: int = 0) -> dict[str, Any]:
    """`input_tokens` are those of the prompt that were neither `cached` nor `created`."""
    return {
        "input_tokens": input_tokens,
        "cache_creation_input_tokens": created,
        "cache_read_input_tokens": cached,
        "output_tokens": output_tokens,
    }


def final_usage(stats: RequestStats, thinking_tokens: int, marked: int) -> dict[str, Any]:
    """The usage of a whole reply. Of the first `marked` tokens of the prompt, up to the client's last
    breakpoint, those that were computed now count as written to the cache. All computed ones are kept,
    but that is what the API's clients mean by it.

    The last token of a prompt is always input: the first token of the reply is drawn behind it, and an
    input of 0 is no number that clients take for one.
    """
    most = stats.prompt_tokens - 1
    cached = min(stats.cached_tokens, most)
    created = max(0, min(marked, most) - cached)
    counts = usage(stats.prompt_tokens - cached - created, cached, stats.completion_tokens, created=created)
    return counts | {"output_tokens_details": {"thinking_tokens": thinking_tokens}}


def marked_tokens(ready: ReadyChat) -> int:
    """The tokens of the prompt up to the client's last breakpoint, 0 without one."""
    return 0 if ready.pin is None else ready.pin.n_tokens


def stop_fields(stats: RequestStats, max_tokens: int | None, *, called: bool) -> dict[str, Any]:
    """Why a reply ended. One that was cut off says so, calls or none: short of `max_tokens` it was
    the context that ended. `fan_out` has turned every bad end into an exception.
    """
    if stats.finish_reason is FinishReason.LENGTH:
        asked = max_tokens is not None and stats.completion_tokens >= max_tokens
        reason = "max_tokens" if asked else "model_context_window_exceeded"
    elif stats.stop_sequence is not None:
        reason = "stop_sequence"
    else:
        reason = "tool_use" if called else "end_turn"
    return {"stop_reason": reason, "stop_sequence": stats.stop_sequence}


def opened_block(part: ReplyPart, ids: ReplyIds) -> dict[str, Any]:
    """The block that a part belongs to, still empty."""
    match part:
        case TextDelta():
            return {"type": "text", "text": ""}
        case ReasoningDelta():
            return {"type": "thinking", "thinking": "", "signature": ""}
        case CallStart(name):
            return {"type": "tool_use", "id": f"toolu_{ids.new(24)}", "name": name, "input": {}}
        case ArgumentsDelta():
            raise AssertionError("arguments before their call")


def begins_block(part: ReplyPart, kind: str | None) -> bool:
    """Whether a part opens a block behind one of `kind`, None for none."""
    match part:
        case TextDelta():
            return kind != "text"
        case ReasoningDelta():
            return kind != "thinking"
        case CallStart():
            return True
        case ArgumentsDelta():
            return False


def whole_blocks(parts: Iterable[ReplyPart], ids: ReplyIds) -> list[dict[str, Any]]:
    """The blocks of a whole reply, in its order."""
    blocks: list[dict[str, Any]] = []
    arguments: dict[int, str] = {}
    for part in parts:
        if begins_block(part, blocks[-1]["type"] if blocks else None):
            blocks.append(opened_block(part, ids))
        match part:
            case TextDelta(text):
                blocks[-1]["text"] += text
            case ReasoningDelta(text):
                blocks[-1] |= {"thinking": blocks[-1]["thinking"] + text, "signature": SIGNATURE}
            case ArgumentsDelta(text):
                arguments[len(blocks) - 1] = arguments.get(len(blocks) - 1, "") + text
    for index, text in arguments.items():
        blocks[index]["input"] = _input(text)
    return blocks


def _input(text: str) -> dict[str, Any]:
    """The arguments of a call; those that a cut off reply left half are kept as text."""
    try:
        parsed = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        parsed = None
    return parsed if isinstance(parsed, dict) else {"input": text}


def message_body(head: ReplyHead, ready: ReadyChat, reply: Completion) -> bytes:
    """A reply that is not streamed."""
    splitter, counter = ready.splitter(), ready.counter()
    counter.push(reply.tokens)
    parts: list[ReplyPart] = [TextDelta(reply.text)] if reply.text else []
    if splitter is not None:
        parts = splitter.push(reply.text) + splitter.finish()
    message = head.message()
    blocks = whole_blocks(parts, head.ids)
    called = any(block["type"] == "tool_use" for block in blocks)
    end = stop_fields(reply.stats, head.max_tokens, called=called) | head.edits
    counts = {"usage": final_usage(reply.stats, counter.n_tokens, marked_tokens(ready))}
    return encode(message | {"content": blocks} | end | counts).encode()
