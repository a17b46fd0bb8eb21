"""Replies of `/completion`: pieces of a stream and whole bodies, in the form of llama.cpp's server.

A stream has one piece per message of the engine, or per token where probabilities are asked for;
then one per choice that ends it, with `stop` true and what it cost. It has no terminator.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments.dialects.llama_server.errors import error_body
from deployments.dialects.llama_server.params import ReadyCompletion
from deployments.dialects.llama_server.wire import CompletionBody
from deployments.generation.logprobs import CoveredLogprobs, Placed, covered, finite
from deployments.generation.timings import RunningTimings, prompt_progress, timings
from deployments.http.body import encode
from deployments.http.dialect import SSE
from erllama.errors import ErllamaError
from erllama.events import Completion, Done, Event, FinishReason, Progress, RequestStats, TokenLogprob, Tokens

_NO_SLOT = -1  # which sequence id a request has is the engine's own affair, and changes


@dataclass(frozen=True, slots=True)
class ReplyForm:
    """What replies are written with. `model` is the id of the one that answers."""

    model: str
    body: CompletionBody
    ready: ReadyCompletion

    def final(self, index: int, stats: RequestStats, text: str, ids: Sequence[int], told: str) -> dict[str, Any]:
        """The object that ends choice `index`, whose whole text was `told`."""
        kind = _stop_type(stats)
        return {
            "index": index,
            "content": text,
            "tokens": list(ids),
            "id_slot": _NO_SLOT,
            "stop": True,
            "model": self.model,
            "tokens_predicted": stats.completion_tokens,
            "tokens_evaluated": stats.prompt_tokens,
            "generation_settings": self.ready.settings,
            "prompt": self.ready.texts[index],
            "has_new_line": "\n" in told,
            "truncated": self._truncated(stats),
            "stop_type": kind,
            "stopping_word": stats.stop_sequence or "",
            "tokens_cached": stats.prompt_tokens + max(0, stats.completion_tokens - (kind != "eos")),
            "timings": timings(stats),
        }

    def _truncated(self, stats: RequestStats) -> bool:
        """Whether the context was full before the reply was as long as it might be."""
        most = self.body.max_tokens
        cut_off = stats.finish_reason is FinishReason.LENGTH
        return cut_off and (most is None or stats.completion_tokens < most)

    def probabilities(self, placed: Iterable[Placed]) -> list[dict[str, Any]]:
        """`completion_probabilities`."""
        drawn = bool(self.body.post_sampling_probs)
        return [_token(entry, post_sampling=drawn) for _, entry in placed]

    def chosen(self, body: dict[str, Any]) -> dict[str, Any]:
        """What `response_fields` leave of it."""
        return _fields(body, self.body.response_fields) if self.body.response_fields else body


def _stop_type(stats: RequestStats) -> str:
    """`fan_out` has turned every bad end into an exception."""
    if stats.finish_reason is FinishReason.LENGTH:
        return "limit"
    return "eos" if stats.stop_sequence is None else "word"


def _token(entry: TokenLogprob, *, post_sampling: bool) -> dict[str, Any]:
    top = [_one(*one, post_sampling=post_sampling) for one in entry.top]
    name = "top_probs" if post_sampling else "top_logprobs"
    return _one(entry.token, entry.piece, entry.logprob, post_sampling=post_sampling) | {name: top}


def _one(token: int, piece: bytes, logprob: float, *, post_sampling: bool) -> dict[str, Any]:
    likely = {"prob": math.exp(logprob)} if post_sampling else {"logprob": finite(logprob)}
    return {"id": token, "token": piece.decode("utf-8", "replace"), "bytes": list(piece), **likely}


def _fields(body: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """The fields at `paths`, each under its path; those that are not there are left out."""
    found: dict[str, Any] = {}
    for path in paths:
        value: Any = body
        for name in path.split("/"):
            if not isinstance(value, Mapping) or name not in value:
                break
            value = value[name]
        else:
            found[path] = value
    return found


@dataclass(slots=True)
class _Choice:
    """What the stream of one choice remembers."""

    n_prompt: int
    running: RunningTimings | None
    logprobs: CoveredLogprobs = field(default_factory=CoveredLogprobs)
    n_chars: int = 0
    n_predicted: int = 0
    has_new_line: bool = False


_Piece = tuple[str, Sequence[int], list[Placed]]


class CompletionWriter:
    """The stream of a reply; see `ReplyWriter`."""

    def __init__(self, form: ReplyForm) -> None:
        self._form = form
        timed = bool(form.body.timings_per_token)
        self._choices = [
            _Choice(len(request.prompt), RunningTimings() if timed else None) for request in form.ready.requests
        ]

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        choice = self._choices[index]
        out = b""
        for event in events:
            if choice.running is not None:
                choice.running.push(event)
            if isinstance(event, Tokens):
                for piece in _pieces(choice, event):
                    out += self._piece(index, piece)
            elif isinstance(event, Progress):
                if self._form.body.return_progress:
                    out += self._piece(index, ("", (), []), {"prompt_progress": prompt_progress(event)})
            elif isinstance(event, Done):
                for placed in choice.logprobs.finish(event.stats):
                    out += self._piece(index, ("", (placed[1].token,), [placed]))
                told = "\n" if choice.has_new_line else ""
                out += _framed(self._form.chosen(self._form.final(index, event.stats, "", (), told)))
        return out

    def _piece(self, index: int, piece: _Piece, more: dict[str, Any] | None = None) -> bytes:
        choice = self._choices[index]
        text, ids, placed = piece
        choice.n_predicted += len(ids)
        choice.has_new_line = choice.has_new_line or "\n" in text
        body: dict[str, Any] = {
            "index": index,
            "content": text,
            "tokens": list(ids),
            "stop": False,
            "id_slot": _NO_SLOT,
            "tokens_predicted": choice.n_predicted,
            "tokens_evaluated": choice.n_prompt,
        }
        if choice.running is not None:
            body["timings"] = choice.running.now()
        if placed:
            body["completion_probabilities"] = self._form.probabilities(placed)
        return _framed(body | (more or {}))

    def close(self) -> bytes:
        return b""

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        return SSE.frame(error_body(error), "")

    def keepalive(self) -> bytes:
        return SSE.keepalive


def _pieces(choice: _Choice, event: Tokens) -> Iterator[_Piece]:
    """The parts of a message that leave alone: with probabilities each token has its own text."""
    if event.logprobs is None:
        yield event.text, event.ids, []
        return
    start, choice.n_chars = choice.n_chars, choice.n_chars + len(event.text)
    placed = choice.logprobs.push(event.logprobs, event.text)
    begins = [0] + [max(offset - start, 0) for offset, _ in placed[1:]]
    ends = [*begins[1:], len(event.text)]
    for number, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        covered_here = placed[number : number + 1]
        if covered_here or begin < end:
            yield event.text[begin:end], [one.token for _, one in covered_here], covered_here


def _framed(body: dict[str, Any]) -> bytes:
    return SSE.frame(encode(body).encode(), "")


def completion_body(form: ReplyForm, replies: Sequence[Completion]) -> bytes:
    """A reply that is not streamed: an object, or a list of several."""
    bodies = []
    for index, reply in enumerate(replies):
        ids = reply.tokens if form.body.return_tokens else ()
        body = form.final(index, reply.stats, reply.text, ids, reply.text)
        if form.body.n_top is not None:
            body["completion_probabilities"] = form.probabilities(covered(reply))
        bodies.append(form.chosen(body))
    return encode(bodies[0] if len(bodies) == 1 else bodies).encode()
