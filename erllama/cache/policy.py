"""When KV is saved and whether it is worth restoring. Pure: numbers in, decisions out.

    cold       while a prompt is prefilled, every `cold_step_tokens`, and at its end what a newcomer
               with the same prompt can use at once
    continued  at `continued_interval` unsaved tokens of a growing reply
    finish     end of a completion: all the rest, tail and checkpoint
    idle       what was computed while no request ran, once it is all there or nothing else is to do
    evict      the context is about to be released
    shutdown   drain, scale-down, stop

For evict and shutdown the caller waits, up to `evict_save_timeout_s`; for the others nobody does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from cache_store import BLOCK_TOKENS
from erllama.errors import check, check_int, check_number, check_type

_INTERVALS = ("cold_step_tokens", "continued_interval", "checkpoint_interval")


class SaveReason(StrEnum):
    COLD = "cold"
    CONTINUED = "continued"
    FINISH = "finish"
    IDLE = "idle"
    EVICT = "evict"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """The gates, in tokens unless the name says otherwise.

    min_tokens: sequences shorter than this are not saved at their end; a prompt of that length
        prefills faster than it would be managed.
    cold_min_tokens, cold_max_tokens: prompts saved while they prefill; the most new tokens of one
        request that are.
    cold_step_tokens: a save during a prefill every so many tokens. Each reads out the whole
        sequence (5 GB/s), so a small step costs prefill time; a large one makes others wait longer
        for a shared prefix.
    continued_interval: so many unsaved tokens of a reply that grows are saved (whole blocks); what
        a dead replica can lose, or a block.
    boundary_trim_tokens: the end of a prompt that a cold save leaves to the finish save: those
        tokens often change when text follows.
    checkpoint_interval: tokens of a long prefill between two checkpoints of models whose state
        cannot be cut (a multiple of 256).
    logits_share: logits are stored beside a prompt end or a finish when they are at most this share
        of the KV bytes saved since the last ones. They spare one decode and make a repeated prompt
        bit-exact; with a vocabulary of 152 k they weigh as much as the KV of fifty tokens of a 0.5B
        model, so a chat that stored them at every turn would write a tenth more.
    restore_min_tokens: a stored prefix must win at least so many tokens over what is live.
    session_resume_wait_ms: how long a request with a parent_key waits for that save in flight.
    share_wait_s: how long a request waits at most for another replica of the node that is
        computing the same prefix, and no longer than computing it should take; 0 never waits.
    read_timeout_s: a restore that takes longer is cut off and the rest recomputed.
    restore_always: skip the comparison of measured read bandwidth with measured prefill speed.
    evict_save_timeout_s: bound of what waits for the store on evict and shutdown.
    pin_from_requests: keep the prefix that a request marks (Anthropic's `cache_control`, Responses'
        `instructions`) from being evicted for a while, within the store's quota.
    pin_max_ttl_s: for so long at most.
    """

    min_tokens: int = 512
    cold_min_tokens: int = 512
    cold_max_tokens: int = 30_000
    cold_step_tokens: int = 1024
    continued_interval: int = 2048
    boundary_trim_tokens: int = 32
    checkpoint_interval: int = 2048
    logits_share: float = 1 / 16
    restore_min_tokens: int = 32
    session_resume_wait_ms: int = 500
    share_wait_s: float = 30.0
    read_timeout_s: float = 5.0
    restore_always: bool = False
    evict_save_timeout_s: float = 30.0
    pin_from_requests: bool = True
    pin_max_ttl_s: float = 3600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            match field.type:
                case "bool":
                    check_type(field.name, value, bool, "true or false")
                case "int":
                    check_int(field.name, value, 1 if field.name in _INTERVALS else 0)
                case _:
                    check_number(field.name, value, 0)
        n = self.checkpoint_interval
        check("checkpoint_interval", n % BLOCK_TOKENS == 0, f"must be a multiple of {BLOCK_TOKENS}, got {n}")


def cold_upto(policy: CachePolicy, *, n_prompt: int, n_kv: int, n_saved: int, step_tokens: int, trims: bool) -> int:
    """How many tokens of a prompt that is being prefilled should be in the store now; at most
    `n_saved` means: nothing to do.

    `n_saved` tokens are there already (restored ones included). Before the prompt ends, whole
    blocks, every `step_tokens`; at its end all, or with `trims` all but the last
    `boundary_trim_tokens`.
    """
    if n_prompt < policy.cold_min_tokens:
        return 0
    if n_kv < n_prompt:
        due = n_kv - n_kv % BLOCK_TOKENS
        return due if due - n_saved >= step_tokens else 0
    return n_prompt - policy.boundary_trim_tokens if trims else n_prompt


def continued_upto(policy: CachePolicy, *, n_kv: int, n_saved: int, whole_blocks: bool) -> int:
    """How many of the `n_kv` tokens of a growing reply should be in the store now; at most
    `n_saved` means: nothing to do.

    Counted in tokens that are not saved, whatever they are: the end of a prompt that a cold save
    left, too.
    """
    if n_kv - n_saved < policy.continued_interval:
        return 0
    return n_kv - n_kv % BLOCK_TOKENS if whole_blocks else n_kv


def logits_due(policy: CachePolicy, *, logits_bytes: int, new_kv_bytes: int, always: bool) -> bool:
    """Whether logits are worth their bytes. `always` for models that cannot resume without."""
    return always or logits_bytes <= policy.logits_share * new_kv_bytes


def worth_restoring(n_tokens: int, *, read_s: float, prefill_tokens_per_s: float) -> bool:
    """Whether reading KV takes less time than computing it; yes while that speed is unknown (0)."""
    return prefill_tokens_per_s <= 0 or read_s < n_tokens / prefill_tokens_per_s
