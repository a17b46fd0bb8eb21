"""Replies of `/v1/completions`: streamed chunks and whole bodies, with the legacy shape of
logprobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deployments.dialects.openai.extras import NO_EXTRAS, ChunkEnd, Extras
from deployments.dialects.openai.logprobs import legacy_logprobs
from deployments.dialects.openai.reply import ReplyHead, StreamWriter, finish_reason, whole_body
from deployments.generation.logprobs import CoveredLogprobs, Placed, covered
from deployments.http.body import encode
from erllama.events import Completion, Done, Event, Progress, Tokens

KIND = "text_completion"


class CompletionWriter(StreamWriter):
    """The stream of a completion. `echoes` has the text to repeat per choice, empty strings without
    `echo`.
    """

    kind = KIND

    def __init__(
        self, head: ReplyHead, n: int, echoes: Sequence[str], *, include_usage: bool, extras: Extras = NO_EXTRAS
    ) -> None:
        super().__init__(head, n, include_usage=include_usage)
        self._prefixes = [f'{self._prefix}{{"index":{index},"text":' for index in range(len(echoes))]
        self._logprobs = [CoveredLogprobs() for _ in echoes]
        self._ends = [ChunkEnd(extras) for _ in echoes]
        self._echoed = [len(echo) for echo in echoes]
        self._pending_echo = list(echoes)

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        prefix, end = self._prefixes[index], self._ends[index]
        out = ""
        if self._pending_echo[index]:
            out = f'{prefix}{encode(self._pending_echo[index])},"logprobs":null,"finish_reason":null}}]}}\n\n'
            self._pending_echo[index] = ""
        for event in events:
            if end.timed:
                end.push(event)
            if isinstance(event, Tokens):
                if event.logprobs is not None:
                    out += self._rich(index, event.text, self._logprobs[index].push(event.logprobs, event.text))
                elif event.text:
                    out += f'{prefix}{encode(event.text)},"logprobs":null,"finish_reason":null{end.text}'
            elif isinstance(event, Progress):
                if told := end.progress(event):
                    out += f'{prefix}"","logprobs":null,"finish_reason":null{told}'
            elif isinstance(event, Done):
                follows = self._ended(index, event.stats, len(self._ends))
                out += self._rich(index, "", self._logprobs[index].finish(event.stats))
                reason, last = finish_reason(event.stats), end.last(event.stats, usage_follows=follows)
                out += f'{prefix}"","logprobs":null,"finish_reason":"{reason}"{last}'
        return out.encode()

    def _rich(self, index: int, text: str, placed: list[Placed]) -> str:
        if not text and not placed:
            return ""
        logprobs, end = encode(legacy_logprobs(placed, self._echoed[index])), self._ends[index].text
        return f'{self._prefixes[index]}{encode(text)},"logprobs":{logprobs},"finish_reason":null{end}'


def completion_body(
    head: ReplyHead, n: int, echoes: Sequence[str], replies: Sequence[Completion], *, logprobs: bool
) -> bytes:
    """A completion that is not streamed."""
    choices = [
        {
            "index": index,
            "text": echo + reply.text,
            "logprobs": legacy_logprobs(covered(reply), len(echo)) if logprobs else None,
            "finish_reason": finish_reason(reply.stats),
        }
        for index, (echo, reply) in enumerate(zip(echoes, replies, strict=True))
    ]
    return whole_body(head, KIND, choices, replies, n)
