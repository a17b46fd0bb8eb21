"""What comes out of the engine: the events of a reply, its statistics, and a whole reply put
together from them.

Everything here is frozen, picklable and free of any HTTP dialect. Times are milliseconds in fields
that end in `_ms`; probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from erllama.errors import ErllamaError


class FinishReason(StrEnum):
    """Why a sequence is done. `stop`: EOS or a stop string; `length`: token budget or context. One
    that failed has no reason but an error, see `Failed`.
    """

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class CacheHitKind(StrEnum):
    """How much of the prompt (and of what was resumed) was taken over instead of computed.

    `exact`: all but the last token at most, which is computed for its logits where those are not
    stored; `partial`: less; `cold`: nothing. Where it came from is another question
    (`RequestStats.cache_tier`), and so is whether the request named a `parent_key`.
    """

    EXACT = "exact"
    PARTIAL = "partial"
    COLD = "cold"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability under the raw distribution (before bias, penalties and truncation), or, for a
    request with `post_sampling`, under what the token was drawn from.

    `piece` has the bytes of the token, a control token's are its name; `hidden` says that they do
    not stand in the text of the reply. `top` are id, bytes and log probability of the likeliest.
    """

    token: int
    piece: bytes
    logprob: float
    top: tuple[tuple[int, bytes, float], ...] = ()
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class RequestStats:
    """What a finished request cost. `prefill_ms` runs from admission to the first token,
    `generation_ms` from there to the last one.

    `restore_ms` of `prefill_ms` went by until it was known what could be taken over: looking it up,
    reading it, waiting for a neighbour that computed the same.

    `completion_tokens` is the length of the whole reply: the `resumed_tokens` of an earlier run,
    then those of this one. `cached_tokens` of the prompt were taken over instead of computed: from
    `cache_tier`, which is "live" (another sequence of this context), "staged" (the store had not
    written it yet) or the label of a tier of the store. `computed_tokens` of the prompt and of what
    was resumed had to be computed before the first new token. Of the reply `drafted_tokens` were
    computed ahead, in the hope that they would be sampled; `accepted_tokens` of them were.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    queue_ms: float
    prefill_ms: float
    generation_ms: float
    cache_hit_kind: CacheHitKind
    finish_reason: FinishReason
    stop_sequence: str | None = None
    cache_tier: str | None = None
    resumed_tokens: int = 0
    computed_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    restore_ms: float = 0.0

    @property
    def cancelled(self) -> bool:
        return self.finish_reason is FinishReason.CANCELLED


@dataclass(frozen=True, slots=True)
class Tokens:
    """Newly generated tokens and the text that became certain with them.

    `text` may be shorter than the tokens (a character split over tokens, a stop string that may be
    beginning) or longer (held-back text released). The concatenation of all `text` is the reply.
    `logprobs` has one entry per id when it was asked for.
    """

    ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the prompt of a request with `report_progress` is: told once it is known what was
    taken over, and after each slice.

    The context holds `processed` of the `total` tokens that it must hold before a token is
    sampled. `cached` of them were taken over from `tier` (as `RequestStats.cache_tier`; None:
    nothing was). `elapsed_ms` runs from admission.
    """

    total: int
    cached: int
    processed: int
    tier: str | None
    elapsed_ms: float


@dataclass(frozen=True, slots=True)
class Done:
    """The last event of a request that ended normally, cancelled ones included. `finish_key` is the
    chain key of prompt + reply.
    """

    stats: RequestStats
    finish_key: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that could not be served."""

    error: ErllamaError


Event = Tokens | Progress | Done | Failed


def merge_events(events: Iterable[Event]) -> list[Event]:
    """Join neighbouring `Tokens`, in order: tokens that leave together cost one message."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, Tokens) and isinstance(last, Tokens):
            logprobs = None if last.logprobs is None or event.logprobs is None else last.logprobs + event.logprobs
            merged[-1] = Tokens(last.ids + event.ids, last.text + event.text, logprobs)
        else:
            merged.append(event)
    return merged


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole reply. Under `finish_key` the state after it would be found."""

    text: str
    tokens: tuple[int, ...]
    finish_key: str
    stats: RequestStats
    logprobs: tuple[TokenLogprob, ...] | None = None


class CompletionParts:
    """A reply that is being put together from its events."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []

    def add(self, event: Event) -> Completion | Failed | None:
        """Take the next event; the whole reply, or what ended it, once that was the last one."""
        match event:
            case Tokens():
                self._text.append(event.text)
                self._ids.extend(event.ids)
                self._logprobs.extend(event.logprobs or ())
                return None
            case Progress():
                return None
            case Done():
                return Completion(
                    "".join(self._text), tuple(self._ids), event.finish_key, event.stats, tuple(self._logprobs) or None
                )
            case Failed():
                return event
