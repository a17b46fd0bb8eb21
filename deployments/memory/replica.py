"""The replica's side of memory pressure: reports what there is, offers what could be released, and
releases what the scheduler orders.

A model that is in use, or was used since the scheduler looked, keeps what it has. Any thread; every
method may wait for the engine thread or a file system, so none belongs on an event loop. Bytes and
seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cache_store import GarbageReport, IndexDelta, StoreStats
from deployments.config import ReleaseKind
from deployments.memory.messages import (
    RAM,
    GarbageOrder,
    ReleaseOffer,
    ReleaseOrder,
    ReleaseResult,
    ReplicaLocation,
    ReplicaReport,
)
from deployments.memory.sources import MemorySource, NvidiaMemory, read_all
from erllama.model import Model
from erllama.stats import ModelMemory

_RAM_LABEL = "ram_file"  # a second one is "ram_file2"


class ReplicaMemory:
    """One model on one replica."""

    def __init__(self, model: Model, model_id: str, location: ReplicaLocation, sources: Sequence[MemorySource]) -> None:
        self._model = model
        self._model_id = model_id
        self._location = location
        self._sources = tuple(sources)
        self._tiers: dict[str, frozenset[str]] = {}  # as last reported
        self._gpus = tuple(
            gpu for source in sources if isinstance(source, NvidiaMemory) for gpu in source.resources(location.gpu_ids)
        )

    @property
    def node_id(self) -> str:
        return self._location.node_id

    def report(self, *, with_delta: bool) -> ReplicaReport:
        """This moment. The delta is taken from the store either way: a report that gets lost costs
        others a listing."""
        memory = self._model.memory()
        readings, problems = read_all(self._sources, self._location.node_id)
        store = self._model.store
        delta = None if store is None else store.take_delta()
        self._tiers = {} if delta is None else {tier.label: tier.ids for tier in delta.tiers}
        return ReplicaReport(
            replica_id=self._location.replica_id,
            model_id=self._model_id,
            node_id=self._location.node_id,
            n_running=memory.n_running,
            n_queued=memory.n_queued,
            idle_s=memory.idle_s,
            loaded=memory.has_context or memory.weights_loaded,
            readings=readings,
            offers=(*self._own_offers(memory), *(() if store is None else tier_offers(store.stats()))),
            tiers=self._tiers,
            delta=delta if with_delta and delta is not None and not delta.is_empty else None,
            problems=problems,
        )

    def release(self, order: ReleaseOrder) -> ReleaseResult | None:
        """Carry an order out; None when it is for another replica. Raises what the engine
        raises."""
        if order.replica_id != self._location.replica_id:
            return None
        if order.kind is ReleaseKind.RAM_TIER:
            store = self._model.store
            freed_bytes = 0 if store is None else store.evict_bytes(order.tier, order.n_bytes, only_if_lower=True)
            return ReleaseResult(freed_bytes)
        memory = self._model.memory()
        if memory.n_running or memory.n_queued:
            return ReleaseResult(0, "in use")
        if memory.idle_s < order.idle_s:
            return ReleaseResult(0, "used since")
        evicted = self._model.evict() if order.kind is ReleaseKind.CONTEXT else self._model.unload()
        return ReleaseResult(evicted.freed_bytes // len(self._homes(memory)), "in use" if evicted.n_live else "")

    def apply_deltas(self, deltas: Sequence[IndexDelta]) -> None:
        """Take over what the stores of other replicas did; the store skips what is its own."""
        if self._model.store is not None:
            self._model.store.apply_deltas(deltas)

    def collect_garbage(self, order: GarbageOrder) -> GarbageReport | None:
        """Collect a tier's garbage if the order is for this replica, else leave the tier to whom it
        is for. None where there was nothing to do here."""
        store = self._model.store
        tier = next((label for label, ids in self._tiers.items() if not ids.isdisjoint(order.tier_ids)), None)
        if store is None or tier is None:
            return None
        if order.replica_id == self._location.replica_id:
            return store.collect_garbage(tier, deadline_s=order.deadline_s)
        store.leave_garbage(tier, order.for_s)
        return None

    def _own_offers(self, memory: ModelMemory) -> Iterator[ReleaseOffer]:
        """What is on several GPUs is taken to be spread evenly. Weights that are mapped from their
        file need no offer: the system takes such pages back by itself."""
        homes = self._homes(memory)
        weights = memory.weights_bytes if memory.on_gpu else memory.weights_private_bytes
        for kind, n_bytes in ((ReleaseKind.CONTEXT, memory.kv_bytes), (ReleaseKind.WEIGHTS, weights)):
            if n_bytes:
                yield from (ReleaseOffer(kind, home, n_bytes // len(homes)) for home in homes)

    def _homes(self, memory: ModelMemory) -> tuple[str, ...]:
        return (self._gpus or ("gpu",)) if memory.on_gpu else (RAM,)


def tier_offers(stats: StoreStats) -> Iterator[ReleaseOffer]:
    """Tiers in RAM above one that is not. An upper bound: what a lower tier does not have yet stays
    when it comes to it."""
    in_ram = [tier.label.startswith(_RAM_LABEL) for tier in stats.tiers]
    for level, tier in enumerate(stats.tiers):
        if in_ram[level] and not all(in_ram[level:]) and tier.n_bytes:
            yield ReleaseOffer(ReleaseKind.RAM_TIER, RAM, tier.n_bytes, tier.label)
