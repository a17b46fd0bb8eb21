"""What the client of a sequence gets to see of it: the events of its tokens and of its end, and how
they leave. Engine thread only.

What begins or ends a reply is due at once. Other tokens may gather for an interval: each hand-over
wakes half a dozen threads on the way to the client, and each of them takes a core from the decode
that is running.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from erllama.errors import ErllamaError, InvalidParameter
from erllama.events import Done, Event, Failed, FinishReason, TokenLogprob, Tokens
from erllama.sequence.machine import Step
from erllama.sequence.sampling import Drawn, Logits, log_softmax_at, top_candidates
from erllama.sequence.sequence import Sequence

PieceOf = Callable[[int], bytes]

_ENDINGS = {Step.STOP: FinishReason.STOP, Step.LENGTH: FinishReason.LENGTH, Step.CANCEL: FinishReason.CANCELLED}


def fast_forward(sequence: Sequence, piece: PieceOf) -> None:
    """Bring grammar and text to where the earlier run left them. That text has been delivered."""
    for token in sequence.request.resumed:
        if sequence.text.stopped:
            raise InvalidParameter("resumed goes on after a stop string", param="resumed")
        sequence.sampler.fast_forward(token)
        _note(sequence, sequence.text.push(sequence.piece(token, piece)))


def token_event(sequence: Sequence, token: int, raw: Logits | None, piece: PieceOf, text_of: PieceOf) -> Tokens:
    """A new token's event; `raw` are the model's own logits, if log probabilities are wanted, which
    `text_of` names also control tokens for.
    """
    data = sequence.piece(token, piece)
    text = sequence.text.push(data)
    _note(sequence, text)
    if raw is None:
        return Tokens((token,), text)
    n_top = sequence.request.logprobs or 0
    if sequence.request.post_sampling:
        logprob = _drawn_logprob(sequence.sampler.take_drawn(), token, n_top, text_of)
    else:
        logprob = _logprob(raw, token, n_top, text_of)
    return Tokens((token,), text, (logprob if data else replace(logprob, hidden=True),))


def last_events(
    sequence: Sequence, ending: Step, error: ErllamaError | None, clock: Callable[[], int]
) -> Iterator[Event]:
    """The text that was held back until the end, and the end itself."""
    if error is not None:
        yield Failed(error)
        return
    tail = sequence.text.finish()
    _note(sequence, tail)
    if tail:
        yield Tokens((), tail, None if sequence.request.logprobs is None else ())
    # the budget may end a reply whose last characters were held back as a stop string that waited
    # for a longer one
    reason = FinishReason.STOP if ending is Step.LENGTH and sequence.text.stopped else _ENDINGS[ending]
    yield Done(sequence.stats(reason, clock()), sequence.chain(sequence.n_tokens).key_at(sequence.n_tokens))


def _note(sequence: Sequence, text: str) -> None:
    if sequence.request.record_transcript:
        sequence.reply.append(text)


def _logprob(logits: Logits, token: int, n_top: int, text_of: PieceOf) -> TokenLogprob:
    top = [int(i) for i in top_candidates(logits, n_top)] if n_top else []
    chosen, *others = log_softmax_at(logits, [token, *top])
    likeliest = tuple((i, text_of(i), p) for i, p in zip(top, others, strict=True))
    return TokenLogprob(token, text_of(token), chosen, likeliest)


def _drawn_logprob(drawn: Drawn | None, token: int, n_top: int, text_of: PieceOf) -> TokenLogprob:
    """Under what `token` was drawn among; None where it had to come."""
    if drawn is None:
        return TokenLogprob(token, text_of(token), 0.0, ((token, text_of(token), 0.0),) if n_top else ())
    ids, probabilities = drawn
    chosen = float(probabilities[ids == token][0])
    order = [i for i in np.argsort(-probabilities, kind="stable")[:n_top] if probabilities[i] > 0]
    likeliest = tuple((int(ids[i]), text_of(int(ids[i])), _log(float(probabilities[i]))) for i in order)
    return TokenLogprob(token, text_of(token), _log(chosen), likeliest)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


Deliver = Callable[[list[tuple[str, Event]]], None]


class Outbox:
    """Hands events to `deliver`, in the order of `put`. `clock` is `monotonic_ns`."""

    def __init__(self, deliver: Deliver, interval_ms: float, clock: Callable[[], int]) -> None:
        self._deliver = deliver
        self._interval_ns = int(interval_ms * 1e6)
        self._clock = clock
        self._events: list[tuple[str, Event]] = []
        self._urgent = False
        self._delivered_ns = clock() - self._interval_ns

    def put(self, request_id: str, event: Event) -> None:
        """Append an event of a request."""
        self._events.append((request_id, event))

    def report(self, sequence: Sequence) -> None:
        """Tell how far a prompt is, if its request asks for that and it is known. What was taken
        over is handed over at once: the decode that follows may take seconds.
        """
        if not sequence.request.report_progress or sequence.restoring:
            return
        self.put(sequence.request.request_id, sequence.progress(self._clock()))
        self.hurry()
        if not sequence.n_computed:
            self.deliver_due(idle=False)

    def hurry(self) -> None:
        """What is there, or comes until the next hand-over, is due at once."""
        self._urgent = True

    def deliver_due(self, *, idle: bool) -> None:
        """Hand over everything if any of it is due; all of it is in an `idle` engine."""
        now = self._clock()
        if self._events and (self._urgent or idle or now - self._delivered_ns >= self._interval_ns):
            events, self._events = self._events, []
            self._urgent, self._delivered_ns = False, now
            self._deliver(events)
