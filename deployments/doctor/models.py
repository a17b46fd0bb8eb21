"""The models of a config: their files, whether they fit, and which agents their contexts do for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from deployments.config import ModelSpec
from deployments.doctor.finding import Finding, fail, gib, ok, warn
from deployments.launch import check_file
from erllama.agents.table import AGENTS
from erllama.demo import demo_model_path
from erllama.errors import ErllamaError
from erllama.footprint.fit import MemoryNeed, fit
from erllama.gguf.check import inspect_gguf
from erllama.llama.memory_probe import measure_need

_LEAST_CTX = 512


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A configured model. `missing`: its file is not on this machine. `problem` is why it cannot be
    served. `need` is what one replica takes, None where nobody could tell; `context` that of one
    sequence. `unmeasured` is why nobody could. `fitted` is what of it fits into memory where the
    whole does not: sequences and tokens, None where nothing does.
    """

    id: str
    path: str
    context: int
    n_parallel: int
    n_replicas: int = 1
    missing: bool = False
    problem: str = ""
    unmeasured: str = ""
    need: MemoryNeed | None = None
    room_bytes: int = 0
    fitted: tuple[int, int] | None = None

    @property
    def total_bytes(self) -> int:
        """What all of its replicas take."""
        return self.need.total_bytes * self.n_replicas if self.need else 0


def model_findings(models: Iterable[ModelFacts]) -> Iterator[Finding]:
    for model in models:
        yield from _file(model)
        if model.need is not None:
            yield from _fits(model, model.need)
        elif model.unmeasured:
            todo = "a smaller n_ctx or n_parallel, if that is why; else try it"
            yield warn(f"model {model.id}", model.unmeasured, "nobody knows whether it fits into memory", todo)
        if not model.problem and model.context:
            yield _agents(model)


def _file(model: ModelFacts) -> Iterator[Finding]:
    check = f"model {model.id}"
    if model.problem:
        yield fail(check, model.problem, "the server does not start", "mend its keys, or take another file")
    elif model.missing:
        why = "it can be served only by a node that has the file"
        yield warn(
            check, f"{model.path} is not on this machine", why, "fetch it, or run doctor on the node that has it"
        )
    else:
        yield ok(check, f"{model.path} can be read")


def _fits(model: ModelFacts, need: MemoryNeed) -> Iterator[Finding]:
    check = f"model {model.id}"
    asked = f"{model.n_parallel} x {model.context} tokens"
    told = (
        f"{gib(need.total_bytes)} a replica: weights {gib(need.weights_bytes)}, KV of {asked} {gib(need.kv_bytes)}, "
        f"computing {gib(need.compute_bytes)}"
    )
    if need.total_bytes <= model.room_bytes:
        yield ok(check, told)
        return
    todo = "a smaller quantisation or model"
    if model.fitted:
        todo = f"n_parallel: {model.fitted[0]}, n_ctx: {model.fitted[1]} would fit"
    why = f"{gib(model.room_bytes)} are free for it"
    yield fail(check, f"does not fit: {told}", why, todo)


def _agents(model: ModelFacts) -> Finding:
    known = {agent.name: agent.min_context for agent in AGENTS.values() if agent.min_context is not None}
    fine = [name for name, least in known.items() if model.context >= least]
    short = [f"{name} ({least})" for name, least in known.items() if model.context < least]
    check = f"context of {model.id}"
    if not short:
        return ok(check, f"{model.context} tokens: enough for {', '.join(fine)}")
    why = "their first prompt, with instructions and tools, leaves no room to work, or does not fit at all"
    told = f"{model.context} tokens" + (f": enough for {', '.join(fine)};" if fine else ":") + " too few for "
    return warn(check, told + ", ".join(short), why, "a larger n_ctx, if coding agents are to use it")


def collect_model(spec: ModelSpec, n_replicas: int, room_bytes: int, *, measure: bool) -> ModelFacts:
    """Takes half a second for a file that was never measured; `measure` False asks llama.cpp nothing.
    `room_bytes`: memory that is free for a replica.
    """
    path = demo_model_path() if spec.path == "demo" else Path(spec.path)
    facts = ModelFacts(spec.id, str(path), spec.n_ctx, spec.n_parallel, n_replicas, room_bytes=room_bytes)
    try:
        check_file(spec)
        if not path.exists():
            return replace(facts, missing=True)
        config = replace(spec.engine_config(n_threads=1), path=str(path))
        config = replace(config, n_ctx=config.n_ctx or inspect_gguf(path).n_ctx_train)
        facts = replace(facts, context=config.n_ctx)
        if not measure or spec.num_gpus:  # what llama.cpp tells here is of RAM alone
            return facts
    except ErllamaError as error:
        return replace(facts, problem=error.message)
    try:
        need = measure_need(config)
    except ErllamaError as error:
        return replace(facts, unmeasured=error.message)
    facts = replace(facts, need=need)
    if need.total_bytes <= room_bytes:
        return facts
    try:
        found = fit(config, measure_need, room_bytes, min_ctx=_LEAST_CTX, min_parallel=1)
    except ErllamaError:
        return facts
    return replace(facts, fitted=(found.config.n_parallel, found.config.n_ctx))
