"""The requests of one model that were served last, each with the reason why tokens of its prompt were
computed.

The engine thread hands over references (`looked_up`, `ended`: a microsecond each, nothing is hashed,
compared or decoded there). A thread of the log compares each prompt with what came before it and
keeps a small record; text is made there only for prompts that left what was known in the middle.
What fails there is logged and costs the record. Any thread may read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from queue import SimpleQueue

from cache_store import BLOCK_TOKENS, ChainKey, TokenChain
from erllama.diagnosis.cause import Facts, Kept, cause_of, looks_generated
from erllama.diagnosis.divergence import Divergence, find_divergence, is_similar
from erllama.diagnosis.history import PromptHistory
from erllama.diagnosis.place import Place, Placed, find_place
from erllama.diagnosis.record import NO_IDS, NOISE_PREFIX, SIDE_TOKENS, Cause, Ids, PromptRecord, StoreAnswer
from erllama.sequence.sequence import Sequence
from erllama.stats import CauseCount

log = logging.getLogger(__name__)

MAX_RECORDS = 512
_MAX_QUEUED = 1024
_MAX_KEYS = 32  # of a record: blocks by which another replica tells how much of it it has seen
_SETTLE_S = 2.0
_PIECE = 512  # ids decoded at a time: others take the interpreter in between

Blame = Callable[[str, str, str, bool], str | None]
"""Which rule would have made two sides equal, behind the same text; the last one tells whether they
list tools."""


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """What one request found: `n_cached` tokens of `chain` in `tier`. `answer` None: the store was not
    asked.
    """

    request_id: str
    salt: str
    chain: TokenChain
    n_cached: int
    tier: str
    answer: StoreAnswer | None
    prefill_rate: float


def lookup_of(sequence: Sequence, answer: StoreAnswer | None, prefill_rate: float) -> Lookup:
    """What `sequence` found. Engine thread."""
    request = sequence.request
    n_cached, tier = sequence.n_kv, sequence.hit_tier
    return Lookup(request.request_id, request.salt, sequence.given, n_cached, tier, answer, prefill_rate)


_Item = Lookup | tuple[TokenChain, list[int], float]


class PromptLog:
    """`text_of` gives the bytes of a token, control tokens by their names. `unavailable` names tiers that
    are left alone. Its thread ends with `close`.
    """

    def __init__(
        self,
        text_of: Callable[[int], bytes],
        *,
        kept: Kept | None = None,
        unavailable: Callable[[], tuple[str, ...]] = tuple,
        blame: Blame | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._text_of = text_of
        self._kept = kept or Kept()
        self._unavailable = unavailable
        self._blame = blame
        self._clock = clock
        self._queue: SimpleQueue[_Item | threading.Event | None] = SimpleQueue()
        self._lock = threading.Lock()  # of what follows
        self._history = PromptHistory()
        self._prefill_rate = 0.0
        self._records: deque[PromptRecord] = deque(maxlen=MAX_RECORDS)
        self.causes: dict[str, CauseCount] = {}  # replaced, never changed: any thread may read it
        self._thread: threading.Thread | None = threading.Thread(
            target=self._run, name="erllama-prompt-log", daemon=True
        )
        self._thread.start()

    # --- engine thread ----------------------------------------------------------------------------

    def looked_up(self, lookup: Lookup) -> None:
        """It is known what a request takes over. Beyond what the thread can follow, records are lost."""
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put(lookup)

    def ended(self, given: TokenChain, reply: list[int], prefill_rate: float) -> None:
        """A sequence has ended: its prompt and reply may come back as history."""
        if self._queue.qsize() < _MAX_QUEUED:
            self._queue.put((given, reply, prefill_rate))

    # --- any thread -------------------------------------------------------------------------------

    def records(self, limit: int, salt: str | None = None) -> list[PromptRecord]:
        """Of the last requests with this salt (None: with any), newest first. Those that came before any
        rate was measured have the one that was measured since.
        """
        self._settle()
        with self._lock:
            mine, rate = [one for one in reversed(self._records) if salt in (None, one.salt)], self._prefill_rate
        return [one if one.prefill_tokens_per_s else replace(one, prefill_tokens_per_s=rate) for one in mine[:limit]]

    def record(self, ref: str, salt: str | None = None) -> PromptRecord | None:
        """That of a request, by the id that its client saw or the engine's; of several (choices, attempts)
        the one of which most was computed. None for one that is not known (any more), or has another salt.
        """
        found = (one for one in self.records(MAX_RECORDS, salt) if one.is_of(ref))
        return max(found, key=lambda one: one.n_computed, default=None)

    def n_seen(self, keys: Iterable[ChainKey], first_at: int, before_s: float) -> int:
        """See `PromptHistory.n_seen`."""
        self._settle()
        with self._lock:
            return self._history.n_seen(keys, first_at, before_s)

    def close(self) -> None:
        """End the thread. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(_SETTLE_S)

    def _settle(self) -> None:
        """Wait until what was handed over is recorded."""
        if self._thread is not None:
            seen = threading.Event()
            self._queue.put(seen)
            seen.wait(_SETTLE_S)

    # --- the log's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._take(item)
            except Exception:  # a record is worth no request
                log.exception("a prompt cannot be explained")

    def _take(self, item: _Item | threading.Event) -> None:
        if isinstance(item, threading.Event):
            item.set()
        elif isinstance(item, Lookup):
            record = self._explained(item)
            with self._lock:
                self._history.add(item.chain, record.time_s)
                self._records.append(record)
            self._count(record)
        else:
            given, reply, rate = item
            with self._lock:
                self._prefill_rate = rate or self._prefill_rate
                if reply:
                    self._history.add(given.extended(reply), self._clock())

    def _count(self, record: PromptRecord) -> None:
        before = self.causes.get(record.cause, CauseCount())
        counted = CauseCount(before.requests + 1, before.computed_tokens + record.n_computed)
        self.causes = {**self.causes, record.cause: counted}
        if record.cause.startswith(NOISE_PREFIX) or not Cause(record.cause).is_normal:
            log.info(
                "event=prompt request_id=%s cause=%s position=%d prompt_tokens=%d cached_tokens=%d computed_ms=%.0f",
                record.client_id,
                record.cause,
                record.n_known,
                record.n_prompt,
                record.n_cached,
                record.cost_ms or 0.0,
            )

    def _explained(self, lookup: Lookup) -> PromptRecord:
        chain, answer, n_cached = lookup.chain, lookup.answer, lookup.n_cached
        with self._lock:
            seen = self._history.nearest(chain)
        found = find_divergence(chain, seen, answer)
        at = max(found.position, n_cached)  # what a context holds longer than it is remembered
        if at > found.position:
            found = Divergence(at, NO_IDS, found.known_in, at)
        cause, detail = cause_of(self._facts(lookup, found))
        first_at = (at // BLOCK_TOKENS + 1) * BLOCK_TOKENS
        return PromptRecord(
            request_id=lookup.request_id,
            salt=lookup.salt,
            time_s=self._clock(),
            n_prompt=len(chain),
            n_cached=n_cached,
            tier=lookup.tier,
            n_known=at,
            known_in=found.known_in,
            cause=str(cause),
            detail=detail,
            before=chain.ids[max(0, at - SIDE_TOKENS) : at].copy(),  # not the whole array for its part
            prompt=chain.ids[at : at + SIDE_TOKENS].copy(),
            stored=found.stored[:SIDE_TOKENS].copy(),
            next_keys=tuple(chain.block_keys(at, min(len(chain), first_at + _MAX_KEYS * BLOCK_TOKENS))[:_MAX_KEYS]),
            next_key_at=first_at,
            prefill_tokens_per_s=lookup.prefill_rate,
        )

    def _facts(self, lookup: Lookup, found: Divergence) -> Facts:
        chain, at = lookup.chain, found.position
        placed, rule, generated, similar = None, "", False, False
        if 0 < at < len(chain) and len(found.stored):
            rest = chain.ids[at : at + len(found.stored)]
            similar = is_similar(chain.ids[at:], found.stored)
            placed, rule, generated = self._read(chain.ids[:at], rest, found.stored)
        return Facts(
            n_prompt=len(chain),
            n_cached=lookup.n_cached,
            n_known=at,
            n_branch=found.n_branch,
            ends=at > 0 and not len(found.stored),
            similar=similar,
            place=None if placed is None else placed.place,
            has_reply=placed is not None and placed.has_reply,
            rule=rule,
            generated=generated,
            kept=self._kept,
            answer=lookup.answer,
            unavailable=self._unavailable() if lookup.n_cached < at else (),
        )

    def _read(self, common: Ids, prompt: Ids, stored: Ids) -> tuple[Placed, str, bool]:
        """Where in the text the two sides part, the rule that would have kept them together, and whether
        they have something generated there.
        """
        before, a, b = self._text(common), self._text(prompt), self._text(stored)
        placed = find_place(before, a, b)
        rule = "" if self._blame is None else self._blame(placed.part, a, b, placed.place is Place.TOOLS)
        return placed, rule or "", looks_generated(placed.part, a, b)

    def _text(self, ids: Ids) -> str:
        parts: list[bytes] = []
        for start in range(0, len(ids), _PIECE):
            parts += map(self._text_of, ids[start : start + _PIECE].tolist())
            time.sleep(0)
        return b"".join(parts).decode(errors="replace")
