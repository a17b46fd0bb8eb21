"""How often a proposed token is the one that is sampled, by how well its place matched. Learned from
every proposal, also from those that were not computed ahead: what is sampled tells all the same.
"""

from __future__ import annotations

from collections.abc import Iterator

from erllama.speculation.proposal import Proposal, Source

_LONGEST = 16  # matches of this length and more count together
_PRIOR_WEIGHT = 8.0  # proposals that the prior is worth
_OTHERS_WEIGHT = 1.0  # proposals that what other replies showed is worth: this one may repeat nothing
_FORGET = 0.995  # per proposal: what was learned 200 proposals ago weighs a third


def _prior(n_matched: int) -> float:
    """Before anything was seen. What two tokens say is little; what has run on for long, runs on."""
    return min(0.95, 0.25 + 0.08 * n_matched)


class Acceptance:
    """Shares of proposed tokens that came: of all replies, or of one among `others`, which learn from
    it. Engine thread only.
    """

    def __init__(self, others: Acceptance | None = None) -> None:
        self._others = others
        self._came: dict[tuple[Source, int], float] = {}
        self._seen: dict[tuple[Source, int], float] = {}

    def probability(self, source: Source, n_matched: int) -> float:
        """That the next proposed token is the one that is sampled."""
        key = _key(source, n_matched)
        if self._others is not None:
            prior, weight = self._others.probability(source, n_matched), _OTHERS_WEIGHT
        else:
            prior, weight = 0.9 if source is Source.GRAMMAR else _prior(key[1]), _PRIOR_WEIGHT
        return (self._came.get(key, 0.0) + prior * weight) / (self._seen.get(key, 0.0) + weight)

    def expected(self, proposal: Proposal, n_most: int) -> Iterator[float]:
        """How many tokens come as proposed if 1, 2, .. up to `n_most` are computed ahead."""
        chain, total = 1.0, 0.0
        for i in range(min(n_most, len(proposal.tokens))):
            chain *= self.probability(proposal.source, proposal.n_matched + i)
            total += chain
            yield total

    def note(self, proposal: Proposal, n_common: int, n_came: int) -> None:
        """Of what came, `n_came` tokens, the first `n_common` were as proposed."""
        if self._others is not None:
            self._others.note(proposal, n_common, n_came)
        for i in range(min(n_common + 1, n_came, len(proposal.tokens))):
            key = _key(proposal.source, proposal.n_matched + i)
            self._seen[key] = self._seen.get(key, 0.0) * _FORGET + 1.0
            self._came[key] = self._came.get(key, 0.0) * _FORGET + (i < n_common)


def _key(source: Source, n_matched: int) -> tuple[Source, int]:
    return source, min(n_matched, _LONGEST)
