"""How a prompt finds its prefix, and where KV goes when a sequence ends. Engine thread only.

    live      another sequence of this context, running or ended, holds a prefix: copied, or gone on
              with in place
    upcoming  a running prefill will soon hold more of it: wait for that instead of computing it
              twice
    store     a prefix was saved, by whomever: read on a reader thread, put back here

`choose` finds the sequence id that a newcomer runs on, `begin` takes over what is live and starts
the reading, `ready` yields sequences that may go on, `ended` keeps the KV of a finished one in its
id. Saves that are due are done by `save_due`, once per step, after its events have left; idle KV
whose save is due is saved before its id is given to someone else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from erllama.backend.base import Backend
from erllama.cache.live import Choice, Held, LiveKv, Upcoming, upcoming
from erllama.cache.policy import CachePolicy, SaveReason
from erllama.cache.read import KvReader, ReadJob, Restored
from erllama.cache.save import KvSaver
from erllama.diagnosis.prompt_log import PromptLog, lookup_of
from erllama.errors import ErllamaError
from erllama.sequence.machine import Step
from erllama.sequence.sampling import Logits
from erllama.sequence.sequence import Sequence
from erllama.stats import CacheCounters

log = logging.getLogger(__name__)

LIVE = "live"
_WAIT_GAIN = 64  # tokens that waiting for a running prefill must win


class CacheFlow:
    """Lookup, restore and save for one engine. Without a store, which is `reader` and `saver`,
    prefixes are shared within the context only."""

    def __init__(
        self,
        backend: Backend,
        policy: CachePolicy,
        counts: CacheCounters,
        *,
        reader: KvReader | None = None,
        saver: KvSaver | None = None,
        align: int = 1,
        prompt_log: PromptLog | None = None,
    ) -> None:
        self._backend = backend
        self._policy = policy
        self.counts = counts
        self._reader = reader
        self._saver = saver
        self.prompt_log = prompt_log
        self.live = LiveKv(align, cuttable=backend.kv_layout.kind.cuttable)
        # of live sequences, also after their results have come: they may have claimed blocks
        self._jobs: dict[Sequence, ReadJob] = {}
        self._reading: set[Sequence] = set()
        self.waiting: dict[Sequence, Upcoming] = {}  # for a prefill of what they begin with
        self._due: dict[Sequence, None] = {}  # running sequences with a save due, in order
        self._ended: list[ReadJob] = []  # since the last saves

    def __repr__(self) -> str:
        n_due = len(self._due) + sum(held.save_due for held in self.live.held.values())
        n_claims = 0 if self._reader is None else self._reader.n_claims
        waits = f"reading={len(self._reading)} waiting={len(self.waiting)}"
        return f"<CacheFlow {self.live!r} {waits} saves_due={n_due} claims={n_claims}>"

    # --- admission --------------------------------------------------------------------------------

    def choose(self, sequence: Sequence, free: frozenset[int], running: tuple[Sequence, ...]) -> Choice:
        """The id that `sequence` shall run on, and what it can take over there. Changes nothing."""
        return self.live.choose(sequence.given, sequence.request.session_name, free=free, running=running)

    def begin(self, sequence: Sequence, choice: Choice, running: tuple[Sequence, ...]) -> Step:
        """Take over what is live; ADMIT_COLD when nothing was found and nothing is waited for."""
        self._take_live(sequence, choice)
        if self._reader is not None and sequence.n_given - sequence.n_kv > self._policy.restore_min_tokens:
            job = ReadJob(sequence, sequence.request, sequence.given, sequence.n_kv, self.counts.prefill_tokens_per_s)
            self._jobs[sequence] = job
            self._reading.add(sequence)
            self._reader.start(job)
        elif not self._wait_for_upcoming(sequence, running, 0) and sequence.n_kv == 0:
            self._count_hit(sequence)
            return Step.ADMIT_COLD
        return Step.ADMIT_WARM

    def _take_live(self, sequence: Sequence, choice: Choice) -> None:
        target, source, n = choice.seq_id, choice.source, choice.n_tokens
        self.counts.idle_used_tokens += self.live.note_taken_over(source, n)
        held = self._take_held(target, goes_on=source == target)
        if source == target and held is not None:
            done = n == held.n_tokens or self._backend.cut(target, n)
        else:
            if held is not None:
                self._backend.drop(target)
            done = source is not None and self._copy(source, target, n)
        if done:
            _holds(sequence, n, LIVE, choice.logits)
        elif source == target:
            self._backend.drop(target)

    def _copy(self, source: int, target: int, n_tokens: int) -> bool:
        copied = False
        with self._failing_open("copy"):
            copied = self._backend.copy_prefix(source, target, n_tokens)
        if not copied:
            self._backend.drop(target)
        return copied

    @contextmanager
    def _failing_open(self, what: str) -> Iterator[None]:
        """A failure costs the prefix only, and is counted like the time that it takes."""
        started = time.monotonic_ns()
        try:
            yield
        except (ErllamaError, MemoryError) as error:
            log.warning("%s of KV failed: %s", what, error)
            self.counts.failed_reads += 1
            self.counts.last_problem = f"{what}: {error}"
        finally:
            self.counts.note_stall((time.monotonic_ns() - started) / 1e6)

    def _wait_for_upcoming(self, sequence: Sequence, running: tuple[Sequence, ...], n_stored: int) -> bool:
        if not self.live.cuttable or sequence.request.restore_only:
            return False
        found = upcoming(sequence.given, [s for s in running if s is not sequence])
        if found is None or found.n_tokens - max(n_stored, sequence.n_kv) < _WAIT_GAIN:
            return False
        self.waiting[sequence] = found
        return True

    # --- restores ---------------------------------------------------------------------------------

    def ready(self, running: tuple[Sequence, ...]) -> Iterator[tuple[Sequence, Step, Logits | None]]:
        """Sequences whose waiting has ended, with the step that this is; logits when the whole
        prompt is covered.

        The caller moves each one's state before it takes the next: those behind it may then wait
        for its prefill.
        """
        for result in self._reader.take() if self._reader is not None else ():
            self._note(result)
            if result.job.cancelled.is_set():
                result.close()
                self._ended.append(result.job)  # it may have claimed something since its sequence ended
                continue
            self._reading.discard(result.job.sequence)
            if self._wait_for_upcoming(result.job.sequence, running, result.n_tokens):
                result.close()
                continue
            yield self._arrived(result, running)
        for sequence, wait in list(self.waiting.items()):
            if not wait.is_over:
                continue
            del self.waiting[sequence]
            self._copy_longest(sequence, running, longer_than=sequence.n_kv)
            yield self._outcome(sequence)
        for sequence in running:  # covered by what was live when it was admitted
            if sequence.restoring and sequence not in self._reading and sequence not in self.waiting:
                yield self._outcome(sequence)

    @property
    def can_go_on(self) -> bool:
        """Whether what a sequence waits for is there: `ready` will yield it."""
        return any(wait.is_over for wait in self.waiting.values())

    def _arrived(self, result: Restored, running: tuple[Sequence, ...]) -> tuple[Sequence, Step, Logits | None]:
        """What was read, unless a neighbour has computed more in the meantime."""
        sequence = result.job.sequence
        beyond = max(result.n_tokens, sequence.n_kv) + _WAIT_GAIN
        if result.logits is None and self._copy_longest(sequence, running, longer_than=beyond):
            result.close()
        else:
            self._put_back(sequence, result)
        return self._outcome(sequence)

    def _copy_longest(self, sequence: Sequence, running: tuple[Sequence, ...], *, longer_than: int) -> bool:
        others = [s for s in running if s is not sequence]
        source, n_tokens, logits = self.live.longest(sequence.given, others)
        if source is None or n_tokens <= longer_than:
            return False
        self._forget(sequence)
        if not self._copy(source, sequence.id, n_tokens):
            return False
        _holds(sequence, n_tokens, LIVE, logits)
        return True

    def _forget(self, sequence: Sequence) -> None:
        self._backend.drop(sequence.id)
        _holds(sequence, 0, "", None)

    def _put_back(self, sequence: Sequence, result: Restored) -> None:
        """Put the image into the context. On failure the prompt is computed."""
        if result.image is None:
            return
        with closing(result), self._failing_open("restore"):
            self._forget(sequence)
            self._backend.restore(sequence.id, result.image, result.n_tokens)
            _holds(sequence, result.n_tokens, result.tier, result.logits)

    def _outcome(self, sequence: Sequence) -> tuple[Sequence, Step, Logits | None]:
        logits = sequence.prompt_logits if sequence.n_kv == sequence.n_given else None
        sequence.n_cached = sequence.n_saved = sequence.n_kv
        if sequence.hit_tier == LIVE and sequence.n_kv < self._policy.min_tokens:
            sequence.n_saved = 0  # who left it there was not saved either
        self._count_hit(sequence)
        if sequence.n_kv == 0:
            return sequence, Step.RESTORE_MISSED, None
        if logits is None:
            sequence.prompt_logits = None
            return sequence, Step.RESTORED, None
        # sampling changes them, and others may go on from the same ones
        return sequence, Step.RESTORED_ALL, logits.copy()

    def _count_hit(self, sequence: Sequence) -> None:
        if sequence.request.restore_only:
            return
        if self.prompt_log is not None:
            job = self._jobs.get(sequence)
            self.prompt_log.looked_up(
                lookup_of(sequence, None if job is None else job.answer, self.counts.prefill_tokens_per_s)
            )
        if sequence.n_kv == 0:
            self.counts.misses += 1
            return
        self.counts.note_taken_over(sequence.n_kv)
        hit = f"{sequence.cache_hit_kind}:{sequence.hit_tier}"
        self.counts.hits[hit] = self.counts.hits.get(hit, 0) + 1
        self.counts.parent_hits += sequence.request.parent_key is not None

    def _note(self, result: Restored) -> None:
        self.counts.restores_skipped += result.skipped
        if result.problem:
            self.counts.failed_reads += 1
            self.counts.last_problem = result.problem

    # --- saves ------------------------------------------------------------------------------------

    def prefilled(self, sequence: Sequence, n_tokens: int, seconds: float) -> None:
        """A slice of a prompt was computed."""
        self.counts.note_prefill(n_tokens, seconds)
        self.progressed(sequence)

    def progressed(self, sequence: Sequence) -> None:
        """More of `sequence` is in the context: a save may be due."""
        if self._saver is not None:
            self._due[sequence] = None

    def keep_logits(self, sequence: Sequence, logits: Logits) -> None:
        """A prompt's last logits, before sampling changes them: for whoever sends the same."""
        sequence.prompt_logits = logits.copy()
        sequence.stores_logits = self._saver is not None and self._saver.wants_logits(sequence, len(logits))

    def ended(self, sequence: Sequence, seq_id: int, *, intact: bool) -> None:
        """`sequence` has ended and `seq_id` is free. If `intact`, its KV stays there."""
        self._reading.discard(sequence)
        self.waiting.pop(sequence, None)
        self._due.pop(sequence, None)
        if self.prompt_log is not None:
            self.prompt_log.ended(sequence.given, sequence.tokens[sequence.n_given :], self.counts.prefill_tokens_per_s)
        job = self._jobs.pop(sequence, None)
        if job is not None:
            job.cancelled.set()
            self._ended.append(job)
        if not intact or sequence.n_kv == 0:
            self._backend.drop(seq_id)
            return
        if self._saver is not None and sequence.n_kv >= sequence.n_given:
            self._saver.pin(sequence)
        held = Held(
            sequence.kv,
            sequence.request.session_name,
            n_given=sequence.n_given,
            prompt_logits=sequence.prompt_logits,
            stores_logits=sequence.stores_logits and sequence.n_kv == sequence.n_given,
            save_due=self._saver is not None and sequence.n_kv >= self._policy.min_tokens,
            salt=sequence.request.salt,
            request_id=sequence.request.request_id,
        )
        self.live.keep(seq_id, held)

    def record_transcript(self, sequence: Sequence) -> None:
        """A chat reply is complete: store its ids, for when its text comes back as history."""
        # one that was resumed at its end has no KV here
        if self._saver is not None and sequence.n_tokens >= self._policy.min_tokens:
            self._saver.record_transcript(sequence)

    def save_due(self) -> None:
        """Do the saves that are due. KV is quiescent."""
        if self._saver is None or self._reader is None:
            return
        due, self._due = list(self._due), {}
        for sequence in due:
            if sequence.readable:
                self._saver.progress(sequence)
        for held in self.live.held.values():
            if held.save_due:
                self.save_held(held, SaveReason.FINISH)
        # once the store has what they computed: others look for it when a claim is gone
        ended, self._ended = self._ended, []
        for job in ended:
            self._reader.ended(job)

    def save_all(self, running: tuple[Sequence, ...], reason: SaveReason, *, waits: bool) -> None:
        """Hand everything in the context that is worth it to the store. `waits`: for room in its
        queue, within the policy's bound."""
        if self._saver is None or not self._backend.has_context:
            return
        self.save_due()
        give_up = time.monotonic() + (self._policy.evict_save_timeout_s if waits else 0.0)

        def left_s() -> float:
            return max(0.0, give_up - time.monotonic())

        for held in self.live.held.values():
            self.save_held(held, reason, left_s())
        for sequence in running:
            if sequence.readable and sequence.n_kv >= self._policy.min_tokens:
                self._saver.save(sequence.id, sequence.kv, sequence.n_kv, reason, wait_s=left_s())

    def save_held(self, held: Held, reason: SaveReason, wait_s: float = 0.0) -> None:
        """Hand idle KV to the store, if it is worth it."""
        held.save_due = held.idle_unsaved = False
        if self._saver is None or held.n_tokens < self._policy.min_tokens:
            return
        logits = held.prompt_logits if held.stores_logits else None
        self._saver.save(held.seq_id, held.chain, held.n_tokens, reason, logits=logits, wait_s=wait_s)

    def _take_held(self, seq_id: int, *, goes_on: bool = False) -> Held | None:
        """Forget what an idle id holds, for it will change; a save that is due comes first. Who `goes_on`
        from it saves at its end what was computed in idle time."""
        held = self.live.take(seq_id)
        if held is not None and (held.save_due or (held.idle_save_due and not goes_on)):
            self.save_held(held, SaveReason.FINISH if held.save_due else SaveReason.IDLE)
        return held

    # --- the rest ---------------------------------------------------------------------------------

    def swap(self, a: int, b: int) -> None:
        """Exchange the KV of two ids. Raises `DecodeFailed`; then neither holds any."""
        self.live.swap(a, b)
        try:
            self._backend.swap(a, b)
        except ErllamaError:
            self.live.take(a)
            self.live.take(b)
            raise

    def drop_idle(self) -> None:
        """Forget the KV of all ended sequences."""
        for seq_id in list(self.live.held):
            self._drop_held(seq_id)

    def _drop_held(self, seq_id: int) -> None:
        self._take_held(seq_id)
        self._backend.drop(seq_id)

    def end_session(self, session_id: str, *, drop: bool) -> None:
        """Take a session's pin away; with `drop`, its idle KV as well."""
        if drop:
            for seq_id in [i for i, held in self.live.held.items() if held.session_id == session_id]:
                self._drop_held(seq_id)
        self.live.unpin(session_id)

    def fork_session(self, session_id: str, new_id: str, free: frozenset[int]) -> bool:
        """Copy a session's idle KV to an id that holds nothing, for another session; False where there
        is none of either. Its saves stay the first one's.
        """
        source = next((held for held in self.live.held.values() if held.session_id == session_id), None)
        target = min(free - self.live.held.keys(), default=None)
        if source is None or target is None or not self._copy(source.seq_id, target, source.n_tokens):
            return False
        copied = Held(
            source.chain, new_id, n_given=source.n_given, prompt_logits=source.prompt_logits, salt=source.salt
        )
        self.live.keep(target, copied)
        return True

    def check_integrity(self, free: frozenset[int], running: tuple[Sequence, ...]) -> None:
        """Assert that idle KV lies in free ids and that whoever waits runs."""
        assert set(self.live.held) <= free, (self.live.held, free)
        waiting = self._reading | set(self.waiting)
        assert waiting == {s for s in running if s.restoring}, waiting
        assert set(self._jobs) <= set(running), self._jobs

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._reader is not None:
            self._reader.close()


def _holds(sequence: Sequence, n_tokens: int, tier: str, logits: Logits | None) -> None:
    sequence.n_kv, sequence.hit_tier, sequence.prompt_logits = n_tokens, tier, logits
