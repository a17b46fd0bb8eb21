"""The next tokens of a sequence: drawn from logits, told to the client, and whether they end it.
Engine thread only. How a sequence ends is the engine's business (`finish`).
"""

from __future__ import annotations

from collections.abc import Callable

from erllama.backend.base import Backend
from erllama.engine.reply_events import Outbox, token_event
from erllama.errors import ErllamaError
from erllama.sequence.machine import Step
from erllama.sequence.sampling import Logits
from erllama.sequence.sequence import Sequence
from erllama.stats import Counters

Finish = Callable[[Sequence, Step, ErllamaError | None], None]


class Generation:
    """Advances sequences whose logits are there. It writes `counts`, the engine's."""

    def __init__(
        self, backend: Backend, outbox: Outbox, counts: Counters, finish: Finish, clock: Callable[[], int]
    ) -> None:
        self._backend = backend
        self._outbox = outbox
        self._counts = counts
        self._finish = finish
        self._clock = clock

    def sample(self, sequence: Sequence, logits: Logits) -> None:
        """The next token, from the logits after the last one."""
        try:
            self._generate(sequence, logits)
        except ErllamaError as error:  # no token can be chosen, or the grammar is too costly: no other one ends
            self._finish(sequence, Step.ERROR, error)

    def _generate(self, sequence: Sequence, logits: Logits) -> None:
        """Sample one token and see whether it ends the sequence."""
        if sequence.n_generated >= sequence.n_max_generated:  # max_tokens 0: a prefill
            self._finish(sequence, Step.LENGTH, None)
            return
        raw = logits.copy() if sequence.request.logprobs is not None else None  # sampling changes the row
        token = sequence.forced_token
        if token is None:
            token = sequence.sampler.sample(logits, position=sequence.n_tokens)
        if sequence.first_token_ns is None:
            sequence.first_token_ns = self._clock()
            self._outbox.hurry()
        if token in self._backend.eog_tokens:
            self._finish(sequence, Step.STOP, None)
            return
        sequence.sampler.accept(token)
        sequence.tokens.append(token)
        sequence.apply(Step.TOKEN)
        event = token_event(sequence, token, raw, self._backend.piece, self._backend.token_text)
        self._outbox.put(sequence.request.request_id, event)
        self._counts.completion_tokens += 1
        self.end_if_complete(sequence, event.text)

    def verify(self, sequence: Sequence, draft: tuple[int, ...], logits: tuple[Logits, ...]) -> None:
        """Sample row by row for as long as that gives the draft, whose rows are in the context; without
        one, the next token.
        """
        sequence.n_ahead = len(draft)
        sequence.n_drafted += len(draft)
        self._counts.drafted_tokens += len(draft)
        for one, drafted in zip(logits, (*draft, None), strict=True):
            self.sample(sequence, one)
            if not sequence.live or sequence.tokens[-1] != drafted:
                break
            sequence.n_kv += 1
            sequence.n_ahead -= 1
            sequence.n_accepted += 1
            self._counts.accepted_tokens += 1
        self.forget_ahead(sequence)

    def forget_ahead(self, sequence: Sequence) -> None:
        """Cut what was drafted and not sampled: whoever reads the context finds known tokens alone."""
        if sequence.n_ahead and sequence.seq_id is not None:
            self._backend.cut(sequence.seq_id, sequence.n_kv)
        sequence.n_ahead = 0

    def end_if_complete(self, sequence: Sequence, new_text: str = "") -> None:
        """End a sequence whose reply is complete with `new_text`."""
        if sequence.text.stopped:
            self._finish(sequence, Step.STOP, None)
        elif sequence.n_generated >= sequence.n_max_generated or sequence.ends_a_late_line(new_text, self._clock):
            self._finish(sequence, Step.LENGTH, None)
