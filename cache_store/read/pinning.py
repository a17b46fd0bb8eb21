"""From a prompt, or the key of a stored prefix, to a pin of the objects that hold it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from cache_store.format.block import BlockId
from cache_store.format.keys import ChainKey, TokenChain
from cache_store.records import PinInfo
from cache_store.sharing.pin import LONGEST_S, MAX_NAME_CHARS, Pin
from cache_store.sharing.pins import Pins
from cache_store.tiers.stack import TierStack


@dataclass(frozen=True, slots=True)
class Pinning:
    """`missing` are the objects that a save of a prompt would write. `unix_s` is the wall clock."""

    stack: TierStack
    pins: Pins
    missing: Callable[[TokenChain], list[BlockId]]
    unix_s: Callable[[], float]

    def pin(
        self, prefix: TokenChain | ChainKey, ttl_s: float, name: str, owner: str, deadline_ns: int | None
    ) -> PinInfo | None:
        """See `Store.pin`. Published by `deadline_ns`; None: soon, and nobody waits."""
        if not (math.isfinite(ttl_s) and 0 < ttl_s <= LONGEST_S):
            raise ValueError(f"ttl_s={ttl_s}: must be positive and at most {LONGEST_S:.0f}")
        for what, text in (("name", name), ("owner", owner)):
            if len(text) > MAX_NAME_CHARS:
                raise ValueError(f"{what}: must have at most {MAX_NAME_CHARS} characters, not {len(text)}")
        ids = self._of_prompt(prefix) if isinstance(prefix, TokenChain) else self.stack.index.way_to(prefix)
        if not ids:
            return None
        if isinstance(prefix, TokenChain):
            root, key, n_tokens = prefix.root, prefix.key_at(len(prefix)), len(prefix)
        else:
            root, key, n_tokens = ids[0].root, prefix, max(id.start + id.n_tokens for id in ids)
        now_s = self.unix_s()
        pin = Pin(name or key, owner, root, key, n_tokens, now_s, now_s + ttl_s, tuple(ids))
        pin = self.pins.put(pin, replaces_parts=not name)
        if deadline_ns is not None:
            self.pins.publish(deadline_ns)
        return self.pins.info(pin)

    def pin_soon(self, chain: TokenChain, ttl_s: float, owner: str) -> None:
        """See `Store.pin_soon`."""
        self.pins.later(lambda: self.pin(chain, ttl_s, "", owner, None))

    def unpin(self, name: str, owner: str, deadline_ns: int | None) -> bool:
        """See `Store.unpin`."""
        done = self.pins.revoke(owner, name)
        if done and deadline_ns is not None:
            self.pins.publish(deadline_ns)
        return done

    def _of_prompt(self, chain: TokenChain) -> list[BlockId]:
        """What is stored of a prompt, and what a save would make of the rest, with the ENDs up to there:
        a model whose state cannot be cut goes on from those alone.
        """
        path = self.stack.index.longest_prefix(chain)
        beyond = self.missing(chain) if path.n_tokens < len(chain) else []
        ids = [*(hop.id for hop in path.hops), *beyond, *path.ends[-1:]]
        return list(dict.fromkeys(ids))
