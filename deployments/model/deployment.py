"""The deployment of one model: `ModelReplica` as Serve starts and stops it."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Sequence
from functools import partial

from deployments.config import ModelSpec, RoutingSpec, SchedulerSpec
from deployments.memory.service import replica_location
from deployments.memory.sources import make_sources
from deployments.model.drain import watch_drain
from deployments.model.load_limit import LoadLimit, deployment_status
from deployments.model.replica import ModelReplica
from deployments.model.sigterm import SigtermWatch
from deployments.serve_log import share_serve_log
from deployments.store_spec import StoreSpec
from deployments.telemetry.ray_recorder import RayRecorder
from deployments.telemetry.recorder import SampleFeed
from deployments.telemetry.replica_samples import replica_samples
from erllama.cache.policy import CachePolicy
from erllama.errors import EngineStopped

log = logging.getLogger(__name__)

_LAST_FLUSH_S = 5.0


class Replica(ModelReplica):
    """`ModelReplica` with Serve's log and both ways a replica is told to go.

    A graceful stop (`serve shutdown`, scale-down, a new config) drains and calls `__del__`. SIGTERM
    (a node that is going away) has a thread of its own, see `SigtermWatch`. Whatever else leaves
    through `sys.exit` meets the exit handler: what the context holds is saved each time.
    """

    def __init__(
        self,
        spec: ModelSpec,
        store: StoreSpec,
        policy: CachePolicy,
        *,
        n_cpus: int,
        routing: RoutingSpec | None,
        scheduler: SchedulerSpec,
        salts: Sequence[str] = ("",),
    ) -> None:
        share_serve_log()
        self._numbers = SampleFeed(RayRecorder())
        sources = make_sources(scheduler.sources, scheduler.total_bytes) if scheduler.enabled else ()
        load = partial(
            super().__init__,
            spec,
            n_cpus=n_cpus,
            store=store.config(),
            policy=policy,
            routing=routing,
            location=replica_location(),
            sources=sources,
            salts=salts,
        )
        LoadLimit(spec.id, deployment_status).load(load)
        # Before the interpreter ends its thread pools, which readers and drivers of object stores
        # use; `atexit` comes after that. Private, but what concurrent.futures itself uses.
        register = getattr(threading, "_register_atexit", atexit.register)
        register(_close, weakref.ref(self))
        reference = weakref.ref(self)
        watch_drain(lambda: _drain(reference, spec.drain_s))
        SigtermWatch(lambda: _drain(reference, 0.0))

    async def check_health(self) -> None:
        """Ends the process of a replica whose engine is dead or stuck: Serve would wait for three
        failures, and its clients with it."""
        try:
            await super().check_health()
            self._count()
        except EngineStopped as error:
            if self._draining:
                raise
            log.error("this replica cannot go on and leaves: %s", error)
            store = self._model.store
            if store is not None:
                await asyncio.to_thread(store.flush, _LAST_FLUSH_S)
            os._exit(1)  # a thread that hangs in llama.cpp would keep any gentler exit waiting

    def _count(self) -> None:
        """Tell Ray's metrics what was counted since the last check: every few seconds."""
        model = self._model
        stats, store = model.stats(), model.store_stats()
        try:
            self._numbers.feed(replica_samples(self._spec.id, self._replica_id, stats, store, model.memory()))
        except Exception:  # whoever gathers numbers has gone: no reason to replace this replica
            log.exception("event=replica_not_counted")

    def __del__(self) -> None:
        """How Serve stops a replica whose requests have ended."""
        if hasattr(self, "_model"):  # not when the load failed
            self.close()


def _drain(reference: weakref.ref[Replica], seconds: float) -> None:
    replica = reference()
    if replica is not None:
        replica.drain(seconds)


def _close(reference: weakref.ref[Replica]) -> None:
    replica = reference()
    if replica is not None:
        replica.close()
