"""Replies of `/v1/completions`: streamed chunks and whole bodies, with the legacy shape of
logprobs.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from deployments.dialects.openai.reply import ReplyHead, StreamWriter, WholeChoices, encode, finish_reason, finite
from erllama.events import Done, Event, TokenLogprob, Tokens

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

    def block(self, logprobs: Iterable[TokenLogprob]) -> dict[str, list[Any]]:
        tokens: list[str] = []
        token_logprobs: list[float] = []
        top_logprobs: list[dict[str, float]] = []
        offsets: list[int] = []
        for entry in logprobs:
            tokens.append(entry.piece.decode("utf-8", "replace"))
            token_logprobs.append(finite(entry.logprob))
            top_logprobs.append({piece.decode("utf-8", "replace"): finite(logprob) for _, piece, logprob in entry.top})
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(entry.piece))
        return {
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": offsets,
        }


class CompletionWriter(StreamWriter):
    """The stream of a completion. `echoes` has the text to repeat per choice, empty strings without
    `echo`.
    """

    def __init__(self, head: ReplyHead, n: int, echoes: Sequence[str], *, include_usage: bool) -> None:
        super().__init__(head, n, KIND, include_usage=include_usage)
        prefix = self._chunk_prefix()
        self._prefixes = [f'{prefix}{{"index":{index},"text":' for index in range(len(echoes))]
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


class WholeCompletion(WholeChoices):
    """The body of a completion that is not streamed."""

    def body(self) -> bytes:
        choices = [
            {
                "index": index,
                "text": "".join(self._texts[index]),
                "logprobs": None if logprobs is None else LegacyLogprobs(len(self._texts[index][0])).block(logprobs),
                "finish_reason": self._reasons[index],
            }
            for index, logprobs in enumerate(self._logprobs)
        ]
        reply = {"id": self._head.id, "object": KIND, "created": self._head.created, "model": self._head.model}
        return encode(reply | {"choices": choices, "usage": self._meter.usage()}).encode()
