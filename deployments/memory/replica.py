"""The replica's side of memory pressure: says what there is and what could go, and gives up what the scheduler orders.

Invariants: an order for another replica is not ours (None); a model that is in use, or was since the scheduler looked, keeps what it has.
Any thread; every method may wait for the engine thread or a file system, so none belongs on an event loop. Bytes and seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

from cache_store import Collected, News, Store, StoreStats
from deployments.config import Measure
from deployments.memory.messages import RAM, Collect, Offer, Relief, Relieved, ReplicaPlace, ReplicaReport, TierPlace
from deployments.memory.sources import MemorySource, NvidiaMemory, read_all
from erllama.stats import EvictResult, ModelMemory

log = logging.getLogger(__name__)

_RAM_LABEL = "ram_file"  # a second one is "ram_file2"


class Sheddable(Protocol):
    """What of an `erllama.Model` this needs."""

    @property
    def store(self) -> Store | None: ...

    def memory(self) -> ModelMemory: ...

    def evict(self) -> EvictResult: ...

    def unload(self) -> EvictResult: ...


class ReplicaMemory:
    """One model at one place."""

    def __init__(self, model: Sheddable, model_id: str, place: ReplicaPlace, sources: Sequence[MemorySource]) -> None:
        self._model = model
        self._model_id = model_id
        self._place = place
        self._sources = tuple(sources)
        self._places: tuple[TierPlace, ...] = ()  # as last reported
        self._gpus = tuple(gpu for source in sources if isinstance(source, NvidiaMemory) for gpu in source.resources(place.gpu_ids))

    def report(self, *, with_news: bool) -> ReplicaReport:
        """This moment. News are taken from the store either way: a report that gets lost costs others a listing."""
        memory = self._model.memory()
        readings, problems = read_all(self._sources, self._place.node_id)
        store = self._model.store
        news = None if store is None else store.news()
        self._places = () if news is None else tuple(TierPlace(place.label, place.marks) for place in news.places)
        return ReplicaReport(
            replica_id=self._place.replica_id,
            model_id=self._model_id,
            node_id=self._place.node_id,
            n_running=memory.n_running,
            n_queued=memory.n_queued,
            idle_s=memory.idle_s,
            loaded=memory.has_context or memory.weights_loaded,
            readings=readings,
            offers=(*self._own_offers(memory), *(() if store is None else tier_offers(store.stats()))),
            tiers=self._places,
            news=news if with_news and news is not None and not news.is_empty else None,
            problems=problems,
        )

    def relieve(self, order: Relief) -> Relieved | None:
        """Carry an order out, unless it is for someone else. Raises what the engine raises."""
        if order.replica_id != self._place.replica_id:
            return None
        if order.measure is Measure.RAM_TIER:
            store = self._model.store
            freed = 0 if store is None else store.evict_bytes(order.tier, order.n_bytes, only_if_lower=True)
            return Relieved(order.replica_id, freed)
        memory = self._model.memory()
        if memory.n_running or memory.n_queued:
            return Relieved(order.replica_id, 0, "in use")
        if memory.idle_s < order.idle_s:
            return Relieved(order.replica_id, 0, "used since")
        result = self._model.evict() if order.measure is Measure.CONTEXT else self._model.unload()
        return Relieved(order.replica_id, result.freed_bytes // max(1, len(self._homes(memory))), "in use" if result.n_live else "")

    def hear(self, news: Sequence[News]) -> None:
        """Take over what the stores of other replicas did; our own news are skipped by the store."""
        if self._model.store is not None:
            self._model.store.hear(news)

    def collect(self, order: Collect) -> Collected | None:
        """Clean a place up if that is our turn, else leave it to whose turn it is. None where there was nothing to do for us."""
        store, tier = self._model.store, self._tier_at(order.marks)
        if store is None or tier is None:
            return None
        if order.replica_id == self._place.replica_id:
            return store.collect(tier, deadline_s=order.deadline_s)
        store.collected_elsewhere(tier, order.for_s)
        return None

    def _tier_at(self, marks: frozenset[str]) -> str | None:
        return next((place.label for place in self._places if not place.marks.isdisjoint(marks)), None)

    def _own_offers(self, memory: ModelMemory) -> Iterator[Offer]:
        """What is on several GPUs is taken to be spread evenly. Weights that are mapped from their file need no offer: the system takes
        such pages back by itself."""
        homes = self._homes(memory)
        weights = memory.weights_bytes if memory.on_gpu else memory.weights_private_bytes
        for measure, n_bytes in ((Measure.CONTEXT, memory.kv_bytes), (Measure.WEIGHTS, weights)):
            if n_bytes:
                yield from (Offer(measure, home, n_bytes // len(homes)) for home in homes)

    def _homes(self, memory: ModelMemory) -> tuple[str, ...]:
        return (self._gpus or ("gpu",)) if memory.on_gpu else (RAM,)


def tier_offers(stats: StoreStats) -> Iterator[Offer]:
    """Tiers in RAM above one that is not. An upper bound: what a lower tier does not have yet stays when it comes to it."""
    labels = [tier.label for tier in stats.tiers]
    for level, tier in enumerate(stats.tiers):
        below = [label for label in labels[level + 1 :] if not _in_ram(label)]
        if _in_ram(tier.label) and below and tier.n_bytes:
            yield Offer(Measure.RAM_TIER, RAM, tier.n_bytes, tier.label)


def _in_ram(label: str) -> bool:
    return label.startswith(_RAM_LABEL)
