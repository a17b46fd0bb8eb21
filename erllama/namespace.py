"""The namespace of a model's KV: a digest of everything that changes KV bytes. Pure.

Not part of it: the context size (a context may grow without losing its cache; longrope models are the exception), batch and slice sizes,
threads, and where layers run. They move the last bits of a row at most, like any reordering of a sum.
"""

from __future__ import annotations

import hashlib
import json

from cache_store import ChainKey, root_key
from erllama.adapters import AdapterSet
from erllama.config import EngineConfig
from erllama.kv_state import KvLayout


def namespace(
    fingerprint: str, config: EngineConfig, layout: KvLayout, adapters: AdapterSet, state_version: str, *, long_rope: bool = False
) -> str:
    """64 hex characters. `state_version` names the format of llama.cpp's sequence state; adapters count with digest and scale, in order.

    `long_rope`: the context is so large that a longrope model computes with its factors for long contexts.
    """
    parts = {
        "model": fingerprint,
        "type_k": config.type_k,
        "type_v": config.type_v,
        "flash_attn": config.flash_attn,
        "rope": [float(config.rope_freq_base), float(config.rope_freq_scale), *(["long"] if long_rope else [])],
        "adapters": [[use.sha256, float(use.scale)] for use in adapters],
        "layout": [layout.kind, list(layout.columns), list(layout.row_bytes)],
        "state": state_version,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def replay_root(model_id: str, salt: str) -> ChainKey:
    """The chain root of recorded chat replies: any process that knows a model's name finds them, without loading its weights.

    Whoever finds some checks that they spell the text: a model that was replaced under its name costs hits, never a wrong token.
    """
    return root_key(f"replay\0{model_id}", salt)
