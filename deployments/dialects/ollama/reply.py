"""Replies of `/api/chat` and `/api/generate`: lines of a stream and whole bodies, tool calls and
reasoning split out of the text; and those of `/api/embed` and `/api/embeddings`.

Each line is a whole object with its own time; the last one has `done`, its reason and what the
reply cost. A call leaves whole, in a line of its own, with arguments that are an object. An error
is `{"error": "..."}`, as a body or as a line.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from deployments.generation.calls import OpenCall, WholeCall
from deployments.generation.logprobs import CoveredLogprobs, covered, token_logprobs
from deployments.http.body import encode
from deployments.http.dialect import NDJSON
from erllama.chat.tool_formats.base import ReasoningDelta, ReplyPart, ReplySplitter, TextDelta, collect_parts
from erllama.errors import ErllamaError
from erllama.events import Completion, Done, Event, FinishReason, RequestStats, Tokens


def error_body(error: ErllamaError) -> bytes:
    return encode({"error": error.message}).encode()


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


class Shape(Protocol):
    """Where an endpoint puts what the model says."""

    def __call__(self, content: str, thinking: str = "", calls: Iterable[dict[str, Any]] = ()) -> dict[str, Any]: ...


def _said(thinking: str, calls: Iterable[dict[str, Any]]) -> dict[str, Any]:
    made = list(calls)
    return ({"thinking": thinking} if thinking else {}) | ({"tool_calls": made} if made else {})


def chat_shape(content: str, thinking: str = "", calls: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": content, **_said(thinking, calls)}}


def generate_shape(content: str, thinking: str = "", calls: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"response": content, **_said(thinking, calls)}


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """What a reply is of: the model as the client named it, the shape of its endpoint, when the request
    came, and the ids of the prompt where the reply ends with those of all that was said.
    """

    model: str
    shape: Shape
    prompt_ids: tuple[int, ...] | None = None
    started_ns: int = field(default_factory=time.monotonic_ns)

    def line(self, said: dict[str, Any], **ended: Any) -> dict[str, Any]:
        """One object of a reply. Without `ended` more will follow."""
        head = {"model": self.model, "created_at": rfc3339(datetime.now(UTC))}
        return head | said | (ended or {"done": False})

    def ended(self, stats: RequestStats, ids: Sequence[int]) -> dict[str, Any]:
        """How a reply of these `ids` ended."""
        context = {} if self.prompt_ids is None else {"context": [*self.prompt_ids, *ids]}
        return self.costs(stats) | context

    def costs(self, stats: RequestStats) -> dict[str, Any]:
        """How and at what cost a reply ended, in nanoseconds. What Ollama calls loading is here the
        time that a request waits for its turn. `fan_out` has turned every end but these two into an
        exception.
        """
        return {
            "done": True,
            "done_reason": "length" if stats.finish_reason is FinishReason.LENGTH else "stop",
            "total_duration": time.monotonic_ns() - self.started_ns,
            "load_duration": _ns(stats.queue_ms),
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": _ns(stats.prefill_ms),
            "eval_count": stats.completion_tokens,
            "eval_duration": _ns(stats.generation_ms),
        }


class TextLines:
    """Lines of a stream that hold text alone, as most of them do: what they repeat is encoded once."""

    def __init__(self, head: ReplyHead) -> None:
        mark = "\x00"
        self._before = f'{{"model":{encode(head.model)},"created_at":"'
        self._opening, self._closing = encode(head.shape(mark))[1:-1].split(encode(mark))
        self._second, self._clock = 0, ""

    def line(self, text: str) -> bytes:
        second, ns = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second:
            self._second, self._clock = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        now = f"{self._clock}.{ns // 1000:06}Z"
        return f'{self._before}{now}",{self._opening}{encode(text)}{self._closing},"done":false}}\n'.encode()


def _json(line: dict[str, Any]) -> bytes:
    """Arguments of a call may hold half a character, which only an escape can write."""
    try:
        return encode(line).encode()
    except UnicodeEncodeError:
        return json.dumps(line).encode()


def _ns(milliseconds: float) -> int:
    return round(milliseconds * 1e6)


def _call(call: WholeCall, index: int) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid4().hex[:8]}", "function": function}


class LineWriter:
    """The stream of a reply. `splitter` cuts its text into reasoning, text and calls; None leaves it
    as it is.
    """

    def __init__(self, head: ReplyHead, splitter: ReplySplitter | None) -> None:
        self._head = head
        self._splitter = splitter
        self._call = OpenCall()
        self._n_calls = 0
        self._text = TextLines(head)
        self._logprobs = CoveredLogprobs()
        self._keeps_ids = head.prompt_ids is not None
        self._ids: list[int] = []

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        out = b""
        for event in events:
            if self._keeps_ids and isinstance(event, Tokens):
                self._ids += event.ids
            if isinstance(event, Tokens) and event.logprobs is None:
                for part in self._parts(event.text):
                    out += self._line(part)
            elif isinstance(event, Tokens):
                placed = self._logprobs.push(event.logprobs or (), event.text)
                out += self._lines(self._parts(event.text), token_logprobs(placed))
            elif isinstance(event, Done):
                rest: list[ReplyPart | None] = [*(self._splitter.finish() if self._splitter is not None else ()), None]
                out += self._lines(rest, token_logprobs(self._logprobs.finish(event.stats)))
                out += _framed(self._head.line(self._head.shape(""), **self._head.ended(event.stats, self._ids)))
        return out

    def _parts(self, text: str) -> list[ReplyPart]:
        if self._splitter is not None:
            return self._splitter.push(text)
        return [TextDelta(text)] if text else []

    def _lines(self, parts: Iterable[ReplyPart | None], logprobs: list[dict[str, Any]]) -> bytes:
        """Log probabilities go with the first line of their tokens, or alone when their text is held
        back.
        """
        if not logprobs:
            return b"".join([self._line(part) for part in parts])
        said = [one for part in parts for one in self._said(part)] or [self._head.shape("")]
        said[0] |= {"logprobs": logprobs}
        return b"".join(_framed(self._head.line(one)) for one in said)

    def _line(self, part: ReplyPart | None) -> bytes:
        if type(part) is TextDelta and not self._call.is_open:
            return self._text.line(part.text)
        return b"".join(_framed(self._head.line(one)) for one in self._said(part))

    def _said(self, part: ReplyPart | None) -> Iterator[dict[str, Any]]:
        shape = self._head.shape
        call = self._call.push(part)
        if call is not None:
            yield shape("", calls=[_call(call, self._n_calls)])
            self._n_calls += 1
        if isinstance(part, TextDelta):
            yield shape(part.text)
        elif isinstance(part, ReasoningDelta):
            yield shape("", thinking=part.text)

    def close(self) -> bytes:
        return b""

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        return NDJSON.frame(error_body(error), "")

    def keepalive(self) -> bytes:
        """A line that says nothing: lines have no comments, and clients join what lines say."""
        return _framed(self._head.line(self._head.shape("")))


def _framed(line: dict[str, Any]) -> bytes:
    return NDJSON.frame(_json(line), "")


def whole_body(head: ReplyHead, reply: Completion, splitter: ReplySplitter | None) -> bytes:
    """A reply that is not streamed; `splitter` as that of a `LineWriter`."""
    said = head.shape(reply.text)
    if splitter is not None:
        cut = collect_parts(splitter.push(reply.text) + splitter.finish())
        whole = [call for call in map(WholeCall.of, cut.calls) if call is not None]
        said = head.shape(cut.content, cut.reasoning, [_call(call, index) for index, call in enumerate(whole)])
    logprobs = {"logprobs": token_logprobs(covered(reply))} if reply.logprobs is not None else {}
    return _json(head.line(said | logprobs, **head.ended(reply.stats, reply.tokens)))


def loaded_body(head: ReplyHead, reason: str) -> bytes:
    """The answer to a request that asks for nothing but that a model be loaded, or unloaded."""
    return encode(head.line(head.shape(""), done=True, done_reason=reason)).encode()


def embed_body(
    head: ReplyHead, vectors: Sequence[Sequence[float]], prompt_tokens: int, dimensions: int | None
) -> bytes:
    """Vectors of length 1, cut to `dimensions` where they have more. Encoding 1000 floats takes a
    millisecond: call it off the event loop for many vectors.
    """
    return encode(
        {
            "model": head.model,
            "embeddings": [_cut(vector, dimensions) for vector in vectors],
            "total_duration": time.monotonic_ns() - head.started_ns,
            "prompt_eval_count": prompt_tokens,
        }
    ).encode()


def _cut(vector: Sequence[float], dimensions: int | None) -> list[float]:
    floats = np.asarray(vector, dtype="<f4")
    if dimensions and dimensions < len(floats):
        floats = floats[:dimensions]
        length = np.linalg.norm(floats)
        floats = floats / length if length > 0 else floats
    cut: list[float] = floats.tolist()
    return cut


def embedding_body(vectors: Sequence[Sequence[float]]) -> bytes:
    """The older form: one vector, or none for no prompt."""
    return encode({"embedding": _cut(vectors[0], None) if vectors else []}).encode()
