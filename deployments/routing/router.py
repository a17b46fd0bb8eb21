"""A Serve request router for model deployments: the replica that has most of the prompt, unless it
is too busy.

It lives wherever a handle is called: in each ingress replica, in the driver of a Ray job. What is
known and what that is worth is in `table.py` and `score.py`; here is Serve's side. Serve must never
see an exception from here: one in `choose_replicas` is only logged and the request waits for ever,
one in a callback loses the request. Then, and for calls that any replica may answer, two random
replicas are offered and Serve takes the one with the shorter queue, which is its default.

Requests are matched to replicas one by one (no FIFOMixin): with it Serve would hand a replica to
whoever has waited longest.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cache_store import StoreConfig
from deployments.config import ModelSpec, RoutingSpec
from deployments.routing.prompt import RoutedPrompt, named_replica, prompt_of
from deployments.routing.score import RouteWeights, ranked
from deployments.routing.table import RouteTable
from erllama.cache.policy import CachePolicy

log = logging.getLogger(__name__)

# of the time to compute a token that a tier in memory saves: reading takes 10 to 20 % of it, and
# may have to wait
_NODE_SHARE = 0.75
_CONTROL_LAG_S = 2.0  # Serve's controller asks, gathers and passes on in turns of half a second (deployments.launch)
_COMPLAIN_EVERY_S = 60.0


def router_config(
    spec: ModelSpec, routing: RoutingSpec, store: StoreConfig | None, policy: CachePolicy
) -> RequestRouterConfig | None:
    """For `serve.deployment`; None where there is nothing to choose from."""
    most = spec.autoscaling.max_replicas if spec.autoscaling is not None else spec.num_replicas
    if not routing.enabled or most <= 1:
        return None
    config: dict[str, Any] = {
        "request_router_class": "deployments.routing.router:KvRouter",
        "request_router_kwargs": {
            "chunk_tokens": routing.chunk_tokens,
            "guard_tokens": routing.guard_tokens,
            "n_parallel": spec.n_parallel,
            "node_share": 0.0 if store is None else _NODE_SHARE,
            "node_min_tokens": policy.min_tokens,
            "lag_s": _CONTROL_LAG_S + 2 * routing.stats_period_s,
        },
        "request_routing_stats_period_s": routing.stats_period_s,
        "request_routing_stats_timeout_s": 10 * routing.stats_period_s,
    }
    return RequestRouterConfig(**config)


class KvRouter(RequestRouter):
    """See the module. The callbacks may come on other threads than the router's loop."""

    def initialize_state(self, **kwargs: Any) -> None:
        """Serve's constructor for us, with what `router_config` says."""
        self._chunk_tokens = kwargs["chunk_tokens"]
        self._weights = RouteWeights(kwargs.pop("guard_tokens"), kwargs.pop("node_share"))
        self._table: RouteTable[ReplicaID] = RouteTable(**kwargs)
        self._random = random.Random()
        self._complained_s = -_COMPLAIN_EVERY_S

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks, best first: one replica in each, since Serve decides within a rank by queue length
        alone."""
        if pending_request is not None:
            # else Serve asks again without a pause when no replica takes it
            pending_request.routing_context.should_backoff = True
            with self._guarded():
                method, args = pending_request.metadata.call_method, pending_request.args
                named = named_replica(method, args)
                there = [replica for replica in candidate_replicas if replica.replica_id.unique_id == named]
                if there:
                    return [there]
                prompt = prompt_of(method, args, self._chunk_tokens)
                if prompt is not None:
                    return self._ranks(candidate_replicas, pending_request, prompt)
        return [self._random.sample(candidate_replicas, min(2, len(candidate_replicas)))]

    def _ranks(
        self, candidates: Sequence[RunningReplica], pending_request: PendingRequest, prompt: RoutedPrompt
    ) -> list[list[RunningReplica]]:
        by_id = {replica.replica_id: replica for replica in candidates}
        views = self._table.views(prompt, list(by_id))
        self._random.shuffle(views)
        order = ranked(views, prompt.n_tokens, self._weights)
        self._table.chosen(pending_request.metadata.internal_request_id, prompt, order[0])
        return [[by_id[replica_id]] for replica_id in order]

    # --- what Serve tells -------------------------------------------------------------------------

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Serve tells which replicas run now and what each last published."""
        super().update_replicas(replicas)
        with self._guarded():
            self._table.update(
                {replica.replica_id: (replica.node_id or "", replica.routing_stats or {}) for replica in replicas}
            )

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A call of ours met a dead replica, sooner than the controller noticed."""
        super().on_replica_actor_died(replica_id)
        with self._guarded():
            self._table.forget(replica_id)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """A replica has accepted the request."""
        with self._guarded():
            self._table.routed(pending_request.metadata.internal_request_id, replica_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """The request has ended, however it did."""
        with self._guarded():
            self._table.completed(internal_request_id)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever goes wrong inside costs a hit, never the request."""
        try:
            yield
        except Exception as error:
            now = time.monotonic()
            if now - self._complained_s >= _COMPLAIN_EVERY_S:
                self._complained_s = now
                log.warning(
                    "routing of %s falls back to the shorter queue: %r", self._deployment_id, error, exc_info=True
                )
