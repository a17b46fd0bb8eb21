"""What the sequence ids of the context hold, beyond the life of a request: the fastest tier. Pure
bookkeeping; engine thread only.

A finished sequence leaves its KV in its id until the id is needed. A newcomer then takes its prefix
from there: in place when it goes on where that one ended, else as a copy, so that a short side
request does not destroy a long conversation. Ids pinned by a session are given up last, but they
are given up: a pin never keeps a request waiting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache_store import ChainKey, TokenChain, n_common, tenant_root
from erllama.sequence.machine import State
from erllama.sequence.sampling import Logits
from erllama.sequence.sequence import Sequence

Ids = NDArray[np.uint32]

_NEGLIGIBLE = 64  # tokens at the end of a held sequence that a newcomer may cut off instead of copying the rest
_IDLE_SAVED = 32  # tokens computed in idle time that are worth a save of their own
_LONG = 1024  # held sequences from this length on are given up after shorter ones


@dataclass(slots=True)
class Held:
    """KV of the tokens of `chain` in the id `seq_id` that nobody runs on. `prompt_logits` are those
    after the first `n_given` of them.

    `salt` is that of its request, `session_id` the name of its session among those of all salts.
    `save_due`: the end of its sequence has not been handed to the store yet. `request_id` is that of
    its sequence. Tokens from `idle_from` on were computed in idle time, and no request has taken them
    over; `idle_unsaved`: nor has the store. `seq_id` and `used`, a tick, are kept by `LiveKv`.
    """

    chain: TokenChain
    session_id: str | None = None
    n_given: int = 0
    prompt_logits: Logits | None = None
    stores_logits: bool = False
    save_due: bool = False
    salt: str = ""
    request_id: str = ""
    idle_from: int | None = None
    idle_unsaved: bool = False
    seq_id: int = -1
    used: int = 0

    @property
    def n_tokens(self) -> int:
        return len(self.chain)

    @property
    def idle_save_due(self) -> bool:
        """Whether the store should have what was computed in idle time."""
        return self.idle_unsaved and self.idle_from is not None and self.n_tokens - self.idle_from >= _IDLE_SAVED

    def shorten(self, n_tokens: int) -> None:
        """Only the first `n_tokens` are left."""
        self.chain, self.stores_logits = self.chain.prefix(n_tokens), False
        if n_tokens < self.n_given:
            self.n_given, self.prompt_logits = 0, None
        if self.idle_from is not None and n_tokens <= self.idle_from:
            self.idle_from, self.idle_unsaved = None, False

    def extend(self, chain: TokenChain) -> None:
        """The tokens of `chain`, which goes on from what is held, were computed in idle time."""
        if self.idle_from is None:
            self.idle_from = self.n_tokens
        self.chain, self.stores_logits, self.idle_unsaved = chain, False, True


@dataclass(frozen=True, slots=True)
class Choice:
    """Run on `seq_id`, with the first `n_tokens` taken from the id `source` (None: nothing usable;
    equal to `seq_id`: in place).

    `logits` are there when that is the whole prompt: the same one ended there before. They are the
    source's; copy before changing them.
    """

    seq_id: int
    source: int | None = None
    n_tokens: int = 0
    logits: Logits | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class LivePrefixes:
    """What new requests can find in the context: (sequence id, token ids), arrays that never
    change. `running` ones may still be computed; `n_empty` ids hold nothing. `whole`: only all of a
    sequence's tokens together are of use. `salts` has that of each sequence, by its id: it is of use
    to requests of the same one.
    """

    running: tuple[tuple[int, Ids], ...]
    idle: tuple[tuple[int, Ids], ...]
    n_empty: int
    sessions: tuple[str, ...]
    whole: bool
    salts: Mapping[int, str] = field(default_factory=dict)


class LiveKv:
    """Idle KV by sequence id. `align`: prefixes are taken over in multiples of so many tokens;
    unless `cuttable`, only whole ones, which end where their source does.
    """

    def __init__(self, align: int = 1, *, cuttable: bool = True) -> None:
        self._align = align
        self.cuttable = cuttable
        self._held: dict[int, Held] = {}
        self._tick = 0

    def __repr__(self) -> str:
        return f"<LiveKv {self.n_tokens} idle tokens in ids {sorted(self._held)}>"

    @property
    def held(self) -> Mapping[int, Held]:
        return self._held

    @property
    def n_tokens(self) -> int:
        return sum(held.n_tokens for held in self._held.values())

    def keep(self, seq_id: int, held: Held) -> None:
        """`seq_id` is idle now and has this KV. An older one of its session loses the pin."""
        self._tick += 1
        if held.session_id is not None:
            self.unpin(held.session_id)
        held.seq_id, held.used = seq_id, self._tick
        self._held[seq_id] = held

    def take(self, seq_id: int) -> Held | None:
        """Forget what `seq_id` holds: it runs again, or its KV is dropped."""
        return self._held.pop(seq_id, None)

    def note_taken_over(self, source: int | None, n_tokens: int) -> int:
        """A request takes so many tokens of `source`; how many of them were computed in idle time and
        are taken for the first time.
        """
        held = None if source is None else self._held.get(source)
        if held is None or held.idle_from is None or n_tokens <= held.idle_from:
            return 0
        n_idle, held.idle_from = n_tokens - held.idle_from, None
        return n_idle

    def swap(self, a: int, b: int) -> None:
        """The KV of two ids was exchanged."""
        for seq_id, held in ((a, self._held.pop(b, None)), (b, self._held.pop(a, None))):
            if held is not None:
                held.seq_id, self._held[seq_id] = seq_id, held

    def unpin(self, session_id: str) -> None:
        """The session's KV may be given up like any other. Idempotent."""
        for held in self._held.values():
            if held.session_id == session_id:
                held.session_id = None

    def choose(
        self, prompt: TokenChain, session_id: str | None, *, free: Iterable[int], running: Iterable[Sequence]
    ) -> Choice:
        """Where a prompt runs and what it can take over now. At least one id must be free."""
        free = sorted(free)
        source, n_tokens, logits = self.longest(prompt, running)
        if source is not None and source in free:
            held = self._held[source]
            if held.session_id in (None, session_id) and held.n_tokens - n_tokens <= _NEGLIGIBLE:
                return Choice(source, source, n_tokens, logits)
        # its source, if that is least worth keeping
        return Choice(self._cheapest(free, session_id), source, n_tokens, logits)

    def missing(self, prompt: TokenChain, running: Iterable[Sequence]) -> int:
        """Tokens of `prompt` that no id holds now, nor will when a running prefill has been computed."""
        running = tuple(running)
        found = upcoming(prompt, running) if self.cuttable else None
        n_live = max(self.longest(prompt, running)[1], 0 if found is None else found.n_tokens)
        return len(prompt) - n_live

    def longest(self, prompt: TokenChain, running: Iterable[Sequence]) -> tuple[int | None, int, Logits | None]:
        """The id to take most of `prompt` from, how many, and the logits after them where that is
        the whole prompt; (None, 0, None) when none has any.
        """
        same = self._same_prompt(prompt, running)
        if same is not None:
            return same[0], len(prompt), same[1]
        return *self._best_source(prompt, running), None

    def _same_prompt(self, prompt: TokenChain, running: Iterable[Sequence]) -> tuple[int, Logits] | None:
        """An id that ended just this prompt, and the logits there: going on is bit-exact."""
        for seq_id, held in self._held.items():
            whole = self.cuttable or held.n_tokens == held.n_given
            if held.prompt_logits is not None and whole and _same(held.chain.prefix(held.n_given), prompt):
                return seq_id, held.prompt_logits
        for s in running:
            whole = self.cuttable or s.n_kv == s.n_given
            if s.prompt_logits is not None and s.readable and whole and _same(s.given, prompt):
                return s.id, s.prompt_logits
        return None

    def _best_source(self, prompt: TokenChain, running: Iterable[Sequence]) -> tuple[int | None, int]:
        best: int | None = None
        most = length = 0
        for seq_id, theirs in self._held_under(prompt.root, running):
            n = n_common(theirs.ids, prompt.ids)
            if self.cuttable:
                n = min(n, len(prompt) - 1)  # one token must be computed for the logits
                n -= n % self._align
            elif n < len(theirs) or n == len(prompt):
                continue  # its state belongs to its end and to nothing before
            # the whole of a source is copied before it is cut
            if n > most or (n == most and n and len(theirs) < length):
                best, most, length = seq_id, n, len(theirs)
        return best, most

    def prefixes(
        self, root: ChainKey, running: Iterable[Sequence], n_empty: int, sessions: tuple[str, ...]
    ) -> LivePrefixes:
        """What new requests can find below a root, of each salt; ended ones most recent first."""
        idle = {i: h for i, h in self._held.items() if h.chain.root == tenant_root(root, h.salt)}
        alive = [s for s in running if s.root == tenant_root(root, s.request.salt)]
        return LivePrefixes(
            running=tuple((s.id, s.chain(max(s.n_kv, s.n_given)).ids) for s in alive),
            idle=tuple((i, idle[i].chain.ids) for i in sorted(idle, key=lambda i: -idle[i].used)),
            n_empty=n_empty,
            sessions=sessions,
            whole=not self.cuttable,
            salts={s.id: s.request.salt for s in alive} | {i: h.salt for i, h in idle.items()},
        )

    def covers(self, prompt: TokenChain, running: Iterable[Sequence]) -> bool:
        """Whether some id holds all of `prompt` but at most its last token, which gives logits."""
        held = self._held_under(prompt.root, running)
        return any(n_common(theirs.ids, prompt.ids) >= len(prompt) - 1 for _, theirs in held)

    def _held_under(self, root: ChainKey, running: Iterable[Sequence]) -> list[tuple[int, TokenChain]]:
        """What each id holds of a root, idle ids first."""
        held = [(seq_id, held.chain) for seq_id, held in self._held.items() if held.chain.root == root]
        return held + [(s.id, s.kv) for s in running if s.root == root and s.readable]

    def _cheapest(self, free: list[int], session_id: str | None) -> int:
        """The free id to lose: one without KV, then short and old, long and old, pinned."""

        def worth(seq_id: int) -> tuple[int, int, int]:
            held = self._held.get(seq_id)
            if held is None:
                return (0, 0, seq_id)
            pinned = held.session_id is not None and held.session_id != session_id
            return (2 if pinned else 1, int(held.n_tokens >= _LONG), held.used)

        return min(free, key=worth)


def _same(a: TokenChain, b: TokenChain) -> bool:
    return a.root == b.root and np.array_equal(a.ids, b.ids)


class Upcoming(NamedTuple):
    """`source` will have `n_tokens` of a prompt in its context, unless it ends before."""

    source: Sequence
    n_tokens: int

    @property
    def is_over(self) -> bool:
        """Whether they are there, or will not come."""
        return not self.source.readable or self.source.n_kv >= self.n_tokens


def upcoming(prompt: TokenChain, running: Iterable[Sequence]) -> Upcoming | None:
    """The running prefill that will have most of `prompt`; None when there is none."""
    best: Upcoming | None = None
    for other in running:
        if other.state is not State.PREFILLING or other.root != prompt.root:
            continue
        n = n_common(other.given.ids, prompt.ids)
        if n > other.n_kv and (best is None or n > best.n_tokens):
            best = Upcoming(other, n)
    return best
