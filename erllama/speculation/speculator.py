"""Computes ahead what a reply will probably say. The tokens stay those that it would have anyway.

A decode of one token per sequence becomes one of several rows: the newest token and a draft of what
may follow. Each row's logits are those that the token behind it would have been sampled from, and
the draw for a position depends on (seed, position) only; so the engine samples row by row for as
long as what it samples is what was drafted, and forgets the KV of the rest. Only models whose KV
can be cut anywhere speculate.

Whether llama.cpp computes a row alike among others is the backend's to say (`exact_rows`). With
`exact` no more rows are computed than that; with `always` near ties may tip, as they do where
sequences share a decode.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from erllama.backend.base import Backend
from erllama.backend.batch_plan import BatchPlan, PlanRow
from erllama.config import Speculation
from erllama.request import GenerationRequest
from erllama.sequence.machine import State
from erllama.sequence.sampling import GrammarMatcher
from erllama.sequence.sequence import Sequence as Reply
from erllama.speculation.acceptance import Acceptance
from erllama.speculation.draft_length import LENGTHS, choose_rows
from erllama.speculation.lookup import PromptLookup
from erllama.speculation.proposal import NOTHING, Proposal, Source
from erllama.speculation.row_costs import RowCosts

_COSTLY_S = 0.002  # of the engine thread, for one sequence of many
_TOKEN_BYTES = 32  # hardly a token has more


@dataclass(slots=True)
class _Guesses:
    """What is proposed for one sequence. `proposal` follows what `lookup` knows of it."""

    lookup: PromptLookup
    acceptance: Acceptance
    costly: bool = False  # its grammar takes too long to be asked about what may not even come
    proposal: Proposal = NOTHING


class Speculator:
    """Drafts for the sequences of one engine; `earlier` are texts that a sequence may repeat besides
    its own. Engine thread only.
    """

    def __init__(
        self,
        backend: Backend,
        mode: Speculation,
        n_batch: int,
        earlier: Callable[[GenerationRequest], Sequence[Sequence[int]]] = lambda _: (),
    ) -> None:
        self._backend = backend
        self._mode = mode
        self._n_most = min(n_batch, backend.max_logits)
        self._earlier = earlier
        self._acceptance = Acceptance()
        self._costs = RowCosts()
        self._guesses: dict[Reply, _Guesses] = {}
        self.enabled = mode != "off" and backend.generates and backend.kv_layout.kind.cuttable

    def extend(self, plan: BatchPlan) -> BatchPlan:
        """The plan, with drafts where that is expected to be faster."""
        n_most = self._most_rows(plan.rows)
        if n_most < 2:
            return plan
        guesses = [self._propose(row.sequence, n_most - 1) for row in plan.rows]
        expected = [tuple(one.acceptance.expected(one.proposal, n_most - 1)) for one in guesses]
        n_rows = choose_rows(expected, self._costs, n_most)
        if n_rows == 1:
            return plan
        rows = zip(plan.rows, guesses, strict=True)
        return replace(plan, rows=tuple(row.with_draft(_filled(row, one.proposal, n_rows - 1)) for row, one in rows))

    def decoded(self, plan: BatchPlan, seconds: float) -> None:
        """A plan took so long to compute."""
        if self.enabled and plan.rows[0].sequence.state is State.GENERATING:
            self._costs.note(len(plan.rows), plan.rows[0].n_tokens, seconds)

    def forget(self, sequence: Reply) -> None:
        """A sequence has ended. Idempotent."""
        self._guesses.pop(sequence, None)

    def _most_rows(self, rows: tuple[PlanRow, ...]) -> int:
        """Rows that each sequence may have; 1 where nothing can be computed ahead."""
        if not self.enabled or not rows or not all(_is_token(row) for row in rows):
            return 1
        n_most = self._n_most
        if self._mode == "exact":
            if rows[0].sequence.adapters:  # their matrices were not tried, and are of other types
                return 1
            deepest = max(row.start for row in rows) + LENGTHS[-1]
            n_most = min(n_most, self._backend.exact_rows(_fewest_together(rows), deepest))
        return min(n_most // len(rows), LENGTHS[-1], 1 + min(_room(row.sequence) for row in rows))

    def _propose(self, sequence: Reply, n_most: int) -> _Guesses:
        """What may follow in a sequence, having learned from what came since."""
        guesses = self._guesses.get(sequence)
        if guesses is None:
            guesses = self._guesses[sequence] = _Guesses(self._new_lookup(sequence), Acceptance(self._acceptance))
        came = sequence.tokens[guesses.lookup.n_tokens :]
        if came:
            guesses.acceptance.note(guesses.proposal, guesses.proposal.n_common(came), len(came))
            guesses.lookup.extend(came)
        guesses.proposal = guesses.lookup.propose(n_most)
        if sequence.sampler.grammar is not None:
            guesses.proposal = self._allowed(sequence.sampler.grammar, guesses, n_most)
        return guesses

    def _new_lookup(self, sequence: Reply) -> PromptLookup:
        predicted = sequence.request.prediction[: sequence.n_ctx]
        begins = bool(predicted) and sequence.n_generated <= 1
        texts = [*self._earlier(sequence.request), *([predicted] if predicted else [])]
        n_given = sequence.n_given
        lookup = PromptLookup(sequence.given.ids, sequence.n_ctx, earlier=texts, predicted=begins)
        lookup.extend(sequence.tokens[n_given:])
        return lookup

    def _allowed(self, grammar: GrammarMatcher, guesses: _Guesses, n_most: int) -> Proposal:
        """What of a proposal a grammar allows; what the grammar forces, if that is more. One whose first
        answer takes long is not asked again: a step of it is bounded, many of them would not be.
        """
        if guesses.costly:
            return NOTHING
        began = time.thread_time()
        proposal, forced = guesses.proposal, grammar.forced()[: n_most * _TOKEN_BYTES]
        n_allowed = grammar.n_allowed(proposal.tokens[:1])
        guesses.costly = time.thread_time() - began > _COSTLY_S
        if guesses.costly:
            return NOTHING
        if n_allowed:
            n_allowed = grammar.n_allowed(proposal.tokens)
        ids = tuple(self._backend.tokenize(forced.decode(errors="ignore")))[:n_most] if forced else ()
        ids = ids[: grammar.n_allowed(ids)]
        return Proposal(ids, source=Source.GRAMMAR) if len(ids) > n_allowed else proposal.first(n_allowed)


def _fewest_together(rows: tuple[PlanRow, ...]) -> int:
    """Sequences of the smallest pass: llama.cpp computes together those whose ids follow each other."""
    ids = sorted(row.seq_id for row in rows)
    cuts = [0, *(i for i in range(1, len(ids)) if ids[i] != ids[i - 1] + 1), len(ids)]
    return min(b - a for a, b in pairwise(cuts))


def _is_token(row: PlanRow) -> bool:
    return row.sequence.state is State.GENERATING and row.n_tokens == row.n_logits == 1


def _room(sequence: Reply) -> int:
    """Tokens that may be drafted: the reply and the context must hold them and one more that follows."""
    return min(sequence.n_max_generated - sequence.n_generated - 1, sequence.n_ctx - sequence.n_tokens)


def _filled(row: PlanRow, proposal: Proposal, n_tokens: int) -> tuple[int, ...]:
    """A draft of exactly this length: beyond the proposal anything will do."""
    draft = proposal.tokens[:n_tokens]
    return draft + (row.sequence.tokens[-1],) * (n_tokens - len(draft))
