"""From the store towards the context: looks a prompt's prefix up and reads it into an image, on
threads of its own.

The engine thread starts jobs and takes results; it never waits. Whatever goes wrong on the way is a
shorter prefix or none: counted, logged, never an error of the request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field

import numpy as np

from cache_store import BLOCK_TOKENS, Block, ChainKey, Fetched, Plan, Store, TokenChain
from erllama.backend.base import Backend
from erllama.cache.policy import CachePolicy, worth_restoring
from erllama.diagnosis.record import StoreAnswer
from erllama.kv.layout import KvImage
from erllama.request import GenerationRequest
from erllama.sequence.sampling import Logits
from erllama.sequence.sequence import Sequence

log = logging.getLogger(__name__)

STAGED = "staged"  # taken over by the store in this process, on no tier yet

_PARENT_POLL_S = 0.02
_SETTLE_S = 0.05  # a save of a few blocks takes that long to be written on a busy machine
_SHARE_SLICE_S = 0.5  # how long a stop may have to wait for who waits for another replica
# at most so long are claims kept for blocks that are not written yet: who waits looks for them on
# the tier
_RELEASE_AFTER_S = 1.0
_UNMEASURED_RATE = 100.0  # tokens per second of a prefill before there was one: a slow machine's
_PATIENCE_S = 2.0  # another process may need a moment to write what it has computed
_CLAIM_MARGIN = 2.0  # a claim lasts this many times as long as the prefill should: neighbours slow it down


@dataclass(frozen=True, slots=True, eq=False)
class ReadJob:
    """What to look for: a prefix of `chain` longer than the `n_live` at hand. `prefill_rate` is in
    tokens per second, 0 unknown.

    Reader threads read everything but `sequence`, which belongs to the engine thread and is only
    carried along. The engine thread sets `cancelled` when the sequence ends. A reader thread fills
    `answer`, which the engine thread reads once the result is there.
    """

    sequence: Sequence
    request: GenerationRequest
    chain: TokenChain
    n_live: int
    prefill_rate: float
    cancelled: threading.Event = field(default_factory=threading.Event)
    answer: StoreAnswer = field(default_factory=StoreAnswer)

    @property
    def computes(self) -> bool:
        """Whether what is not found will be computed."""
        return not self.request.restore_only

    def cost_s(self, n_tokens: int) -> float:
        """How long computing `n_tokens` takes, as far as was measured."""
        return n_tokens / (self.prefill_rate or _UNMEASURED_RATE)

    def n_have(self, plan: Plan) -> int:
        """Tokens that need not be computed, if `plan` is carried out."""
        return max(plan.n_tokens, self.n_live)

    def keys_beyond(self, plan: Plan, n_tokens: int) -> list[ChainKey]:
        """Keys of the whole blocks of the first `n_tokens` that would still be computed."""
        return self.chain.block_keys(self.n_have(plan), n_tokens)


@dataclass(slots=True)
class Restored:
    """What was found for `job`: an image of its first `n_tokens`, and the logits after them if they
    were stored. 0 tokens: a miss.

    `skipped`: something was there, and computing is faster than reading it. `problem` tells what
    went wrong.
    """

    job: ReadJob
    n_tokens: int = 0
    image: KvImage | None = None
    logits: Logits | None = None
    tier: str = ""
    skipped: bool = False
    problem: str = ""

    def close(self) -> None:
        """Give the image's buffer back. Idempotent."""
        if self.image is not None:
            self.image.close()
            self.image = None


