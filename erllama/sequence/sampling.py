"""Choosing the next token from a row of logits. Pure numpy: no clock, no thread, no llama_cpp.

The chain is: logit bias, grammar, penalties, top_k, top_p, min_p, temperature, draw. It gives what
llama.cpp's own samplers in that order give, computed another way, because a candidate array of a
whole vocabulary (152 k entries) costs more than the sampling itself:

- greedy is one `argmax` (12 us at 152 k);
- `top_k` finds a bound from the maxima of blocks of the row and sorts only what lies above it;
- `top_p` and `min_p` without `top_k` first drop tokens that cannot be in the nucleus: those below
  (1 - top_p) / n_vocab sum up to less than 1 - top_p, so the nucleus lies above that line;
- a grammar is asked about the one token that was drawn; only when it refuses is it asked about the
  whole vocabulary, and another draw made among what it allows, as llama.cpp's common_sampler_sample
  does. That draw has a random number of its own: the refused one is known to lie where the refused
  token was, and using it again would favour whatever moved there.

The draw is counter-based: the random number for a position depends only on (seed, position). A
generation can therefore be resumed anywhere and gives the same tokens. The generator is splitmix64
(Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from erllama.errors import DecodeFailed, InvalidParameter
from erllama.request import SamplingParams

Logits = NDArray[np.float32]
Drawn = tuple[NDArray[np.intp], NDArray[np.float64]]
"""What a token was drawn among: ids with their probabilities, which sum up to 1."""

_BLOCK = 64  # tokens per block in `_top_k`: the maxima of 152 k logits fit into L1
_MASK64 = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_DRAW_GAMMA = 0xD1B54A32D192ED03  # odd, no small multiple of _GAMMA
_MIN_TEMPERATURE = 1e-100  # dividing a float32 difference by it stays within float64


class GrammarMatcher(Protocol):
    """A grammar in some state of its derivation. Not thread-safe; engine thread only. `param` is the
    request's field that it came from.

    Every method raises `InvalidParameter` when the grammar turns out to be too costly to follow.
    """

    @property
    def param(self) -> str: ...

    def allows(self, token: int) -> bool:
        """Whether `token` may come next. Does not change the state."""

    def allowed(self, n_vocab: int) -> NDArray[np.bool_]:
        """Which tokens may come next. Shape (n_vocab,)."""

    def accept(self, token: int) -> None:
        """Advance by a token. Raises `InvalidParameter` for one that may not come next."""

    def n_allowed(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may come next, in this order. Does not change the state."""

    def forced(self) -> bytes:
        """What text must come next, as far as that is known. Does not change the state."""


def uniform(seed: int, position: int, draw: int = 0) -> float:
    """A uniform number in [0, 1) that depends only on `seed`, `position` and the number of the
    `draw` there (53 bits).
    """
    z = (seed + (position + 1) * _GAMMA + draw * _DRAW_GAMMA) & _MASK64
    for _ in range(2):  # two rounds: neighbouring seeds and positions must not correlate
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        z = (z ^ (z >> 31)) & _MASK64
    return (z >> 11) * 2.0**-53


def top_candidates(logits: Logits, k: int) -> NDArray[np.intp]:
    """Ids of the `k` largest logits, largest first, ties by lower id. Shape (min(k, n_vocab),)."""
    n = logits.shape[0]
    if k < n // _BLOCK:
        n_blocked = n - n % _BLOCK
        maxima = logits[:n_blocked].reshape(-1, _BLOCK).max(axis=1)
        bound = np.partition(maxima, maxima.shape[0] - k)[maxima.shape[0] - k]  # at least k logits reach it
        ids = np.flatnonzero(logits >= bound)
    else:
        ids = np.arange(n)
    order = np.argsort(-logits[ids], kind="stable")
    return ids[order[:k]]


def log_softmax_at(logits: Logits, ids: Sequence[int]) -> list[float]:
    """Natural log probabilities of `ids` under softmax(logits)."""
    top = float(logits.max())
    log_z = float(np.log(np.exp(logits - np.float32(top)).sum(dtype=np.float64))) + top
    return [float(logits[i]) - log_z for i in ids]


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


