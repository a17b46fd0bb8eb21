"""What one router knows of its replicas: what they published, and what it has sent them since. No
I/O; thread-safe; times in nanoseconds.

What a replica publishes is a second old when it arrives here. So every request that was routed
stands in for it: its prompt counts as held from the decision until `lag_s` after the request's end,
when what the replica says is newer and alone decides. The same records separate our own requests in
a replica's published load from those of other routers. Replicas that are gone take everything with
them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from deployments.routing.prompt import RoutedPrompt
from deployments.routing.score import K, ReplicaView
from deployments.routing.stats import Published

_MAX_NODE_HASHES = 1 << 16
_MAX_HOMES = 1 << 14
_MAX_RECORDS = 1 << 14


@dataclass(slots=True)
class _Record(Generic[K]):
    """A request on its way to, on, or lately on a replica, which holds `held` for it."""

    replica: K
    prompt: RoutedPrompt
    held: tuple[int, ...]
    running: bool = True


@dataclass(slots=True)
class _Known:
    """One replica. The counters hold what our own requests brought there; `n_recent` of those run
    or ended a moment ago."""

    node: str
    published: Published
    stats: Mapping[str, Any] = field(default_factory=dict)
    prefixes: Counter[int] = field(default_factory=Counter)
    tails: Counter[int] = field(default_factory=Counter)
    sessions: Counter[int] = field(default_factory=Counter)
    n_running: int = 0
    n_recent: int = 0
    n_new: int = 0  # requests since it last published that need an id of their own
    n_foreign: int = 0
    turn: int = 0

    def publish(self, stats: Mapping[str, Any]) -> None:
        if stats != self.stats:
            self.stats = stats
            self.published = replace(self.published, prefixes=frozenset(), tails=frozenset(), sessions=frozenset())
            self.published = Published.parse(stats)
            self.n_foreign = max(0, self.published.load - self.n_recent)
            self.n_new = 0

    def matched(self, chain: Sequence[int]) -> int:
        """Chunks of `chain` that it holds."""
        theirs, ours = self.published.prefixes, self.prefixes
        return next((i for i in range(len(chain), 0, -1) if chain[i - 1] in theirs or chain[i - 1] in ours), 0)

    def goes_on(self, chain: Sequence[int]) -> bool:
        """Whether the prompt continues a sequence that it holds, which then displaces no other."""
        return any(h in self.published.tails or h in self.tails for h in chain)

    def full(self, chain: Sequence[int]) -> bool:
        """Whether another sequence has to go for the prompt."""
        return self.published.n_empty <= self.n_new and not self.goes_on(chain)

    @property
    def load(self) -> int:
        return self.n_running + self.n_foreign

    def add(self, record: _Record[Any]) -> None:
        self.n_running += 1
        self.n_recent += 1
        for counter, hashes in self._counters(record):
            counter.update(hashes)

    def remove(self, record: _Record[Any]) -> None:
        self.n_running -= record.running
        self.n_recent -= 1
        for counter, hashes in self._counters(record):
            for h in hashes:
                counter[h] -= 1
                if not counter[h]:
                    del counter[h]

    def _counters(self, record: _Record[Any]) -> tuple[tuple[Counter[int], Sequence[int]], ...]:
        prompt = record.prompt
        sessions = () if prompt.session is None else (prompt.session,)
        return (self.prefixes, record.held), (self.tails, prompt.chain[-1:]), (self.sessions, sessions)


class RouteTable(Generic[K]):
    """`n_parallel` sequences run at once on a replica. `lag_s`: how old what replicas publish may
    be. No tier has prompts that are shorter than `node_min_tokens`: they are not saved."""

    def __init__(
        self,
        *,
        chunk_tokens: int,
        n_parallel: int,
        lag_s: float,
        node_min_tokens: int,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._silent = Published(n_parallel=n_parallel, n_empty=n_parallel)
        self._chunk_tokens = chunk_tokens
        self._lag_ns = int(lag_s * 1e9)
        self._node_min_tokens = node_min_tokens
        self._clock = clock
        self._lock = threading.RLock()
        self._known: dict[K, _Known] = {}
        self._records: OrderedDict[str, _Record[K]] = OrderedDict()
        self._expiry: OrderedDict[str, int] = OrderedDict()  # records that go on their own, the next one first
        self._nodes: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._homes: OrderedDict[int, K] = OrderedDict()  # of sessions
        self._affine: OrderedDict[int, K] = OrderedDict()  # where the last request of an affinity went
        self._tried: OrderedDict[str, set[K]] = OrderedDict()
        self._twins: OrderedDict[int, str] = OrderedDict()  # the record of the last request of a join key
        self._turns = 0

    def update(self, replicas: Mapping[K, tuple[str, Mapping[str, Any]]]) -> None:
        """The replicas that run now, each with its node and what it published. Raises `ValueError`
        for stats that are not ours."""
        with self._lock:
            for gone in self._known.keys() - replicas.keys():
                self.forget(gone)
            problem: Exception | None = None
            for key, (node, stats) in replicas.items():
                try:
                    self._known.setdefault(key, _Known(node, self._silent)).publish(stats)
                except (TypeError, ValueError) as error:  # the others' are good
                    problem = error
            if problem is not None:
                raise problem

    def forget(self, replica: K) -> None:
        """The replica died. Idempotent."""
        with self._lock:
            for request_id in [key for key, record in self._records.items() if record.replica == replica]:
                self._drop(request_id)
            self._known.pop(replica, None)
            for homes in (self._homes, self._affine):
                for name in [key for key, home in homes.items() if home == replica]:
                    del homes[name]

    def views(self, prompt: RoutedPrompt, candidates: Sequence[K]) -> list[ReplicaView[K]]:
        """What is known of each candidate for this prompt, in their order. One that is not known
        yet is empty."""
        with self._lock:
            self._expire()
            home, near = (
                self._home(prompt.session),
                None if prompt.affinity is None else self._affine.get(prompt.affinity),
            )
            twin = self._twin(prompt)
            failed = self._tried.get(prompt.request, set()) if prompt.attempt > 1 else set()
            views = [self._view(key, prompt) for key in candidates]
            return [
                replace(
                    view,
                    has_session=key == home,
                    has_affinity=key == near,
                    has_failed=key in failed,
                    has_twin=twin is not None and key == twin.replica,
                )
                for key, view in zip(candidates, views, strict=True)
            ]

    def chosen(self, request_id: str, prompt: RoutedPrompt, replica: K) -> None:
        """The router decided on a replica: from now on the request counts for it. That is forgotten
        after a while, unless `routed` follows: the caller may have gone."""
        with self._lock:
            self._drop(request_id)
            known = self._known.get(replica)
            if known is None:
                return
            if prompt.n_tokens and not known.goes_on(prompt.chain):
                self._turns += 1
                known.turn = self._turns
                known.n_new += 1
            record = _Record(replica, prompt, prompt.chain[-1:] if known.published.whole else prompt.chain)
            known.add(record)
            self._records[request_id] = record
            self._expiry[request_id] = self._clock() + self._lag_ns
            if len(self._records) > _MAX_RECORDS:
                self._drop(next(iter(self._records)))
            if prompt.join is not None:
                _put(self._twins, prompt.join, request_id, _MAX_HOMES)
            self._remember(prompt, replica, known.node)

    def routed(self, request_id: str, replica: K) -> None:
        """The replica has accepted the request. Which one it is may differ from what was
        decided."""
        with self._lock:
            record = self._records.get(request_id)
            if record is not None and record.replica != replica:
                self.chosen(request_id, record.prompt, replica)
                record = self._records.get(request_id)
            if record is not None and record.running:
                self._expiry.pop(request_id, None)

    def completed(self, request_id: str) -> None:
        """The request has ended, however. Idempotent."""
        with self._lock:
            record = self._records.get(request_id)
            if record is not None and record.running:
                record.running = False
                self._known[record.replica].n_running -= 1
                self._expiry.pop(request_id, None)
                self._expiry[request_id] = self._clock() + self._lag_ns

    # --- under the lock ---------------------------------------------------------------------------

    def _view(self, key: K, prompt: RoutedPrompt) -> ReplicaView[K]:
        known = self._known.get(key) or _Known("", self._silent)
        live = known.matched(prompt.chain)
        near = next(
            (i for i in range(len(prompt.chain), live, -1) if (known.node, prompt.chain[i - 1]) in self._nodes), live
        )
        return ReplicaView(
            key,
            live=live * self._chunk_tokens,
            near=near * self._chunk_tokens,
            load=known.load,
            n_parallel=known.published.n_parallel,
            full=known.full(prompt.chain),
            turn=known.turn,
        )

    def _twin(self, prompt: RoutedPrompt) -> _Record[K] | None:
        """The request whose reply this one may read: it runs, or has ended a moment ago."""
        if prompt.join is None or not prompt.joins:
            return None
        return self._records.get(self._twins.get(prompt.join, ""))

    def _home(self, session: int | None) -> K | None:
        """Where a session is: where we sent it last, unless that replica says it has it no more and
        another says it has."""
        if session is None:
            return None
        last = self._homes.get(session)
        known = self._known.get(last) if last is not None else None
        if known is not None and (
            session in known.sessions or session in known.published.sessions or not known.published.all_sessions
        ):
            return last
        return next((key for key, other in self._known.items() if session in other.published.sessions), None)

    def _remember(self, prompt: RoutedPrompt, replica: K, node: str) -> None:
        """What outlives the request: where it was tried, where its session is, and what the first
        tier of the node will have."""
        if prompt.request:
            earlier = self._tried.get(prompt.request, set()) if prompt.attempt > 1 else set()
            _put(self._tried, prompt.request, earlier | {replica}, _MAX_RECORDS)
        if prompt.session is not None:
            _put(self._homes, prompt.session, replica, _MAX_HOMES)
        if prompt.affinity is not None:
            _put(self._affine, prompt.affinity, replica, _MAX_HOMES)
        if prompt.n_tokens >= self._node_min_tokens:
            for h in prompt.chain:
                _put(self._nodes, (node, h), None, _MAX_NODE_HASHES)

    def _expire(self) -> None:
        now = self._clock()
        while self._expiry and next(iter(self._expiry.values())) <= now:
            self._drop(next(iter(self._expiry)))

    def _drop(self, request_id: str) -> None:
        """The one way out for a record. Idempotent."""
        self._expiry.pop(request_id, None)
        record = self._records.pop(request_id, None)
        if record is not None:
            self._known[record.replica].remove(record)


T = TypeVar("T", bound=Hashable)
V = TypeVar("V")


def _put(table: OrderedDict[T, V], key: T, value: V, limit: int) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > limit:
        table.popitem(last=False)
