"""The engine: sequences go in, events come out, one llama_decode per step.

One thread, `EngineLoop`'s, calls everything here but `validate` and `watchdog`. Between two steps
KV is quiescent. Events of a step leave together through `deliver`; whoever consumes them never
slows the engine. Prefixes come from `CacheFlow`, where KV also goes afterwards.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from cache_store import ChainKey, TokenChain, root_key, tenant_root
from erllama.backend.base import Backend
from erllama.backend.batch_plan import BatchPlan, PlanRow, plan_batch
from erllama.cache.flow import CacheFlow
from erllama.cache.live import Ids, LivePrefixes
from erllama.cache.policy import CachePolicy, SaveReason
from erllama.config import EngineConfig
from erllama.engine.adapters import AdapterRegistry
from erllama.engine.admission import Admission
from erllama.engine.context import ContextOwner
from erllama.engine.generation import Generation
from erllama.engine.idle import IdlePrefill
from erllama.engine.prefill_order import PrefillOrder
from erllama.engine.reply_events import Deliver, Outbox, last_events
from erllama.engine.sessions import Sessions
from erllama.engine.snapshot import take_snapshot
from erllama.engine.submission import check_request, new_sequence
from erllama.errors import ContextLost, DecodeAborted, DecodeFailed, ErllamaError, InvalidParameter
from erllama.events import CacheHitKind, Failed
from erllama.pace.pace import Pace
from erllama.request import GenerationRequest
from erllama.sequence.machine import State, Step
from erllama.sequence.sampling import Logits
from erllama.sequence.sequence import Sequence
from erllama.speculation.speculator import Speculator
from erllama.stats import AdapterSet, CacheCounters, Counters, EngineStats, EvictResult

log = logging.getLogger(__name__)

RootOf = Callable[[AdapterSet], ChainKey]


class Engine:
    """Admission, batching, sampling and retirement of the sequences of one model."""

    def __init__(
        self,
        backend: Backend,
        config: EngineConfig,
        deliver: Deliver,
        *,
        flow: CacheFlow | None = None,
        root_of: RootOf | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`root_of` gives the chain root of KV made with an adapter set. Without `flow` prefixes
        are shared within the context only.
        """
        self._backend = backend
        self._pace = Pace(backend, config)
        self._clock = clock
        self._root_of = root_of or (lambda adapters: root_key(repr(adapters)))
        self._flow = flow or CacheFlow(backend, CachePolicy(), CacheCounters())
        self._context = ContextOwner(backend, self._flow, config.decode_budget_s)
        self.watchdog = self._context.watchdog
        self._admission = Admission(config.n_parallel, config.fixed_slice, config.long_prompt_tokens)
        self._prefills = PrefillOrder(config.fixed_slice, self._flow.waiting)
        self._sequences: dict[str, Sequence] = {}
        self._outbox = Outbox(deliver, config.stream_interval_ms, clock)
        self._last_cache_hit = CacheHitKind.COLD
        self.adapters = AdapterRegistry(backend, lambda: (s.adapters for s in self._sequences.values()))
        self.next_turns = IdlePrefill(
            backend, self._flow, self._context, config, adapters=self.adapters.snapshot, root_of=self._root_of
        )
        self.sessions = Sessions()
        self._speculator = Speculator(backend, config.speculation, config.n_batch, self.sessions.texts_beside)
        self._counts = Counters()
        self._generation = Generation(backend, self._outbox, self._counts, self._finish, clock)
        self.stats = self._snapshot()  # replaced, never changed: any thread may read it

    def __repr__(self) -> str:
        sequences = " ".join(map(repr, self._sequences.values()))
        free = sorted(self._admission.free)
        return f"<Engine {self.stats.status} [{sequences}] free={free} aborts={self._context.n_aborts} {self._flow!r}>"

    # --- the spine --------------------------------------------------------------------------------

    def step(self) -> bool:
        """Admit, restore, decode once, advance, retire, save. False: nothing is left to do."""
        self._go_on_restored()  # before newcomers take the ids whose KV someone waits for
        self._admit_waiting()
        self._go_on_restored()
        self._close_gap()
        running = self._admission.running
        plan = plan_batch(running, self._pace.limits(running), self._counts.steps, self._prefills.first)
        plan = self._speculator.extend(plan)
        if plan:
            for row, logits in zip(plan.rows, self._decode(plan), strict=True):
                self._advance(row, logits)
        busy = bool(plan) or (self.idle and self.next_turns.step())
        self.adapters.collect()
        self._publish()
        self._flow.save_due()  # after the events have left: a client does not wait for its KV to be copied
        return busy or self._flow.can_go_on or self._admission.next is not None

    def submit(self, request: GenerationRequest, submitted_ns: int | None = None) -> None:
        """Queue a request that `validate` has passed and that waits since `submitted_ns`. It ends with
        exactly one `Done` or `Failed`."""
        submitted_ns = self._clock() if submitted_ns is None else submitted_ns
        adapters = self.adapters.snapshot()
        try:
            if request.request_id in self._sequences:
                raise InvalidParameter(f"a request with id {request.request_id!r} is in flight", param="request_id")
            sequence = new_sequence(request, self._backend, adapters, self._root_of(adapters), submitted_ns)
        except ErllamaError as error:
            self._counts.requests_failed += 1
            self._outbox.put(request.request_id, Failed(error))
            self._outbox.hurry()
            return
        self._sequences[request.request_id] = sequence
        sequence.n_missing = self._flow.live.missing(sequence.given, self._admission.running)
        self._admission.enqueue(sequence)
        self.next_turns.arrived(sequence)
        if request.resumed:
            self._generation.end_if_complete(sequence)

    def cancel(self, request_id: str) -> None:
        """End a request before its next token. Idempotent; unknown ids are fine."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._counts.requests_cancelled += 1
            self._finish(sequence, Step.CANCEL)

    def evict(self, *, weights: bool = False) -> EvictResult:
        """Give the context back, or, while requests wait or run, the KV of ended ones; with
        `weights` those as well. What needs them next makes them again.
        """
        give_back = self._context.unload if weights else self._context.evict
        result = give_back(self._admission.running, len(self._sequences))
        self.stats = self._snapshot()
        return result

    def save_all(self, reason: SaveReason) -> None:
        """Hand the KV of every sequence, running or ended, to the store."""
        self._flow.save_all(self._admission.running, reason, waits=True)

    def end_session(self, session_id: str, *, drop: bool = False) -> None:
        """Forget a session's transcript and pin; with `drop` its KV here, too. Idempotent."""
        self.sessions.end(session_id)
        self._flow.end_session(session_id, drop=drop)

    def fork_session(self, session_id: str, new_id: str) -> bool:
        """A new session with the transcript of one, and a copy of its KV if an id is empty."""
        self.sessions.fork(session_id, new_id)
        return self._flow.fork_session(session_id, new_id, self._admission.free)

    def close(self) -> None:
        """Stop what reads and watches for this engine. Idempotent."""
        self.watchdog.close()
        self._flow.close()

    def fail_all(self, error: ErllamaError) -> None:
        """End every request with `error`: the engine is going away."""
        for sequence in list(self._sequences.values()):
            self._finish(sequence, Step.ERROR, error)
        self._publish()

    @property
    def idle(self) -> bool:
        return not self._sequences

    @property
    def kv_root(self) -> ChainKey:
        """The chain root of the KV that new requests without a salt get."""
        return self._root_of(self.adapters.snapshot())

    @property
    def n_empty_ids(self) -> int:
        """Sequence ids that nobody runs on and that hold no KV."""
        return self._admission.n_free - len(self._flow.live.held)

    def is_live(self, tokens: Ids, salt: str = "") -> bool:
        """Whether a new request that begins with `tokens` finds their KV in the context."""
        return self._flow.live.covers(TokenChain(tenant_root(self.kv_root, salt), tokens), self._admission.running)

    def live_prefixes(self) -> LivePrefixes:
        """What requests to come can find here. Costs microseconds: whoever asks hashes it."""
        sessions, n_empty = self.sessions.recent(), self.n_empty_ids
        return self._flow.live.prefixes(self.kv_root, self._admission.running, n_empty, sessions)

    def validate(self, request: GenerationRequest) -> None:
        """Raise a `RequestError` when this model can never serve `request`. Any thread."""
        check_request(request, self._backend)

    # --- the parts of a step ----------------------------------------------------------------------

    def _give_up_restores(self) -> None:
        """End restore-only requests without an empty id: such a request evicts no idle KV and takes
        no id that another one waits for.
        """
        restores = [s for s in self._admission.waiting if s.request.restore_only]
        n_left = self.n_empty_ids - (len(self._admission.waiting) - len(restores))
        for sequence in restores[max(0, n_left) :]:
            self._finish(sequence, Step.LENGTH)

    def _admit_waiting(self) -> None:
        self._give_up_restores()
        if not self._admission.waiting:
            return
        try:
            self._backend.ensure_context()
        except ErllamaError as error:  # memory that was given back is not to be had again, or the file has gone
            for waiting in self._admission.waiting:
                self._finish(waiting, Step.ERROR, error)
            return
        while (sequence := self._admission.next) is not None:
            choice = self._flow.choose(sequence, self._admission.free, self._admission.running)
            self._admission.start(sequence, choice.seq_id)
            sequence.admitted_ns = self._clock()
            sequence.apply(self._flow.begin(sequence, choice, self._admission.running))
            self._outbox.report(sequence)
            self._counts.requests_admitted += 1
            if not sequence.request.restore_only:
                self._counts.prompt_tokens += sequence.n_given
                self._last_cache_hit = sequence.cache_hit_kind
            elif not sequence.restoring:
                self._finish(sequence, Step.LENGTH)

    def _go_on_restored(self) -> None:
        for sequence, outcome, logits in self._flow.ready(self._admission.running):
            sequence.apply(outcome)
            sequence.restored_ns, sequence.n_missing = self._clock(), sequence.n_given - sequence.n_cached
            if sequence.request.restore_only:
                self._finish(sequence, Step.LENGTH)
                continue
            self._outbox.report(sequence)
            self._counts.cached_tokens += sequence.n_cached
            self._last_cache_hit = sequence.cache_hit_kind
            if logits is not None:
                self._generation.sample(sequence, logits)

    def _close_gap(self) -> None:
        """At most one exchange per step: it copies a sequence's KV once and saves a pass over the
        weights in every step from here on.
        """
        moved = self._admission.close_gap()
        if moved is None:
            return
        sequence, old = moved
        try:
            self._flow.swap(old, sequence.id)
        except DecodeFailed as error:
            self._finish(sequence, Step.ERROR, error)

    def _decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        self._pace.begin(plan)
        started = self._clock()
        try:
            rows = self._context.decode(plan)
            self._pace.note(plan, (self._clock() - started) / 1e9)
        except DecodeAborted:
            self._recover(plan)
            rows = [()] * len(plan.rows)
        except DecodeFailed as error:
            log.warning("decode failed: rows=%d tokens=%d error=%s", len(plan.rows), plan.n_tokens, error)
            for row in plan.rows:
                self._finish(row.sequence, Step.ERROR, error)
            rows = [()] * len(plan.rows)
        seconds = (self._clock() - started) / 1e9
        self._counts.steps += 1
        self._counts.decode_ms += seconds * 1e3
        self._speculator.decoded(plan, seconds)
        for row in plan.rows:
            if row.sequence.state is State.PREFILLING:
                self._prefills.computed(row.sequence, row.n_tokens, self._admission.running)
                self._flow.prefilled(row.sequence, row.n_tokens, seconds)
        return rows

    def _recover(self, plan: BatchPlan) -> None:
        """After an aborted decode: who runs ends, what is intact is saved, who waits goes on."""
        self._counts.decode_aborts += 1
        error = DecodeAborted(
            f"a decode took longer than {self.watchdog.budget_s:g} s and was aborted; the request may be sent again"
        )
        log.warning(
            "decode aborted: rows=%d tokens=%d waiting=%d", len(plan.rows), plan.n_tokens, len(self._admission.waiting)
        )
        for row in plan.rows:
            self._finish(row.sequence, Step.ERROR, error)
        self._flow.save_all(self._admission.running, SaveReason.EVICT, waits=False)
        lost = ContextLost("the context went with a neighbour's aborted decode; the request may be sent again")
        for sequence in self._admission.running:
            self._finish(sequence, Step.ERROR, lost)
        self._publish()  # they go on elsewhere, however long the rest takes
        self._context.rebuild()

    def _advance(self, row: PlanRow, logits: tuple[Logits, ...]) -> None:
        """The row's tokens are in the context now: on to the next slice, or to the next token."""
        sequence = row.sequence
        if not sequence.live:
            return
        sequence.n_kv += row.n_known
        if sequence.state is State.PREFILLING:
            sequence.n_computed += row.n_tokens
            sequence.apply(Step.PREFILLED if row.n_logits else Step.SLICE)
            self._outbox.report(sequence)
            if logits:
                self._flow.keep_logits(sequence, logits[-1])
        else:
            self._flow.progressed(sequence)
        if logits:
            self._generation.verify(sequence, row.draft, logits)

    def _finish(self, sequence: Sequence, ending: Step, error: ErllamaError | None = None) -> None:
        """The one way out of the engine, for every ending. Idempotent."""
        if not sequence.live:
            return
        intact = sequence.readable and not isinstance(error, DecodeFailed | DecodeAborted)
        sequence.apply(ending)
        for event in last_events(sequence, ending, error, self._clock):
            self._outbox.put(sequence.request.request_id, event)
        self._outbox.hurry()
        if error is None:
            self._counts.requests_finished += 1
            if ending is not Step.CANCEL:
                self._commit(sequence)
        else:
            self._counts.requests_failed += 1
        sequence.sampler.close()
        self._speculator.forget(sequence)
        self._generation.forget_ahead(sequence)
        seq_id = self._admission.release(sequence)
        if seq_id is not None:
            self._flow.ended(sequence, seq_id, intact=intact)
        del self._sequences[sequence.request.request_id]

    def _commit(self, sequence: Sequence) -> None:
        """The reply is complete: the session's transcript now, and chat history to come."""
        if sequence.request.record_transcript:
            self._flow.record_transcript(sequence)
        if sequence.request.session_name is not None:
            self.sessions.commit(sequence.request.session_name, sequence.tokens)

    # --- what others see --------------------------------------------------------------------------

    def _publish(self) -> None:
        """Replace the stats snapshot and hand over the events that are due."""
        self.stats = self._snapshot()
        self._outbox.deliver_due(idle=not self._sequences)

    def _snapshot(self) -> EngineStats:
        return take_snapshot(
            self._backend, self._admission, self._flow, self.sessions, self.adapters, self._counts, self._last_cache_hit
        )

    def check_integrity(self) -> None:
        """Assert what holds between steps: ids add up, lengths hold, nothing finished is kept."""
        self._admission.check_integrity()
        for sequence in self._sequences.values():
            assert sequence.live, repr(sequence)
            sequence.check()
        assert len(self._sequences) == len(self._admission.running) + len(self._admission.waiting)
        self._flow.check_integrity(self._admission.free, self._admission.running)
