"""What turns amount to, and what they cannot tell. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from erllama.benchmark.turn import Turn
from erllama.benchmark.workload import Workload


@dataclass(frozen=True, slots=True)
class TurnSummary:
    """The turns of one number in all conversations. Medians where nothing else is said; None where the
    server does not tell it. Seconds and tokens.
    """

    number: int
    n_turns: int
    n_prompt: float | None
    n_cached: float | None
    n_reply: float | None
    ttft_s: float | None
    ttft_max_s: float | None
    prefill_tok_s: float | None
    server_prefill_tok_s: float | None
    decode_tok_s: float | None
    server_decode_tok_s: float | None
    gap_p50_s: float | None
    gap_p99_s: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """`turns` by number. `cold` and `warm` are the first turns and all later ones, None without any.
    `output_tok_s`: tokens of all replies by the time from the first request to the last text.
    """

    turns: tuple[TurnSummary, ...]
    cold: TurnSummary | None
    warm: TurnSummary | None
    output_tok_s: float | None
    errors: tuple[str, ...]
    unknown: tuple[str, ...]


def summarise(turns: Sequence[Turn], workload: Workload) -> Summary:
    good = [turn for turn in turns if turn.error is None]
    numbers = sorted({turn.number for turn in good})
    errors = tuple(dict.fromkeys(turn.error for turn in turns if turn.error))
    return Summary(
        turns=tuple(_of(number, [turn for turn in good if turn.number == number]) for number in numbers),
        cold=_some(1, [turn for turn in good if turn.number == 1]),
        warm=_some(2, [turn for turn in good if turn.number > 1]),
        output_tok_s=_output_rate(good),
        errors=errors,
        unknown=tuple(unknown(good, workload)),
    )


def unknown(turns: Sequence[Turn], workload: Workload) -> Iterable[str]:
    """What these figures do not say, or what makes them mean less than they seem to."""
    if not turns:
        return
    yield "the time to the first token includes network and queue; nobody outside of the server can part them"
    if all(turn.n_cached is None for turn in turns):
        yield "the server does not tell cached tokens: whether a turn was computed or restored is not known"
    first = [turn for turn in turns if turn.number == 1]
    if any(turn.n_cached and turn.n_prompt and turn.n_cached > turn.n_prompt // 4 for turn in first):
        yield "part of the first prompts was cached already: the first turn was not cold"
    per_event = _tokens_per_event(turns)
    if per_event is not None and per_event > 1.5:
        yield f"an event has {per_event:.1f} tokens on average: the gaps are between events, not between tokens"
    if all(turn.decode_tok_s is None for turn in turns):
        yield "the server tells no timings of its own: rates are those that this client sees"
    short = [turn.n_reply for turn in turns if turn.n_reply is not None and turn.n_reply < workload.reply_tokens]
    if short:
        yield f"{len(short)} of {len(turns)} replies ended by themselves before {workload.reply_tokens} tokens"
    if sum(len(turn.gaps_s) for turn in turns) < 100:
        yield "fewer than 100 gaps were seen: the 99th percentile is nearly the largest"


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed; None without values."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else None


def _some(number: int, turns: Sequence[Turn]) -> TurnSummary | None:
    return _of(number, turns) if turns else None


def _of(number: int, turns: Sequence[Turn]) -> TurnSummary:
    def median(of: Callable[[Turn], float | None]) -> float | None:
        return percentile([value for turn in turns if (value := of(turn)) is not None], 0.5)

    gaps = [gap for turn in turns for gap in turn.gaps_s]
    return TurnSummary(
        number=number,
        n_turns=len(turns),
        n_prompt=median(lambda turn: turn.n_prompt),
        n_cached=median(lambda turn: turn.n_cached),
        n_reply=median(lambda turn: turn.n_reply),
        ttft_s=median(lambda turn: turn.ttft_s),
        ttft_max_s=percentile([turn.ttft_s for turn in turns if turn.ttft_s is not None], 1.0),
        prefill_tok_s=median(lambda turn: turn.seen_prefill_tok_s),
        server_prefill_tok_s=median(lambda turn: turn.prefill_tok_s),
        decode_tok_s=median(lambda turn: turn.seen_decode_tok_s),
        server_decode_tok_s=median(lambda turn: turn.decode_tok_s),
        gap_p50_s=percentile(gaps, 0.5),
        gap_p99_s=percentile(gaps, 0.99),
    )


def _output_rate(turns: Sequence[Turn]) -> float | None:
    if not turns or any(turn.n_reply is None for turn in turns):
        return None
    took_s = max(turn.arrived_s[-1] for turn in turns) - min(turn.sent_s for turn in turns)
    return sum(turn.n_reply or 0 for turn in turns) / took_s if took_s > 0 else None


def _tokens_per_event(turns: Sequence[Turn]) -> float | None:
    counted = [turn for turn in turns if turn.n_reply]
    n_events = sum(len(turn.arrived_s) for turn in counted)
    return sum(turn.n_reply or 0 for turn in counted) / n_events if n_events else None
