"""Which tokens the next llama_decode computes. Pure policy: sequences in, a plan out, nothing
changed.

One decode is either a token for every generating sequence, or one slice of one prompt. The two
kinds take turns, so running streams keep their pace beside a long prompt. Which prompt is next is
the caller's choice before every slice (`engine.prefill_order`).

Slices end at multiples of `prefill_slice` and are never mixed with other rows. So which kernels
compute a prompt depends on the prompt alone, and its KV is the same, bit for bit, whoever runs
beside it: llama.cpp's flash attention takes another path for 64 and more rows, and the small
difference is enough to tip a sampled token. It costs nothing: with a KV stream per sequence
llama.cpp would compute a mixed batch in two passes anyway.

Sequences with different adapter sets never share a decode: llama.cpp applies adapters to a context,
not to a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from erllama.sequence.machine import State
from erllama.sequence.sequence import Sequence
from erllama.stats import AdapterSet

First = Callable[[list[Sequence]], Sequence]
"""The one of several prefills that is computed next."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`n_batch`: tokens of one decode at most; `prefill_slice`: tokens of a slice; `solo`: one
    sequence per decode.
    """

    n_batch: int
    prefill_slice: int
    solo: bool = False


@dataclass(frozen=True, slots=True)
class PlanRow:
    """Compute `sequence.tokens[start : start + n_tokens]`, with the logits after the last
    `n_logits` of them.

    One row of logits where that reaches the last known token, else none. The last tokens may be a
    `draft`, which follows what is known and may turn out wrong; then there are logits after the last
    known token and each of the draft.
    """

    sequence: Sequence
    start: int
    n_tokens: int
    n_logits: int
    draft: tuple[int, ...] = ()

    def with_draft(self, draft: tuple[int, ...]) -> PlanRow:
        """The row of a last known token, with what may follow it."""
        n = len(draft)
        return replace(self, n_tokens=self.n_tokens + n, n_logits=self.n_logits + n, draft=draft)

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens[self.start : self.start + self.n_known], *self.draft]

    @property
    def n_known(self) -> int:
        """How many of the tokens are no draft."""
        return self.n_tokens - len(self.draft)

    @property
    def seq_id(self) -> int:
        return self.sequence.id


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


def _slice(sequence: Sequence, limits: BatchLimits) -> PlanRow:
    """From where the KV ends to the next boundary, or to the end of the prompt."""
    length = min(limits.prefill_slice, limits.n_batch)
    n_tokens = min(length - sequence.n_kv % length, sequence.n_pending)
    return PlanRow(sequence, sequence.n_kv, n_tokens, n_logits=int(n_tokens == sequence.n_pending))


def _token(sequence: Sequence) -> PlanRow:
    return PlanRow(sequence, sequence.n_kv, 1, n_logits=int(sequence.n_pending == 1))


def _in_order(prefills: list[Sequence]) -> Sequence:
    return prefills[0]


def plan_batch(running: Iterable[Sequence], limits: BatchLimits, turn: int = 0, first: First = _in_order) -> BatchPlan:
    """The next batch over `running` (admission order). `turn` counts steps: what cannot run
    together takes turns. `first` chooses among the prefills of one adapter set.
    """
    live = [s for s in running if s.state in (State.PREFILLING, State.GENERATING) and s.n_pending]
    if not live:
        return BatchPlan((), ())
    candidates: list[list[PlanRow]] = []
    groups = (
        [[s] for s in live]
        if limits.solo
        else [[s for s in live if s.adapters == a] for a in dict.fromkeys(s.adapters for s in live)]
    )
    for group in groups:
        candidates.append([_token(s) for s in group if s.state is State.GENERATING][: limits.n_batch])
        prefills = [s for s in group if s.state is State.PREFILLING]
        candidates.append([_slice(first(prefills), limits)] if prefills else [])
    candidates = [rows for rows in candidates if rows]
    rows = candidates[turn % len(candidates)]
    return BatchPlan(tuple(rows), rows[0].sequence.adapters)
