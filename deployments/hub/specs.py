"""From a model of the hub to what is loaded: its configuration, and the memory that it takes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import ValidationError

from deployments.config import HubSpec, ModelSpec
from deployments.hub.defaults import defaults_of
from deployments.hub.residents import Loadable
from erllama.errors import InvalidParameter
from erllama.footprint.copies import row_groups
from erllama.footprint.estimate import estimate
from erllama.footprint.fit import GpuRoom, NeedOf, fit
from erllama.footprint.shape import MemoryShape
from erllama.gguf.check import split_paths
from erllama.gguf.header import read_header
from erllama.hub.hub import Hub
from erllama.hub.manifest import Manifest
from erllama.hub.sources.remote import Role
from erllama.llama.library import build_info
from erllama.llama.memory_probe import measure_need

log = logging.getLogger(__name__)

PROCESS_BYTES = 200 << 20
"""What the process of a model takes that sleeps: Ray's worker, Serve, llama.cpp and a vocabulary. 178 MiB
of its own where `bench/swap.py` measured it."""
DEFAULT_CTX = 4096


def spec_of(hub: Hub, spec: HubSpec, model_id: str, manifest: Manifest) -> ModelSpec:
    """The configuration of a model: the hub's for all, above it what its manifest says, above that the
    hub's for this one. Raises what `Hub.path_of` raises, and `InvalidParameter`.
    """
    trained = {"n_ctx": min(DEFAULT_CTX, manifest.details.n_ctx_train or DEFAULT_CTX)}
    path = str(hub.path_of(manifest.name))
    given = defaults_of(manifest.parameters, _configured(spec, model_id, path, {}, {}).sampling)
    if given.ignored:
        log.warning("event=hub_parameters_ignored model=%s parameters=%s", model_id, ",".join(given.ignored))
    known: dict[str, Any] = {"sampling": given.sampling}
    if given.n_ctx is not None:  # more than it was trained with is of no use
        known["n_ctx"] = min(given.n_ctx, manifest.details.n_ctx_train or given.n_ctx)
    if manifest.template is not None:
        known["chat_template"] = _source(manifest.template)
    if adapters := hub.paths_of(manifest.name, Role.ADAPTER):
        known["adapters"] = [{"path": str(path)} for path in adapters]
    return _configured(spec, model_id, path, trained, known)


def _configured(
    spec: HubSpec, model_id: str, path: str, below: Mapping[str, Any], above: Mapping[str, Any]
) -> ModelSpec:
    """`HubSpec.model_spec`. Raises `InvalidParameter`."""
    try:
        return spec.model_spec(model_id, path, below, above)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidParameter(f"{model_id} cannot be configured: {where}: {first['msg']}", param="model") from None


def loadable_of(
    hub: Hub, spec: HubSpec, model_id: str, room_bytes: int, others: str = "", *, gpu_bytes: int | None = None
) -> Loadable:
    """The model of a name as it would be loaded into `room_bytes`. `others` is what else its process
    depends on. With `num_gpus` as many layers as fit into that share of `gpu_bytes`, what a GPU can
    give, go there; None where that is not known. Blocks: it may ask llama.cpp in a child process.
    Raises `ErllamaError`.
    """
    manifest = hub.show(model_id)
    configured = spec_of(hub, spec, model_id, manifest)
    if configured.n_ctx == 0:
        configured = replace(configured, n_ctx=manifest.details.n_ctx_train)
    need_of, gpu_room = _needs(configured, gpu_bytes)
    fitted = fit(
        configured,
        need_of,
        max(0, room_bytes - PROCESS_BYTES),
        min_ctx=spec.min_ctx,
        min_parallel=spec.min_parallel,
        gpu_room=gpu_room,
    )
    found = fitted.config
    ours = replace(configured, n_ctx=found.n_ctx, n_parallel=found.n_parallel, n_gpu_layers=found.n_gpu_layers)
    if ours != configured:
        log.info("event=hub_shrunk model=%s n_ctx=%d n_parallel=%d", model_id, ours.n_ctx, ours.n_parallel)
    return Loadable(
        model_id=model_id,
        digest=manifest.digest,
        spec=ours,
        need_bytes=PROCESS_BYTES + fitted.need.total_bytes,
        process_bytes=PROCESS_BYTES,
        gpu_bytes=fitted.need.gpu.total_bytes,
        build=_build(manifest, configured, others),
    )


def _source(template: str) -> str:
    """A template that is never taken for the path of a file, as text without any Jinja would be: whoever
    may create models may not read files.
    """
    return template if "{{" in template or "{%" in template else template + "{{ '' }}"


def _needs(spec: ModelSpec, gpu_bytes: int | None) -> tuple[NeedOf, GpuRoom | None]:
    """llama.cpp tells what a model takes in RAM; with GPUs its header has to."""
    if not spec.num_gpus:
        return measure_need, None
    shape = MemoryShape.of([read_header(part) for part in split_paths(spec.path)], row_groups(build_info()))
    if gpu_bytes is None:
        return partial(estimate, shape), None
    share = int(gpu_bytes * min(1.0, spec.num_gpus))
    return partial(estimate, shape), GpuRoom(share, shape.n_layer + 1)


def _build(manifest: Manifest, spec: ModelSpec, others: str) -> str:
    """Names all that a process depends on: one of another build is replaced. What its context had to
    shrink to is not part of it: that depends on who else was there.
    """
    text = json.dumps([manifest.digest, repr(spec), others])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
