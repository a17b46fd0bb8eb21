"""What the engine computes while no request runs or waits: the beginning of the next turn of a
conversation, as far as it is known (`NextTurn`). Engine thread only.

    held by an idle id     prompt | reasoning, reply
    the next turn          prompt | reply as history, closing | new text ...
    computed here                   ------------------------

No sequence runs for it: between two steps an idle id holds the KV of an ended request, a little more
with each slice. So there is nothing to take back when a request arrives. That takes over what is
there, like all that an idle id holds, or the id, and waits for one slice at most.

Only the KV of the conversation itself is cut for it, back to where its next turn parts from it, and
no other id is taken. Kinds of state that cannot be cut, and engines that are `deterministic`, whose
slices may not end anywhere, do without.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from cache_store import ChainKey, n_common
from erllama.backend.base import Backend
from erllama.backend.batch_plan import BatchPlan, PlanRow
from erllama.backend.slices import slice_end
from erllama.cache.flow import CacheFlow
from erllama.cache.live import Held, Ids
from erllama.cache.policy import SaveReason
from erllama.config import EngineConfig
from erllama.engine.context import ContextOwner
from erllama.engine.submission import check_request, new_sequence
from erllama.errors import DecodeAborted, DecodeFailed, RequestError
from erllama.prompts.next_turn import NextTurn
from erllama.request import GenerationRequest, Prompt
from erllama.sequence.sequence import Sequence
from erllama.stats import AdapterSet

log = logging.getLogger(__name__)

SLICE_S = 0.1  # what a request that arrives may have to wait
MIN_SLICE, MAX_SLICE = 32, 128  # tokens
_UNMEASURED_SLICE = 64


def idle_slice(tokens_per_s: float) -> int:
    """The tokens of a slice where prompts are computed at this speed, 0 if it is not known."""
    if tokens_per_s <= 0:
        return _UNMEASURED_SLICE
    return min(MAX_SLICE, max(MIN_SLICE, int(tokens_per_s * SLICE_S) // MIN_SLICE * MIN_SLICE))


class IdlePrefill:
    """The turns that are expected, the latest first, at most as many as there are sequence ids.
    `adapters` gives those of new requests, `root_of` the chain root of KV that is made with them.
    """

    def __init__(
        self,
        backend: Backend,
        flow: CacheFlow,
        context: ContextOwner,
        config: EngineConfig,
        *,
        adapters: Callable[[], AdapterSet],
        root_of: Callable[[AdapterSet], ChainKey],
    ) -> None:
        self._backend = backend
        self._flow = flow
        self._context = context
        self._adapters = adapters
        self._root_of = root_of
        self._most = config.n_parallel
        self._max_slice = min(config.n_batch, config.fixed_slice)
        self.enabled = config.idle_prefill and not config.deterministic and flow.live.cuttable
        self._turns: OrderedDict[str, NextTurn] = OrderedDict()  # by request, the latest last
        self._kept: dict[str, Ids] = {}  # what prompt and reply have in common with each turn
        self._prompts: dict[str, Sequence] = {}  # of those that have begun; none is ever run by the engine

    def __repr__(self) -> str:
        return f"<IdlePrefill {len(self._turns)} turns>"

    def __len__(self) -> int:
        """Turns that are not computed yet."""
        return len(self._turns)

    def expect(self, turn: NextTurn) -> None:
        """Compute `turn` when there is time. One that cannot be computed here is given up."""
        if not self.enabled:
            return
        self._turns[turn.request_id] = turn
        self._turns.move_to_end(turn.request_id)
        self._kept[turn.request_id] = np.array(turn.tokens[: turn.n_kept], dtype=np.uint32)
        while len(self._turns) > self._most:
            self._give_up(next(iter(self._turns)))

    def arrived(self, sequence: Sequence) -> None:
        """A request was queued: turns that it is, or that it shows to come otherwise, are over."""
        for request_id, turn in list(self._turns.items()):
            begins_alike = np.array_equal(self._kept[request_id], sequence.given.ids[: turn.n_kept])
            if begins_alike and sequence.request.salt == turn.salt:
                self._give_up(request_id)

    def step(self) -> bool:
        """Compute a slice. False: there was none to compute. No request runs or waits."""
        while self._turns:
            request_id = next(reversed(self._turns))
            prompt = self._prompt(self._turns[request_id])
            held = None if prompt is None else self._held(self._turns[request_id], prompt)
            if prompt is None or held is None:
                self._give_up(request_id)
            elif held.n_tokens == prompt.n_given:
                self._forget(request_id)
                self._flow.counts.idle_turns += 1
            else:
                self._compute(prompt, held)
                return True
        for held in self._flow.live.held.values():
            if held.idle_save_due:
                self._flow.save_held(held, SaveReason.IDLE)
        return False

    def _give_up(self, request_id: str) -> None:
        self._forget(request_id)
        self._flow.counts.idle_given_up += 1

    def _forget(self, request_id: str) -> None:
        """The one way out for a turn."""
        del self._turns[request_id], self._kept[request_id]
        prompt = self._prompts.pop(request_id, None)
        if prompt is not None:
            prompt.sampler.close()

    def _prompt(self, turn: NextTurn) -> Sequence | None:
        """The turn as the prompt that it begins; None for one that this model could not serve."""
        if turn.request_id not in self._prompts:
            request = GenerationRequest(turn.request_id, Prompt.of(turn.tokens), max_tokens=0, salt=turn.salt)
            adapters = self._adapters()
            try:
                check_request(request, self._backend)
                prompt = new_sequence(request, self._backend, adapters, self._root_of(adapters), 0)
            except RequestError as error:  # a prompt that grew longer than the context, for one
                log.debug("a turn is not computed in advance: %s", error)
                return None
            self._prompts[turn.request_id] = prompt
        return self._prompts[turn.request_id]

    def _held(self, turn: NextTurn, prompt: Sequence) -> Held | None:
        """The idle KV of the request that the turn follows on, cut back to what the turn begins with;
        None if it is there no more, or must not be changed.
        """
        held = next((h for h in self._flow.live.held.values() if h.request_id == turn.request_id), None)
        if held is None or held.session_id is not None or held.chain.root != prompt.root:
            return None
        if prompt.adapters != self._adapters():  # one may have been freed: no request holds it for a turn
            return None
        n = n_common(held.chain.ids, prompt.given.ids)
        if n < turn.n_kept:
            return None
        if n < held.n_tokens:
            if not self._backend.cut(held.seq_id, n):
                return None
            held.shorten(n)
        return held

    def _compute(self, prompt: Sequence, held: Held) -> None:
        length = min(self._max_slice, idle_slice(self._flow.counts.prefill_tokens_per_s))
        n_tokens = slice_end(held.n_tokens, prompt.n_given, length, self._backend.slice_unit) - held.n_tokens
        prompt.seq_id, prompt.n_kv = held.seq_id, held.n_tokens
        plan = BatchPlan((PlanRow(prompt, held.n_tokens, n_tokens, n_logits=0),), prompt.adapters)
        try:
            self._context.decode(plan)
        except (DecodeFailed, DecodeAborted) as error:
            log.warning("idle prefill failed: tokens=%d error=%s", n_tokens, error)
            self._flow.live.take(held.seq_id)
            self._backend.drop(held.seq_id)
            if isinstance(error, DecodeAborted):
                self._flow.save_all((), SaveReason.EVICT, waits=False)
                self._context.rebuild()
            return
        held.extend(prompt.given.prefix(held.n_tokens + n_tokens))
        self._flow.counts.idle_tokens += n_tokens
