"""A bound of what a model thinks before it answers. Pure.

When the reasoning has not ended after its budget, its closing marker is put into the reply in place
of what the model would have drawn. What is forced depends on the tokens of the reply alone, so that
a run that is resumed anywhere gives the same reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from erllama.errors import check_int


@dataclass(frozen=True, slots=True)
class ReasoningBudget:
    """At most `n_tokens` of reasoning, then `closing`. `opening` is what the reply begins with if
    the model thinks, () where the prompt has opened the reasoning. Raises `InvalidParameter`.
    """

    n_tokens: int
    closing: tuple[int, ...]
    opening: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_int("thinking_budget", self.n_tokens, 0, 2**31 - 1)

    def forced(self, tokens: Sequence[int], begin: int) -> int | None:
        """The token that must come next in the reply, which `tokens` hold from `begin` on; None
        where the model may choose.
        """
        first = begin + len(self.opening) + self.n_tokens  # where the closing has to begin at the latest
        n_closed = len(tokens) - first
        if not 0 <= n_closed < len(self.closing):
            return None
        reply = tuple(tokens[begin:first])
        if reply[: len(self.opening)] != self.opening or self._ends(reply):
            return None
        return self.closing[n_closed] if tuple(tokens[first:]) == self.closing[:n_closed] else None

    def _ends(self, reply: tuple[int, ...]) -> bool:
        n = len(self.closing)
        return any(reply[i : i + n] == self.closing for i in range(len(reply) - n + 1))
