"""From the context into the store: which rows, logits and checkpoints a save hands over.

Engine thread only, between two decodes, when KV is quiescent. A save reads the sequence out once
(llama.cpp gives a sequence's state as a whole, 5 GB/s), copies the rows that the store does not
have into its staging memory and returns; files are written on the store's threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from cache_store import Block, BlockId, ChainKey, Store, TokenChain, tenant_root
from erllama.backend.base import Backend
from erllama.cache.policy import CachePolicy, SaveReason, cold_upto, continued_upto, logits_due
from erllama.chat.tool_formats.choose import format_named
from erllama.chat.transcript import transcript_block
from erllama.sequence.sampling import Logits
from erllama.sequence.sequence import Sequence
from erllama.stats import CacheCounters

log = logging.getLogger(__name__)


class KvSaver:
    """Saves of one engine. `keeps_reasoning`: replies are also to be found when they come back
    without their reasoning, by their text and calls alone. `clock` gives unix seconds for headers.
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        policy: CachePolicy,
        counts: CacheCounters,
        *,
        transcript_root: ChainKey,
        keeps_reasoning: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._backend = backend
        self._store = store
        self._transcript_root = transcript_root
        self._keeps_reasoning = keeps_reasoning
        self._policy = policy
        self._counts = counts
        self._clock = clock

    # --- what is due ------------------------------------------------------------------------------

    def wants_logits(self, sequence: Sequence, n_vocab: int) -> bool:
        """Whether the logits at the end of what this sequence was given will be stored."""
        layout = self._backend.kv_layout
        if sequence.n_given < self._policy.cold_min_tokens:
            return False
        new_bytes = (sequence.n_given - sequence.n_cached) * layout.bytes_per_token
        return logits_due(
            self._policy, logits_bytes=4 * n_vocab, new_kv_bytes=new_bytes, always=layout.kind.has_checkpoint
        )

    def progress(self, sequence: Sequence) -> None:
        """Save what a running sequence is due: blocks of what it was given, or those of the last
        `continued_interval` tokens.
        """
        kind = self._backend.kv_layout.kind
        if sequence.n_kv <= sequence.n_given:
            self._cold(sequence, cuttable=kind.cuttable)
        if sequence.n_kv < sequence.n_given:
            return
        upto = continued_upto(self._policy, n_kv=sequence.n_kv, n_saved=sequence.n_saved, whole_blocks=kind.cuttable)
        if upto > sequence.n_saved:
            self._save_running(sequence, upto, SaveReason.CONTINUED)
        self.pin(sequence)

    def _cold(self, sequence: Sequence, *, cuttable: bool) -> None:
        upto = cold_upto(
            self._policy,
            n_prompt=sequence.n_given,
            n_kv=sequence.n_kv,
            n_saved=sequence.n_saved,
            step_tokens=self._policy.cold_step_tokens if cuttable else self._policy.checkpoint_interval,
            trims=cuttable and not sequence.stores_logits,  # logits are found where a row object ends
        )
        at_end = sequence.n_kv == sequence.n_given
        capped = sequence.n_cached + self._policy.cold_max_tokens
        if min(upto, capped) > sequence.n_saved or (at_end and sequence.stores_logits):
            self._save_running(sequence, max(min(upto, capped), 0), SaveReason.COLD)
        if at_end and capped < upto:
            sequence.n_saved = upto  # the cap would mean nothing if the first continued save made up for it

    def pin(self, sequence: Sequence) -> None:
        """Have pinned what the request asks for, once, when all of its prompt is in the context. What is
        not saved by the time that the store does it is pinned by its name.
        """
        pin = sequence.request.pin
        if pin is None or sequence.pinned:
            return
        sequence.pinned = True
        prefix = sequence.given.prefix(pin.n_tokens)
        ttl_s = min(pin.ttl_s, self._policy.pin_max_ttl_s)
        if not self._policy.pin_from_requests or len(prefix) < self._policy.min_tokens or ttl_s <= 0:
            return
        self._store.pin_soon(prefix, ttl_s, owner=pin.owner)
        self._counts.pins += 1

    def _save_running(self, sequence: Sequence, upto: int, reason: SaveReason) -> None:
        logits = sequence.prompt_logits if sequence.stores_logits and sequence.n_kv == sequence.n_given else None
        self.save(sequence.id, sequence.kv, upto, reason, logits=logits)
        sequence.n_saved = max(sequence.n_saved, upto)

    def record_transcript(self, sequence: Sequence) -> None:
        """Store the ids of a chat reply under what a client will send back for it."""
        reply_ids = sequence.tokens[sequence.n_prompt :]
        try:
            block = transcript_block(
                tenant_root(self._transcript_root, sequence.request.salt),
                sequence.request.prompt_tokens,
                reply_ids,
                "".join(sequence.reply),
                lambda token: sequence.piece(token, self._backend.piece),
                format_named(sequence.request.tool_format),
                in_reasoning=sequence.request.in_reasoning,
                keeps_reasoning=self._keeps_reasoning,
            )
            if block is not None:
                self._store.save([replace(block, created_s=self._clock(), build=self._backend.state_version)])
        except Exception as error:
            self._failed(error)

    # --- one save ---------------------------------------------------------------------------------

    def save(
        self,
        seq_id: int,
        chain: TokenChain,
        upto: int,
        reason: SaveReason,
        *,
        logits: Logits | None = None,
        wait_s: float = 0.0,
    ) -> None:
        """Hand the first `upto` tokens of `chain`, all of which is in the context of `seq_id`, to
        the store.

        `logits` are those after the end of `chain`; a checkpoint belongs to that point, too.
        `wait_s` bounds the wait for room in the store's queue; without it what finds no room is
        dropped and counted.
        """
        started = time.monotonic_ns()
        try:
            blocks = self._blocks(seq_id, chain, upto, reason, logits)
            accepted = self._store.save(blocks, wait_s=wait_s) if blocks else 0
        except Exception as error:  # whatever a store does: the engine thread lives
            self._failed(error)
            return
        if accepted:
            self._counts.saves[reason] = self._counts.saves.get(reason, 0) + 1
        self._counts.note_stall((time.monotonic_ns() - started) / 1e6)

    def _failed(self, error: Exception) -> None:
        """Failing open: what the save would have spared is computed again."""
        log.warning("save of KV failed: %r", error)
        self._counts.failed_saves += 1
        self._counts.last_problem = f"save: {error}"

    def _blocks(
        self, seq_id: int, chain: TokenChain, upto: int, reason: SaveReason, logits: Logits | None
    ) -> list[Block]:
        layout = self._backend.kv_layout
        missing = self._store.missing(chain, upto)
        reaches_end = logits is not None or (layout.kind.has_checkpoint and upto == len(chain))
        end = BlockId.of_end(chain) if reaches_end else None
        if end is not None and self._store.has(end):
            end = None
        block = partial(Block, reason=reason, created_s=self._clock(), build=self._backend.state_version)
        blocks: list[Block] = []
        checkpoint = None
        if missing:
            reading = self._backend.read_kv(seq_id, len(chain))
            checkpoint = reading.checkpoint
            for id in missing:
                stop = id.start + id.n_tokens
                tokens, rows = chain.ids[id.start : stop], reading.rows(id.start, stop)
                blocks.append(block(id=id, tokens=tokens, columns=layout.columns, rows=rows))
        elif end is not None and layout.kind.has_checkpoint:  # the whole state need not be read out for it
            checkpoint = self._backend.read_checkpoint(seq_id)
        if end is not None:
            blocks.append(block(id=end, tokens=np.empty(0, np.uint32), logits=logits, checkpoint=checkpoint))
        return blocks
