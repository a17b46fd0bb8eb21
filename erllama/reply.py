"""What the client of a sequence gets to see of it: the events of its tokens and of its end. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cache_store import BLOCK_TOKENS, tail_key
from erllama.errors import ErllamaError, InvalidParameter
from erllama.machine import Event as Step
from erllama.request import Done, Event, Failed, FinishReason, TokenLogprob, Tokens
from erllama.sampling import Logits, log_softmax_at, top_candidates
from erllama.sequence import Sequence

PieceOf = Callable[[int], bytes]

_ENDINGS = {Step.STOP: FinishReason.STOP, Step.LENGTH: FinishReason.LENGTH, Step.CANCEL: FinishReason.CANCELLED}


def replay(sequence: Sequence, piece: PieceOf) -> None:
    """Bring grammar and text to where the earlier run left them. What becomes certain on the way has been delivered."""
    for token in sequence.request.resumed:
        if sequence.text.stopped:
            raise InvalidParameter("resumed goes on after a stop string", param="resumed")
        sequence.sampler.replay(token)
        _note(sequence, sequence.text.push(piece(token)))


def token_event(sequence: Sequence, token: int, raw: Logits | None, piece: PieceOf) -> Tokens:
    """The event of a new token. `raw` are its logits as the model gave them, if log probabilities are wanted."""
    text = sequence.text.push(piece(token))
    _note(sequence, text)
    return Tokens((token,), text, None if raw is None else (_logprob(raw, token, sequence.request.logprobs or 0, piece),))


def last_events(sequence: Sequence, ending: Step, error: ErllamaError | None, clock: Callable[[], int]) -> Iterator[Event]:
    """The text that was held back until the end, and the end itself."""
    if error is not None:
        yield Failed(error)
        return
    tail = sequence.text.finish()
    _note(sequence, tail)
    if tail:
        yield Tokens((), tail, None if sequence.request.logprobs is None else ())
    # the budget may end a reply whose last characters were held back as a stop string that waited for a longer one
    reason = FinishReason.STOP if ending is Step.LENGTH and sequence.text.stopped else _ENDINGS[ending]
    yield Done(sequence.stats(reason, clock()), tail_key(sequence.root, sequence.tokens, BLOCK_TOKENS))


def _note(sequence: Sequence, text: str) -> None:
    if sequence.request.record_replay:
        sequence.reply.append(text)


def _logprob(logits: Logits, token: int, n_top: int, piece: PieceOf) -> TokenLogprob:
    top = [int(i) for i in top_candidates(logits, n_top)] if n_top else []
    chosen, *others = log_softmax_at(logits, [token, *top])
    return TokenLogprob(token, piece(token), chosen, tuple((i, piece(i), p) for i, p in zip(top, others, strict=True)))
