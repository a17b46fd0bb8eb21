"""Which of the running prefills gets the next slice. Engine thread only.

A prefill that others wait for, because theirs begin with the same tokens, counts as what is left
for the first of them: it is as urgent, and as short, as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from erllama.cache.live import Upcoming
from erllama.engine.fairness import Claim, FairOrder
from erllama.sequence.machine import State
from erllama.sequence.sequence import Sequence as Prefill


class PrefillOrder:
    """`waiting`: who waits for which prefill; a view of what changes. `unit`: tokens of a slice."""

    def __init__(self, unit: int, waiting: Mapping[Prefill, Upcoming]) -> None:
        self._order = FairOrder(unit)
        self._waiting = waiting

    def first(self, prefills: Sequence[Prefill]) -> Prefill:
        """The next one of `prefills`, of at least one. Changes nothing."""
        return prefills[self._order.pick(self._claims(prefills))] if len(prefills) > 1 else prefills[0]

    def computed(self, prefill: Prefill, n_tokens: int, running: Sequence[Prefill]) -> None:
        """A slice of `prefill` was computed, while `running` ran; no length has changed yet."""
        prefills = [s for s in running if s.state is State.PREFILLING]
        self._order.charge(self._claims(prefills), prefills.index(prefill), n_tokens)

    def _claims(self, prefills: Sequence[Prefill]) -> list[Claim]:
        claims = [Claim(s.request.tenant, s.priority, s.n_pending, s.submitted_ns) for s in prefills]
        for waiter, (source, n_shared) in self._waiting.items():
            if source in prefills:
                i = prefills.index(source)
                n_left = max(0, n_shared - source.n_kv) + waiter.n_given - n_shared
                own = claims[i]
                claims[i] = own._replace(
                    n_tokens=min(own.n_tokens, n_left), priority=min(own.priority, waiter.priority)
                )
        return claims
