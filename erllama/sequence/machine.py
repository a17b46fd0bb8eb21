"""The life of a sequence as one pure table.

Rule 1: every state and every transition of a sequence lives in this file. Nothing else assigns a
state.

    QUEUED      waits for a sequence id; holds no KV
    RESTORING   owns a sequence id; stored KV is being put back
    PREFILLING  owns a sequence id; prompt tokens are being computed in slices
    GENERATING  every prompt token is computed; each step adds one token
    FINISHED    terminal; owns nothing

`apply` looks a step up and returns the next state. A step that the table does not list raises
`IllegalTransition` and, because the caller assigns only what `apply` returned, changes nothing.
What a model as a whole is doing is derived from its sequences (`model_status`). With one sequence
the machine reads: idle -> prefilling -> generating -> idle.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from types import MappingProxyType

from erllama.errors import IllegalTransition
from erllama.stats import ModelStatus


class State(StrEnum):
    QUEUED = "queued"
    RESTORING = "restoring"
    PREFILLING = "prefilling"
    GENERATING = "generating"
    FINISHED = "finished"


class Step(StrEnum):
    ADMIT_COLD = "admit_cold"  # a sequence id is free and nothing is stored for the prompt
    ADMIT_WARM = "admit_warm"  # a sequence id is free and a stored prefix will be restored
    RESTORED = "restored"  # stored KV is back; prompt tokens are still missing
    RESTORED_ALL = "restored_all"  # stored KV and logits cover the whole prompt
    RESTORE_MISSED = "restore_missed"  # the stored rows were missing or corrupt: a counted miss, never an error
    SLICE = "slice"  # a prefill slice is computed, more is missing
    PREFILLED = "prefilled"  # the last prompt token is computed
    TOKEN = "token"  # one more token was sampled and kept
    STOP = "stop"
    LENGTH = "length"
    CANCEL = "cancel"
    ERROR = "error"


ENDINGS = (Step.STOP, Step.LENGTH, Step.CANCEL, Step.ERROR)

_LIVE = {
    State.QUEUED: {Step.ADMIT_COLD: State.PREFILLING, Step.ADMIT_WARM: State.RESTORING},
    State.RESTORING: {
        Step.RESTORED: State.PREFILLING,
        Step.RESTORED_ALL: State.GENERATING,
        Step.RESTORE_MISSED: State.PREFILLING,
    },
    State.PREFILLING: {Step.SLICE: State.PREFILLING, Step.PREFILLED: State.GENERATING},
    State.GENERATING: {Step.TOKEN: State.GENERATING},
}

# An ending is legal in every live state: a queued request can be cancelled, a prompt of length
# n_ctx ends before its first token.
TRANSITIONS = MappingProxyType(
    {
        **{
            state: MappingProxyType({**steps, **dict.fromkeys(ENDINGS, State.FINISHED)})
            for state, steps in _LIVE.items()
        },
        State.FINISHED: MappingProxyType({}),
    }
)


def apply(state: State, step: Step) -> State:
    """The state after `step`. Raises `IllegalTransition` for one that is not in `TRANSITIONS`."""
    try:
        return TRANSITIONS[state][step]
    except KeyError:
        raise IllegalTransition(f"{step.value!r} in state {state.value!r}") from None


def model_status(states: Iterable[State]) -> ModelStatus:
    """What a model with sequences in `states` is doing. Queued ones do not count."""
    live = set(states) - {State.QUEUED, State.FINISHED}
    if not live:
        return ModelStatus.IDLE
    return ModelStatus.PREFILLING if live & {State.RESTORING, State.PREFILLING} else ModelStatus.GENERATING
