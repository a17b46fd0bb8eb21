"""Which replica shall have a request: costs in prompt tokens, the cheapest first. Pure.

    missing   tokens that the replica would have to compute; those its node's first tier has count
              for a part
    displaced where no sequence of the context is empty, another conversation loses its own: it is
              taken to be as long as this one, and half of them to come back
    busy      every running request counts for a sixteenth of the guard: neighbours share the cores
    waiting   every request beyond what runs at once counts for the guard: `guard_tokens` of
              computing are better than waiting behind one
    affinity  a quarter of the guard for every replica but the one where the last request of the same
              affinity went: clients name it for prompts that they expect to share a beginning

Who failed this very request comes last. Where an identical request runs comes first: this one reads
the reply of that one and costs nothing. A session comes before all costs: its transcript and its
pin are on one replica, and elsewhere `continue_` cannot go on. Replicas of equal cost come in the
order of least load, then of who got a new conversation longest ago, so that what nobody knows is
spread evenly.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_BUSY_SHARE = 1 / 16
_DISPLACED_SHARE = 1 / 2
_AFFINITY_SHARE = 1 / 4


@dataclass(frozen=True, slots=True)
class RouteWeights:
    """`guard_tokens`: see above. `node_share`: what a token costs less where the node's first tier
    has it (0 without a store, below 1)."""

    guard_tokens: float = 512.0
    node_share: float = 0.0


@dataclass(frozen=True, slots=True)
class ReplicaView(Generic[K]):
    """What is known of one replica for one prompt.

    `live` of its tokens are in the replica's context, `near` in the first tier of its node. `load`
    counts requests that run or wait there, `full` says that a conversation must go to make room.
    `turn` is larger the later a new conversation was sent there.
    """

    key: K
    live: int = 0
    near: int = 0
    load: int = 0
    n_parallel: int = 1
    full: bool = False
    has_twin: bool = False
    has_session: bool = False
    has_affinity: bool = False
    has_failed: bool = False
    turn: int = 0


def cost(view: ReplicaView[K], n_prompt: int, weights: RouteWeights) -> float:
    """What `n_prompt` tokens cost there, in tokens to compute."""
    live = min(view.live, n_prompt)
    near = min(max(view.near, live), n_prompt)
    missing = n_prompt - live - weights.node_share * (near - live)
    displaced = n_prompt * _DISPLACED_SHARE * (1 - weights.node_share) if view.full else 0.0
    waiting = max(0, view.load + 1 - view.n_parallel)
    return (
        missing
        + displaced
        + weights.guard_tokens * (_BUSY_SHARE * view.load + waiting + _AFFINITY_SHARE * (not view.has_affinity))
    )


def ranked(views: Sequence[ReplicaView[K]], n_prompt: int, weights: RouteWeights) -> list[K]:
    """All replicas, best first. Equal ones stay in the order given: shuffle them first where that
    matters."""
    ordered = sorted(
        views,
        key=lambda view: (
            view.has_failed,
            not view.has_twin,
            not view.has_session,
            cost(view, n_prompt, weights),
            view.load,
            view.turn,
        ),
    )
    return [view.key for view in ordered]
