"""What replies are written with: parts, usage, reasons to stop, errors; and the reply that is not
streamed.

A call leaves whole, since its arguments are an object. An error has Google's shape, `{"error":
{"code", "message", "status"}}`, whole as a body or as a piece of a stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from deployments.generation.calls import OpenCall
from deployments.generation.chat import ReadyChat
from deployments.generation.identity import ReplyIds
from deployments.generation.logprobs import Placed, covered, finite
from deployments.http.body import encode
from erllama.chat.tool_formats.base import ReasoningDelta, ReplyPart, TextDelta
from erllama.errors import ContextOverflow, ErllamaError
from erllama.events import Completion, FinishReason, RequestStats

_STATUSES = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(error: ErllamaError) -> bytes:
    """Clients read from `details` how long to wait, and in the message that a prompt is too long."""
    message = error.message
    if isinstance(error, ContextOverflow) and error.n_prompt:
        message = (
            f"The input token count ({error.n_prompt}) exceeds the maximum number of tokens allowed ({error.n_most})."
        )
    elif error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    code = error.http_status
    status = _STATUSES.get(code) or ("INVALID_ARGUMENT" if code < 500 else "INTERNAL")
    fields: dict[str, Any] = {"code": code, "message": message, "status": status}
    if error.retry_after_s is not None:
        kind = "type.googleapis.com/google.rpc.RetryInfo"
        fields["details"] = [{"@type": kind, "retryDelay": f"{error.retry_after_s}s"}]
    return encode({"error": fields}).encode()


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What every piece of a reply repeats. `model` is the one that answers; `shows_thoughts`: the
    client wants to see them. `ids` are those of its calls.
    """

    id: str
    model: str
    ids: ReplyIds
    shows_thoughts: bool = False

    @classmethod
    def of(cls, model: str, ids: ReplyIds, *, shows_thoughts: bool) -> ReplyHead:
        return cls(ids.new(24), model, ids, shows_thoughts)

    def body(self, candidates: Sequence[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        counts = {} if usage is None else {"usageMetadata": usage}
        head = {"modelVersion": self.model, "responseId": self.id}
        return encode({"candidates": candidates} | counts | head).encode()


class UsageMeter:
    """Sums what the candidates cost; their prompt counts once."""

    def __init__(self) -> None:
        self._prompt = self._cached = self._said = self._thought = 0

    def add(self, index: int, stats: RequestStats, thought: int) -> None:
        if index == 0:
            self._prompt, self._cached = stats.prompt_tokens, stats.cached_tokens
        self._said += stats.completion_tokens - thought
        self._thought += thought

    def usage(self) -> dict[str, Any]:
        return {
            "promptTokenCount": self._prompt,
            "candidatesTokenCount": self._said,
            "totalTokenCount": self._prompt + self._said + self._thought,
            "cachedContentTokenCount": self._cached,
            "thoughtsTokenCount": self._thought,
        }


class PartWriter:
    """Parts of one reply, from what a splitter cut. One per reply."""

    def __init__(self, ids: ReplyIds, *, shows_thoughts: bool) -> None:
        self._ids = ids
        self._shows_thoughts = shows_thoughts
        self._call = OpenCall()

    def push(self, parts: Iterable[ReplyPart]) -> list[dict[str, Any]]:
        """What became whole with `parts`."""
        out: list[dict[str, Any]] = []
        for part in parts:
            out += self._called(part)
            if isinstance(part, TextDelta):
                out.append({"text": part.text})
            elif isinstance(part, ReasoningDelta) and self._shows_thoughts:
                out.append({"text": part.text, "thought": True})
        return out

    def finish(self) -> list[dict[str, Any]]:
        return self._called(None)

    def _called(self, part: ReplyPart | None) -> list[dict[str, Any]]:
        """The call that is over with `part`."""
        call = self._call.push(part)
        if call is None or not call.is_text:
            return []
        return [{"functionCall": {"name": call.name, "args": call.arguments, "id": f"call_{self._ids.new(12)}"}}]


def finish_reason(stats: RequestStats) -> str:
    """`fan_out` has turned every end but these two into an exception."""
    return "MAX_TOKENS" if stats.finish_reason is FinishReason.LENGTH else "STOP"


def candidate(
    index: int, parts: list[dict[str, Any]], reason: str | None = None, logprobs: Sequence[Placed] = ()
) -> dict[str, Any]:
    """A candidate, or a piece of one."""
    out: dict[str, Any] = {"content": {"role": "model", "parts": parts}}
    if reason is not None:
        out["finishReason"] = reason
    out["index"] = index
    return out | ({"logprobsResult": _logprobs(logprobs)} if logprobs else {})


def _logprobs(placed: Sequence[Placed]) -> dict[str, Any]:
    top = [{"candidates": [_token(*entry) for entry in token.top]} for _, token in placed if token.top]
    chosen = [_token(token.token, token.piece, token.logprob) for _, token in placed]
    return {"chosenCandidates": chosen} | ({"topCandidates": top} if top else {})


def _token(id: int, piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "tokenId": id, "logProbability": finite(logprob)}


def whole_body(head: ReplyHead, ready: ReadyChat, replies: Sequence[Completion]) -> bytes:
    """A reply that is not streamed."""
    meter, candidates = UsageMeter(), []
    for index, reply in enumerate(replies):
        splitter, counter = ready.splitter(), ready.counter()
        counter.push(reply.tokens)
        cut: list[ReplyPart] = [TextDelta(reply.text)] if reply.text else []
        if splitter is not None:
            cut = splitter.push(reply.text) + splitter.finish()
        writer = PartWriter(head.ids, shows_thoughts=head.shows_thoughts)
        parts = _joined(writer.push(cut) + writer.finish())
        meter.add(index, reply.stats, counter.n_tokens)
        logprobs = covered(reply) if reply.logprobs is not None else ()
        candidates.append(candidate(index, parts, finish_reason(reply.stats), logprobs))
    return head.body(candidates, meter.usage())


def _joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring texts as one."""
    out: list[dict[str, Any]] = []
    for part in parts:
        last = out[-1] if out else {}
        if "text" in part and "text" in last and part.get("thought") == last.get("thought"):
            last["text"] += part["text"]
        else:
            out.append(part)
    return out
