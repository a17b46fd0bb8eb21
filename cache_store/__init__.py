"""Token-exact KV blocks on any fsspec file system. Imports neither ray nor llama_cpp nor the engine.

So far this package holds the keys (`keys.py`); blocks, tiers, index and writer are described in the design and come with the store.
"""

from __future__ import annotations

from cache_store.keys import ChainKey, chain_keys, root_key, tail_key

__all__ = ["ChainKey", "chain_keys", "root_key", "tail_key"]
