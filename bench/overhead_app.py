"""The application of `overhead.py`: the real ingress, replica and engine around a backend that
takes no time.

`build_app(args)` takes the `args` of a serve config plus `step_ms`: {model id: milliseconds that
each decode sleeps}. Serve's workers import this module by name, so bench/ must be on PYTHONPATH.
The weights in a model's file are never read; the ingress loads its vocabulary.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from ray import serve

from deployments.config import BuildArgs, ModelSpec, deployment_name
from deployments.ingress.deployment import Ingress
from deployments.model.replica import ModelReplica
from deployments.serve_log import share_serve_log
from erllama.backend.batch_plan import BatchPlan
from erllama.config import EngineConfig
from erllama.model import Model
from erllama.sequence.sampling import Logits
from erllama.testing.stub_backend import N_VOCAB, StubBackend

REPLY_TOKEN = ord("a")
MAX_ONGOING = 10_000  # as deployments.app has it


class ZeroBackend(StubBackend):
    """The same row of logits for everything, without bookkeeping; every reply is "aaaa..." until
    its token budget ends.
    """

    def __init__(self, config: EngineConfig, *, step_s: float) -> None:
        super().__init__(config.n_ctx, config.n_parallel)
        self._row = np.zeros(N_VOCAB, dtype=np.float32)
        self._row[REPLY_TOKEN] = 1.0
        self._step_s = step_s

    def decode(self, plan: BatchPlan) -> list[tuple[Logits, ...]]:
        if self._step_s:
            time.sleep(self._step_s)
        return [(self._row,) * row.n_logits for row in plan.rows]

    def cut(self, seq_id: int, n_tokens: int) -> bool:
        """What it holds of a sequence is whatever the engine believes."""
        return True

    def copy_prefix(self, source: int, target: int, n_tokens: int) -> bool:
        return True

    def swap(self, a: int, b: int) -> None:
        """There is nothing to exchange."""


class ZeroReplica(ModelReplica):
    """What `deployments.model.deployment.Replica` is, with a `ZeroBackend`."""

    def __init__(self, spec: ModelSpec, *, n_cpus: int, step_ms: float) -> None:
        share_serve_log()
        make_backend = partial(ZeroBackend, step_s=step_ms / 1e3)
        super().__init__(spec, n_cpus=n_cpus, make_model=partial(Model, make_backend=make_backend))

    def __del__(self) -> None:
        if hasattr(self, "_model"):  # not when the load failed
            self.close()


def build_app(config: dict[str, Any]) -> serve.Application:
    """`http.ingress_replicas` of the ingress, one replica per model."""
    step_ms = config.pop("step_ms")
    args = BuildArgs.model_validate(config)
    handles = {}
    for spec in args.models:
        deployment = serve.deployment(
            ZeroReplica,
            name=deployment_name(spec.id),
            max_ongoing_requests=MAX_ONGOING,
            ray_actor_options={"num_cpus": 0.1},
        )
        handles[spec.id] = deployment.bind(spec, n_cpus=1, step_ms=step_ms[spec.id])
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=args.http.ingress_replicas,
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(args.model_dump(mode="json"), handles)
