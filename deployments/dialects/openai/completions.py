"""Replies of `/v1/completions`: streamed chunks and whole bodies, with the legacy shape of
logprobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deployments.dialects.openai.logprobs import legacy_logprobs
from deployments.dialects.openai.reply import ReplyHead, StreamWriter, finish_reason, whole_body
from deployments.generation.logprobs import CoveredLogprobs, Placed, covered
from deployments.http.body import encode
from erllama.events import Completion, Done, Event, Tokens

KIND = "text_completion"


class CompletionWriter(StreamWriter):
    """The stream of a completion. `echoes` has the text to repeat per choice, empty strings without
    `echo`.
    """

    kind = KIND

    def __init__(self, head: ReplyHead, n: int, echoes: Sequence[str], *, include_usage: bool) -> None:
        super().__init__(head, n, include_usage=include_usage)
        self._prefixes = [f'{self._prefix}{{"index":{index},"text":' for index in range(len(echoes))]
        self._logprobs = [CoveredLogprobs() for _ in echoes]
        self._echoed = [len(echo) for echo in echoes]
        self._pending_echo = list(echoes)

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        prefix = self._prefixes[index]
        out = ""
        if self._pending_echo[index]:
            out = f'{prefix}{encode(self._pending_echo[index])},"logprobs":null,"finish_reason":null}}]}}\n\n'
            self._pending_echo[index] = ""
        for event in events:
            if isinstance(event, Tokens):
                if event.logprobs is not None:
                    out += self._rich(index, event.text, self._logprobs[index].push(event.logprobs, event.text))
                elif event.text:
                    out += f'{prefix}{encode(event.text)},"logprobs":null,"finish_reason":null}}]}}\n\n'
            elif isinstance(event, Done):
                self._meter.add(index, event.stats)
                out += self._rich(index, "", self._logprobs[index].finish(event.stats))
                out += f'{prefix}"","logprobs":null,"finish_reason":"{finish_reason(event.stats)}"}}]}}\n\n'
        return out.encode()

    def _rich(self, index: int, text: str, placed: list[Placed]) -> str:
        if not text and not placed:
            return ""
        logprobs = encode(legacy_logprobs(placed, self._echoed[index]))
        return f'{self._prefixes[index]}{encode(text)},"logprobs":{logprobs},"finish_reason":null}}]}}\n\n'


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
