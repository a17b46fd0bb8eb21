"""Replies of `/v1/completions`: streamed chunks and whole bodies, with the legacy shape of
logprobs.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from deployments.dialects.openai.reply import ReplyHead, StreamWriter, encode, finish_reason, finite, whole_body
from erllama.events import Completion, Done, Event, TokenLogprob, Tokens

KIND = "text_completion"


class LegacyLogprobs:
    """Logprobs of one choice as four parallel lists; `text_offset` counts characters from the start
    of the choice's text.

    Offsets follow the bytes of the tokens. A token that ends inside a character points at that
    character.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def block(self, logprobs: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        return {
            "tokens": [_text(entry.piece) for entry in logprobs],
            "token_logprobs": [finite(entry.logprob) for entry in logprobs],
            "top_logprobs": [{_text(piece): finite(logprob) for _, piece, logprob in entry.top} for entry in logprobs],
            "text_offset": [self._passed(entry.piece) for entry in logprobs],
        }

    def _passed(self, piece: bytes) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(piece))
        return offset


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")


class CompletionWriter(StreamWriter):
    """The stream of a completion. `echoes` has the text to repeat per choice, empty strings without
    `echo`.
    """

    kind = KIND

    def __init__(self, head: ReplyHead, n: int, echoes: Sequence[str], *, include_usage: bool) -> None:
        super().__init__(head, n, include_usage=include_usage)
        self._prefixes = [f'{self._prefix}{{"index":{index},"text":' for index in range(len(echoes))]
        self._logprobs = [LegacyLogprobs(len(echo)) for echo in echoes]
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
                    logprobs = encode(self._logprobs[index].block(event.logprobs))
                    out += f'{prefix}{encode(event.text)},"logprobs":{logprobs},"finish_reason":null}}]}}\n\n'
                elif event.text:
                    out += f'{prefix}{encode(event.text)},"logprobs":null,"finish_reason":null}}]}}\n\n'
            elif isinstance(event, Done):
                self._meter.add(index, event.stats)
                out += f'{prefix}"","logprobs":null,"finish_reason":"{finish_reason(event.stats)}"}}]}}\n\n'
        return out.encode()


def completion_body(
    head: ReplyHead, n: int, echoes: Sequence[str], replies: Sequence[Completion], *, logprobs: bool
) -> bytes:
    """A completion that is not streamed."""
    choices = [
        {
            "index": index,
            "text": echo + reply.text,
            "logprobs": LegacyLogprobs(len(echo)).block(reply.logprobs or ()) if logprobs else None,
            "finish_reason": finish_reason(reply.stats),
        }
        for index, (echo, reply) in enumerate(zip(echoes, replies, strict=True))
    ]
    return whole_body(head, KIND, choices, replies, n)