class TokenSampler:
    """The sampling state of one sequence.

    `params.seed` must be set. `history` is the sequence's own token list, shared and growing:
    penalties look at its last `repeat_last_n` entries (-1: all of them). `banned` tokens are never
    drawn, except where a grammar allows nothing else: its end is an end even for a request that
    ignores the model's. `keeps_drawn`: each draw leaves what it was made among, for
    `take_drawn`. Engine thread only.
    """

    def __init__(
        self,
        params: SamplingParams,
        history: Sequence[int],
        grammar: GrammarMatcher | None = None,
        *,
        banned: Iterable[int] = (),
        keeps_drawn: bool = False,
    ) -> None:
        if params.seed is None:
            raise InvalidParameter("a sampler needs a seed", param="seed")
        self._params = params
        self._seed = params.seed & _MASK64
        self._history = history
        self._grammar = grammar
        self._banned = sorted(banned)
        self._keeps_drawn = keeps_drawn
        self._drawn: Drawn | None = None
        self._bias_ids = np.array([token for token, _ in params.logit_bias], dtype=np.intp)
        self._bias = np.array([-np.inf if bias <= -100.0 else bias for _, bias in params.logit_bias], dtype=np.float32)

    def sample(self, logits: Logits, position: int) -> int:
        """The token for `position`. Changes `logits` in place (bias, penalties). Shape (n_vocab,).

        Raises `DecodeFailed` when the row holds NaN, `InvalidParameter` when a grammar or biases
        leave nothing to choose from.
        """
        if self._bias_ids.size:
            np.add.at(logits, self._bias_ids, self._bias)  # an id may be there twice
        if self._params.penalised:
            self._penalise(logits)
        if self._banned:
            logits[self._banned] = -np.inf
        token = self._choose(logits, position, draw=0)
        if self._grammar is not None and not self._grammar.allows(token):
            token = self._choose_allowed(logits, position, np.flatnonzero(self._grammar.allowed(logits.shape[0])))
        return token

    def _choose_allowed(self, logits: Logits, position: int, ids: NDArray[np.intp]) -> int:
        """A draw among what the grammar allows, mostly a few tokens of a vocabulary."""
        if not ids.size:
            raise self._nothing_left(position)
        left = logits[ids]
        self.take_drawn()  # the draw was refused
        if left.max() == -np.inf and (ends := sorted(set(self._banned) & set(ids.tolist()))):
            return ends[0]
        index = self._choose(left, position, draw=1, n_vocab=logits.shape[0])
        if (drawn := self.take_drawn()) is not None:
            self._drawn = (ids[drawn[0]], drawn[1])
        return int(ids[index])

    def take_drawn(self) -> Drawn | None:
        """What the last token was drawn among, once; None if no draw was made since."""
        drawn, self._drawn = self._drawn, None
        return drawn

    @property
    def grammar(self) -> GrammarMatcher | None:
        """What the reply must follow, in the state after its last token."""
        return self._grammar

    def accept(self, token: int) -> None:
        """Tell the grammar which token was kept."""
        if self._grammar is not None:
            self._grammar.accept(token)

    def fast_forward(self, token: int) -> None:
        """Accept a token that an earlier run drew. Raises `InvalidParameter` for one that the
        grammar does not allow here.
        """
        if self._grammar is not None and not self._grammar.allows(token):
            raise InvalidParameter(
                f"resumed holds token id {token} where the grammar does not allow it", param="resumed"
            )
        self.accept(token)

    def close(self) -> None:
        """Let go of the grammar. Idempotent."""
        self._grammar = None

    def _penalise(self, logits: Logits) -> None:
        """Repetition (divide or multiply, as in the CTRL paper), frequency and presence penalties,
        as llama_sampler_penalties does.
        """
        params = self._params
        window = self._history if params.repeat_last_n < 0 else self._history[-params.repeat_last_n :]
        counts = Counter(window)
        ids = np.fromiter(counts.keys(), dtype=np.intp, count=len(counts))
        number = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))
        seen = logits[ids]
        repeat = np.float32(params.repetition_penalty)
        seen = np.where(seen <= 0, seen * repeat, seen / repeat)
        logits[ids] = seen - number * np.float32(params.frequency_penalty) - np.float32(params.presence_penalty)

    def _choose(self, logits: Logits, position: int, *, draw: int, n_vocab: int | None = None) -> int:
        """The index of the drawn logit. They may be some of a vocabulary of `n_vocab`."""
        best = int(np.argmax(logits))
        if logits[best] == -np.inf and (self._grammar is not None or self._bias_ids.size):
            raise self._nothing_left(position)
        if not np.isfinite(logits[best]):  # argmax stops at the first NaN
            raise DecodeFailed(f"no token can be chosen at position {position}: the best logit is {logits[best]}")
        if self._params.greedy:
            self._keep(np.array([best]), np.ones(1))
            return best
        ids, weights = self._candidates(logits, float(logits[best]), n_vocab or logits.shape[0])
        probabilities = _softmax((weights - weights.max()) / max(self._params.temperature, _MIN_TEMPERATURE))
        self._keep(ids, probabilities)
        cumulative = np.cumsum(probabilities)
        drawn = int(np.searchsorted(cumulative, uniform(self._seed, position, draw) * cumulative[-1], side="right"))
        return int(ids[min(drawn, ids.shape[0] - 1)])

    def _keep(self, ids: NDArray[np.intp], probabilities: NDArray[np.float64]) -> None:
        if self._keeps_drawn:
            self._drawn = (ids, probabilities)

    def _nothing_left(self, position: int) -> InvalidParameter:
        """The client's fault: another run would end the same way."""
        param = "logit_bias" if self._grammar is None else self._grammar.param
        return InvalidParameter(f"{param} leaves no token to choose at position {position}", param=param)

    def _candidates(self, logits: Logits, best: float, n_vocab: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Ids and logits that survive top_k, top_p and min_p. Sorted, unless nothing truncates a
        vocabulary: the order decides which one a random number means.
        """
        params = self._params
        n = logits.shape[0]
        if 0 < params.top_k < n_vocab:
            ids = top_candidates(logits, params.top_k)
            values = logits[ids].astype(np.float64)
            probabilities = _softmax(values)
        elif params.top_p < 1.0 or params.min_p > 0.0:
            weights = np.exp(logits - np.float32(best))
            total = float(weights.sum(dtype=np.float64))
            # a little lower: float32 rounding must not cut
            floor = max(total * (1.0 - params.top_p) / n, params.min_p) * 0.999
            ids = np.flatnonzero(weights >= floor)
            ids = ids[np.argsort(-logits[ids], kind="stable")]
            values = logits[ids].astype(np.float64)
            probabilities = weights[ids].astype(np.float64) / total
        else:
            return np.arange(n), logits.astype(np.float64)
        keep = ids.shape[0]
        if params.top_p < 1.0:
            keep = min(keep, int(np.searchsorted(np.cumsum(probabilities), params.top_p)) + 1)
        if params.min_p > 0.0:
            keep = min(keep, max(1, int(np.count_nonzero(probabilities >= params.min_p * probabilities[0]))))
        return ids[:keep], values[:keep]
