"""Which tokens the next llama_decode computes. Pure policy: sequences in, a plan out, nothing changed.

Order of claims on the batch:
1. every generating sequence gets its one token, so that running streams keep their pace;
2. prompts that are being prefilled share the rest, first come first served, at most `prefill_slice` tokens a step while anything
   generates and the whole batch otherwise.

Sequences with different adapter sets never share a batch: llama.cpp applies adapters to a context, not to a sequence. With several sets
they take turns (`turn` counts steps).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from erllama.machine import State
from erllama.sequence import Sequence

if TYPE_CHECKING:
    from erllama.adapters import AdapterSet


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`n_batch`: tokens of one decode; `prefill_slice`: of those, prompt tokens while others generate; `solo`: one sequence per decode."""

    n_batch: int
    prefill_slice: int
    solo: bool = False


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Compute `sequence.tokens[start : start + n_tokens]`. `wants_logits` when that reaches the last known token."""

    sequence: Sequence
    start: int
    n_tokens: int
    wants_logits: bool

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens[self.start : self.start + self.n_tokens]

    @property
    def seq_id(self) -> int:
        assert self.sequence.seq_id is not None
        return self.sequence.seq_id


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """One llama_decode: rows of one adapter set. False when there is nothing to do."""

    rows: tuple[PlanRow, ...]
    adapters: AdapterSet

    @property
    def n_tokens(self) -> int:
        return sum(row.n_tokens for row in self.rows)

    def __bool__(self) -> bool:
        return bool(self.rows)


def _row(sequence: Sequence, budget: int) -> PlanRow:
    n_tokens = min(sequence.n_pending, budget)
    return PlanRow(sequence, sequence.n_kv, n_tokens, wants_logits=n_tokens == sequence.n_pending)


def plan_batch(running: Iterable[Sequence], limits: BatchLimits, turn: int = 0) -> BatchPlan:
    """The next batch over `running` (admission order). `turn` rotates between adapter sets and, with `solo`, between sequences."""
    live = [s for s in running if s.state in (State.PREFILLING, State.GENERATING) and s.n_pending]
    if not live:
        return BatchPlan((), ())
    generating = any(s.state is State.GENERATING for s in live)  # in any set: a big slice pauses those whose turn it is not, too
    if limits.solo:
        live = [live[turn % len(live)]]
    sets = list(dict.fromkeys(s.adapters for s in live))
    adapters = sets[turn % len(sets)]
    chosen = [s for s in live if s.adapters == adapters]

    budget = limits.n_batch
    rows = [_row(s, 1) for s in chosen if s.state is State.GENERATING][:budget]
    budget -= len(rows)
    if generating:
        budget = min(budget, limits.prefill_slice)
    for sequence in chosen:
        if sequence.state is State.PREFILLING and budget > 0:
            rows.append(_row(sequence, budget))
            budget -= rows[-1].n_tokens
    return BatchPlan(tuple(rows), adapters)
