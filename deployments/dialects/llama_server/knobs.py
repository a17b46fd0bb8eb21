"""Options of llama.cpp's server that we lack. They pass with the value that switches them off, which
front ends send with their whole panel of knobs, and are refused by name with any other.

Options that are in neither list, here or in the body, never change what a model answers (where and
when it computes, how it is cached), or nobody knows them: as at llama.cpp's server they pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from erllama.errors import NotSupported

NEUTRAL: Mapping[str, Any] = MappingProxyType(
    {
        "dynatemp_range": 0.0, "dynatemp_exponent": 1.0, "top_n_sigma": -1.0, "xtc_probability": 0.0,
        "xtc_threshold": 0.1, "typical_p": 1.0, "dry_multiplier": 0.0, "dry_base": 1.75, "dry_allowed_length": 2,
        "dry_penalty_last_n": 64, "dry_sequence_breakers": ["\n", ":", '"', "*"], "mirostat": 0,
        "mirostat_tau": 5.0, "mirostat_eta": 0.1, "adaptive_target": -1.0, "adaptive_decay": 0.9, "min_keep": 0,
        "n_indent": 0, "lora": [],
    }
)  # fmt: skip
"""Each with its value of "off", or with llama.cpp's default where it only tunes one of the others."""

_TUNES = frozenset(
    {
        "dynatemp_exponent", "xtc_threshold", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
        "dry_sequence_breakers", "mirostat_tau", "mirostat_eta", "adaptive_decay",
    }
)  # fmt: skip
_NEGATIVE_IS_OFF = frozenset({"top_n_sigma", "adaptive_target"})
_ALSO_OFF: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "top_n_sigma": (0,),
        "min_keep": (1,),
        "lora": (None,),
        "image_data": ([],),
        "typ_p": (1,),
        "grammar_lazy": (False,),
    }
)
_UNNAMED = ("image_data", "typ_p", "grammar_lazy")  # which replies do not tell


def check_knobs(given: Mapping[str, Any]) -> None:
    """Raises `NotSupported` for the first option that would change the reply and cannot."""
    for name in (*NEUTRAL, *_UNNAMED):
        if name in given and name not in _TUNES and not _is_off(name, given[name]):
            off = NEUTRAL.get(name, _ALSO_OFF.get(name, (None,))[0])
            raise NotSupported(f"{name} is not supported by this server; leave it out or send {off}", param=name)


def _is_off(name: str, value: Any) -> bool:
    if value is None:
        return True
    if isinstance(value, bool):
        return value is False and False in _ALSO_OFF.get(name, ())
    if name in _NEGATIVE_IS_OFF and isinstance(value, int | float) and value < 0:
        return True
    return value in _ALSO_OFF.get(name, ()) or (name in NEUTRAL and value == NEUTRAL[name])
