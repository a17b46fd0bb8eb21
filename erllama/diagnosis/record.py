"""What is kept of a request so that its prompt can be explained later. Picklable; times in seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cache_store import ChainKey

Ids = NDArray[np.uint32]

NO_IDS: Ids = np.empty(0, dtype=np.uint32)
SIDE_TOKENS = 64  # of a prompt, kept on each side of the point where it left what was known
NOISE_PREFIX = "noise:"
_MADE_ID = re.compile(r"req-[0-9a-f]{32}(?=\.\d+\Z)")  # one that the server made, of a choice


class Cause(StrEnum):
    """Why tokens of a prompt were computed: a closed set, in which `noise` stands for a family,
    `noise:<rule>`.

        first_seen         nothing of this conversation was known
        extended           it continues what was known, or is all of it
        noise              a rule against client noise that is off would have made both sides equal
        date_or_id         both sides have a time, a number or an id there, and go on alike
        system_changed     the system text changed
        tools_changed      the offered tools changed
        template_changed   what the chat template writes around the messages changed
        edited_history     an earlier message changed, or the conversation branched
        evicted            it was known, and neither the context nor the store has it any more
        other_replica      another replica has seen more of it than this one
        store_unavailable  it was stored, and a tier failed, was slow or is left alone
        below_threshold    it is too short to be stored, or computing it was cheaper than reading it
    """

    FIRST_SEEN = "first_seen"
    EXTENDED = "extended"
    NOISE = "noise"
    DATE_OR_ID = "date_or_id"
    SYSTEM_CHANGED = "system_changed"
    TOOLS_CHANGED = "tools_changed"
    TEMPLATE_CHANGED = "template_changed"
    EDITED_HISTORY = "edited_history"
    EVICTED = "evicted"
    OTHER_REPLICA = "other_replica"
    STORE_UNAVAILABLE = "store_unavailable"
    BELOW_THRESHOLD = "below_threshold"

    @property
    def is_normal(self) -> bool:
        """Whether nothing was lost that could have been kept."""
        return self in (Cause.FIRST_SEEN, Cause.EXTENDED)


@dataclass(slots=True)
class StoreAnswer:
    """What the store said to one prompt; filled on a reader thread before the engine gets its result.

    `n_known` tokens are in its index, `n_readable` of them on tiers that could be asked; `branch` are
    the ids that follow on the stored prefix that shares most. `cheaper`: computing was faster than
    reading, or too little was to be won. `problem` tells what went wrong.
    """

    n_known: int = 0
    n_readable: int = 0
    branch: Ids = field(default_factory=lambda: NO_IDS)
    cheaper: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class PromptRecord:
    """One request. `n_prompt` tokens were given, `n_cached` of them taken over from `tier`; `n_known`
    of them were known, hence the prompt left everything known at this position.

    `before` are up to `SIDE_TOKENS` ids before the position, `prompt` and `stored` those that follow in
    the prompt and in what was known (none where that ends), which was found in `known_in`: "recent"
    prompts or the "store". `next_keys` are the chain keys of the next whole blocks of the prompt, by
    which other replicas tell whether they know more; `next_key_at` is the length of the first one.
    `prefill_tokens_per_s` was measured, 0 where nothing was yet.
    """

    request_id: str
    salt: str
    time_s: float
    n_prompt: int
    n_cached: int
    tier: str
    n_known: int
    known_in: str
    cause: str
    detail: str
    before: Ids
    prompt: Ids
    stored: Ids
    next_keys: tuple[ChainKey, ...] = ()
    next_key_at: int = 0
    prefill_tokens_per_s: float = 0.0

    @property
    def n_computed(self) -> int:
        return self.n_prompt - self.n_cached

    @property
    def next_prefixes(self) -> tuple[tuple[ChainKey, ...], int, float]:
        """What another replica is asked, to tell whether it had seen more of the prompt."""
        return self.next_keys, self.next_key_at, self.time_s

    def seen_elsewhere(self, n_tokens: int) -> PromptRecord:
        """The same, once it is known that another replica had seen so many tokens of the prompt."""
        if n_tokens <= self.n_known:
            return self
        detail = f"another replica had computed {n_tokens} tokens of it, which this one can neither copy nor read"
        return replace(self, cause=str(Cause.OTHER_REPLICA), detail=detail)

    @property
    def cost_ms(self) -> float | None:
        """What computing them takes at the measured rate; None while there is none."""
        rate = self.prefill_tokens_per_s
        return self.n_computed / rate * 1e3 if rate else None

    def is_of(self, ref: str) -> bool:
        """Whether `ref` names the request: by the id that its client saw, or by the engine's."""
        return ref in (self.request_id, self.client_id)

    @property
    def client_id(self) -> str:
        """The id that the client saw: the engine's has a suffix for each attempt and choice."""
        head = self.request_id.partition("~")[0]
        made = _MADE_ID.match(head)
        return made.group() if made else head
