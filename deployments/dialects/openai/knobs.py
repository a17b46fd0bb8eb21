"""Fields of requests that this server reads no value from, and the values with which they pass."""

from __future__ import annotations

from typing import Any

IGNORED = frozenset(
    {
        # OpenAI: accounting, storage, hints to its own caches
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_retention",
        "prompt_cache_options", "verbosity", "moderation",
        # llama.cpp's server and vLLM: where and when to compute, never what
        "cache_prompt", "id_slot", "n_cache_reuse", "n_keep", "slot_id", "n_indent", "request_id",
        "verbose", "return_tokens", "post_sampling_probs", "guided_decoding_backend", "structured_outputs_config",
        # what only tunes a knob of `NEUTRAL`, which is off
        "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
        "dry_sequence_breakers", "xtc_threshold", "dynatemp_exponent", "min_keep",
    }
)  # fmt: skip
"""Sent with any value: they never change what a model answers here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,), "typ_p": (1,), "tfs_z": (1,), "mirostat": (0,), "dry_multiplier": (0,), "xtc_probability": (0,),
    "dynatemp_range": (0,), "top_a": (0,), "adaptive_target": (-1,), "penalize_nl": (False,),
    "top_n_sigma": (-1, 0), "min_tokens": (0,), "length_penalty": (1,), "use_beam_search": (False,),
    "early_stopping": (False,), "include_reasoning": (True,), "reasoning_format": ("auto", "deepseek"),
    "thinking_budget_tokens": (-1,), "parse_tool_calls": (True,), "return_token_ids": (False,),
    "add_bos_token": (True,),
    "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,), "include_stop_str_in_output": (False,),
    "add_special_tokens": (True, False), "return_tokens_as_token_ids": (False,), "documents": ([],),
    "modalities": (["text"],), "audio": (), "web_search_options": (), "lora": ([],), "chat_template": ("",),
    "stop_token_ids": ([],), "samplers": (), "t_max_predict_ms": (0,), "bad_words": ([],), "allowed_token_ids": (),
    "truncate_prompt_tokens": (), "prompt_logprobs": (0,), "embd_normalize": (2,),
}  # fmt: skip
"""Options of other servers that we lack: they pass with a value that switches them off, because
front ends send their whole panel of knobs.
"""


def is_neutral(name: str, value: Any) -> bool:
    """Whether `value` switches the knob `name` off. JSON's 1 and 1.0 are one number; true is none."""
    return any(value == off and isinstance(value, bool) == isinstance(off, bool) for off in NEUTRAL[name])