class KvReader:
    """`wake` is called on a reader thread whenever a result is there. `align`: restore multiples of
    so many tokens only (1: any).
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        policy: CachePolicy,
        *,
        executor: Executor,
        wake: Callable[[], None],
        align: int = 1,
    ) -> None:
        self._backend = backend
        self._store = store
        self._policy = policy
        self._executor = executor
        self._wake = wake
        self._align = align
        self._done: deque[Restored] = deque()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._claims: dict[ReadJob, list[ChainKey]] = {}

    @property
    def n_claims(self) -> int:
        """How many jobs have claimed blocks that are not released yet."""
        return len(self._claims)

    # --- engine thread ----------------------------------------------------------------------------

    def start(self, job: ReadJob) -> None:
        """Begin; a result for `job` will follow."""
        try:
            self._executor.submit(self._run, job)
        except RuntimeError as error:  # the interpreter is on its way out: compute
            self._done.append(Restored(job, problem=repr(error)))
            self._wake()

    def ended(self, job: ReadJob) -> None:
        """The sequence of `job` computes no more: whoever waits for its blocks need not."""
        with self._lock:
            keys = self._claims.pop(job, None)
        if keys and not self._closing.is_set():
            with suppress(RuntimeError):  # the interpreter is on its way out: claims expire by themselves
                self._executor.submit(self._release, keys)

    def take(self) -> list[Restored]:
        """The results since the last call."""
        return [self._done.popleft() for _ in range(len(self._done))]

    def close(self) -> None:
        """Stop waiting for anything and give up results that nobody took. Idempotent."""
        self._closing.set()
        with self._lock:
            claims, self._claims = list(self._claims.values()), {}
        for keys in claims:
            self._store.release(keys)
        self._executor.shutdown(wait=True, cancel_futures=True)
        for result in self.take():
            result.close()

    # --- reader threads ---------------------------------------------------------------------------

    def _run(self, job: ReadJob) -> None:
        try:
            result = self._read(job, job.chain)
        except Exception as error:  # failing open: the prompt is computed
            log.exception("restore failed: request_id=%s", job.request.request_id)
            result = Restored(job, problem=repr(error))
        job.answer.problem = result.problem
        self._done.append(result)
        self._wake()

    def _read(self, job: ReadJob, chain: TokenChain) -> Restored:
        # whoever waits for longer than computing takes has waited for nothing
        patience_s = min(self._policy.share_wait_s, max(_PATIENCE_S, job.cost_s(len(chain) - job.n_live)))
        waits = job.computes and job.request.waits_for_others
        share_until = time.monotonic() + (patience_s if waits else 0.0)
        plan = self._lookup(job, chain, share_until)
        if self._computes_rest(job, plan) and not self._claim(job, plan):
            plan = self._lookup(job, chain, share_until)  # someone was faster by a moment: wait for what they compute
        answer = job.answer
        answer.n_known, answer.n_readable, answer.branch = plan.n_known, plan.n_tokens, plan.branch
        if job.cancelled.is_set() or not self._gains(job, plan, len(chain)):
            return Restored(job)
        if not self._is_faster(job, plan):
            answer.cheaper = True
            return Restored(job, skipped=True)
        with ExitStack() as unless_of_use:
            image = unless_of_use.enter_context(closing(self._backend.new_image(plan.n_tokens)))
            fetched = self._store.read(plan, _into(image), self._policy.read_timeout_s, image)
            result = self._result(job, image, fetched)
            if result.image is not None:
                unless_of_use.pop_all()
        # a checkpoint at the very end, but no logits
        needs_earlier = plan.need_end and fetched.n_tokens == len(chain) > 1
        return self._read(job, chain.prefix(len(chain) - 1)) if result.n_tokens == 0 and needs_earlier else result

    def _computes_rest(self, job: ReadJob, plan: Plan) -> bool:
        """Whether this request will compute blocks that others may be about to compute as well."""
        policy = self._policy
        return (
            policy.share_wait_s > 0
            and job.computes
            and not plan.need_end
            and len(job.chain) - job.n_have(plan) >= max(policy.cold_min_tokens, BLOCK_TOKENS)
        )

    def _claim(self, job: ReadJob, plan: Plan) -> bool:
        """Tell the other replicas of this machine. False when the first of the blocks is theirs."""
        n_saved_soon = min(
            len(job.chain) - self._policy.boundary_trim_tokens, job.n_have(plan) + self._policy.cold_max_tokens
        )
        keys = job.keys_beyond(plan, n_saved_soon)
        if not keys:
            return True
        if not self._store.claim(keys, _CLAIM_MARGIN * job.cost_s(len(keys) * BLOCK_TOKENS)):
            return False
        with self._lock:
            self._claims[job] = keys
        return True

    def _release(self, keys: list[ChainKey]) -> None:
        self._store.flush(_RELEASE_AFTER_S)
        self._store.release(keys)

    def _gains(self, job: ReadJob, plan: Plan, n_tokens: int) -> bool:
        gain = plan.n_tokens - job.n_live
        return gain > 0 and (gain >= self._policy.restore_min_tokens or plan.n_tokens == n_tokens)

    def _is_faster(self, job: ReadJob, plan: Plan) -> bool:
        if self._policy.restore_always or not job.computes:
            return True
        return worth_restoring(
            plan.n_tokens - job.n_live, read_s=plan.estimated_s, prefill_tokens_per_s=job.prefill_rate
        )

    def _result(self, job: ReadJob, image: KvImage, fetched: Fetched) -> Restored:
        n, logits = fetched.n_tokens, fetched.logits
        kind = self._backend.kv_layout.kind
        if logits is not None and (n < len(job.chain) or len(logits) != self._backend.n_vocab):
            logits = None
        lacks_logits = n == len(job.chain) and logits is None and job.computes
        if kind.has_checkpoint:
            if fetched.checkpoint is None or lacks_logits:
                return Restored(job)
            image.put_checkpoint(fetched.checkpoint)
        elif lacks_logits:
            n -= 1  # one token is computed again, for its logits
        if logits is None and kind.cuttable:
            n -= n % self._align
        if n <= job.n_live:
            return Restored(job)
        return Restored(job, n, image, logits, fetched.tier or STAGED)

    def _lookup(self, job: ReadJob, chain: TokenChain, share_until: float) -> Plan:
        """The plan; with a parent key, waits for that save while it is in flight in another
        process. A cancelled job waits for nothing.
        """
        policy = self._policy
        give_up = time.monotonic() + policy.session_resume_wait_ms / 1000
        need_end = self._backend.kv_layout.kind.has_checkpoint
        n_parent, waited = 0, False
        while True:
            wait_s = 0.0 if need_end else min(_SHARE_SLICE_S, max(0.0, share_until - time.monotonic()))
            plan = self._store.lookup(chain, need_end=need_end, deadline_s=policy.read_timeout_s, share_wait_s=wait_s)
            if job.cancelled.is_set():
                return plan
            if wait_s and not self._closing.is_set() and self._is_claimed(job, plan, len(chain)):
                waited = True
                continue
            # a claimed block has just appeared: the tail saved with it is a moment behind
            if waited and not self._closing.wait(_SETTLE_S):
                waited = False
                continue
            if job.request.parent_key is None or time.monotonic() >= give_up:
                return plan
            n_parent = n_parent or chain.length_of(job.request.parent_key)
            # the last token of a state was sampled: as a rule it is not computed, and its KV not
            # saved
            if n_parent < policy.min_tokens or job.n_have(plan) >= n_parent - 1 or self._closing.wait(_PARENT_POLL_S):
                return plan

    def _is_claimed(self, job: ReadJob, plan: Plan, n_tokens: int) -> bool:
        """Whether another process computes what follows the plan and what is live."""
        keys = job.keys_beyond(plan, n_tokens)
        return bool(keys) and self._store.claimed(keys[0]) > 0


def _into(image: KvImage) -> Callable[[Block, int], None]:
    def consume(block: Block, n_use: int) -> None:
        if block.columns:
            image.put(block.id.start, block.columns, tuple(np.asarray(rows)[:n_use] for rows in block.rows))

    return consume
