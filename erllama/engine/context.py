"""The life of one engine's context and weights: made when needed, saved before they go, given back
when told to, made anew after an abort.

Engine thread only. `ContextOwner` alone makes and releases the context: nothing is given up that
was not handed to the store before. Which requests end is the engine's business.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from erllama.backend.base import Backend
from erllama.backend.batch_plan import BatchPlan
from erllama.cache.flow import CacheFlow
from erllama.cache.policy import SaveReason
from erllama.engine.watchdog import Watchdog
from erllama.errors import EngineStopped, ErllamaError, ModelLoadError
from erllama.sequence.sampling import Logits
from erllama.sequence.sequence import Sequence
from erllama.stats import EvictResult

log = logging.getLogger(__name__)

_MAX_ABORTS = 3  # in a row: a device, not a decode, is what hangs


class ContextOwner:
    """`watchdog` bounds each decode, if somebody runs its `watch`."""

    def __init__(self, backend: Backend, flow: CacheFlow, decode_budget_s: float) -> None:
        self._backend = backend
        self._flow = flow
        self.watchdog = Watchdog(decode_budget_s, backend.abort)
        self.n_aborts = 0  # since the last decode that came to its end

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        """`Backend.decode`; after `DecodeAborted`, when it took too long, `rebuild` comes first."""
        with self.watchdog.armed():
            rows = self._backend.decode(plan)
        self.n_aborts = 0
        return rows

    def evict(self, running: tuple[Sequence, ...], n_live: int) -> EvictResult:
        """Save everything and release the context, so that its memory returns to the system; while
        any of `n_live` requests runs or waits, drop only what is idle. A no-op without a context.
        """
        if not self._backend.has_context:
            # an embedder has a context of its own
            return EvictResult(freed_bytes=self._backend.release_context(), n_live=n_live)
        idle_tokens = self._flow.live.n_tokens
        self._flow.save_all(running, SaveReason.EVICT, waits=not n_live)
        self._flow.drop_idle()
        freed = 0 if n_live else self._backend.release_context()
        return EvictResult(n_tokens=idle_tokens, freed_bytes=freed, n_live=n_live)

    def unload(self, running: tuple[Sequence, ...], n_live: int) -> EvictResult:
        """`evict`, and with no request in sight free the weights, too."""
        result = self.evict(running, n_live)
        if n_live:
            return result
        try:
            freed = self._backend.unload()
        except ModelLoadError as error:
            log.warning("the weights stay loaded, they could not be loaded again: %s", error)
            return result
        return replace(result, freed_bytes=result.freed_bytes + freed, weights_unloaded=True)

    def rebuild(self) -> None:
        """A new context in place of one whose decode was aborted; nobody runs on it any more, and
        what was intact is saved.

        Raises `EngineStopped` when a new one cannot be made, or has been made too often.
        """
        self._flow.drop_idle()
        self.n_aborts += 1
        if self.n_aborts >= _MAX_ABORTS:
            raise EngineStopped(f"{self.n_aborts} decodes in a row took longer than {self.watchdog.budget_s:g} s")
        try:
            self._backend.release_context()
            with self.watchdog.armed():
                self._backend.ensure_context()
        except ErllamaError as error:
            raise EngineStopped(f"no new context could be made after an aborted decode: {error.message}") from error
