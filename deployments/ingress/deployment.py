"""The deployment of the HTTP front: one process that holds a handle, a vocabulary and a template
per model.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve

from cache_store import ObjectReader, StoreError
from cache_store.documents.store import DocumentStore
from deployments.config import BuildArgs, HttpSpec, ModelSpec, deployment_name
from deployments.dialects.llama_server.props import server_version
from deployments.dialects.responses.stored.store import ResponseStore
from deployments.http.open_requests import OpenRequests
from deployments.http.ports import ReplyDefaults, ServedModel
from deployments.hub.defaults import defaults_of
from deployments.hub.library import HubLibrary
from deployments.hub.link import HubLink
from deployments.hub.messages import Granted
from deployments.hub.place import HubPlace, handles_of
from deployments.hub.specs import spec_of
from deployments.ingress.cluster import RayCluster
from deployments.ingress.http_app import all_dialects, make_http_app
from deployments.ingress.prompts import PromptSource
from deployments.model.client import ModelClient
from deployments.model.drain import app_is_deleted, watch_drain
from deployments.model.handles import ModelHandles
from deployments.model.states import load_state
from deployments.noise.filter import Noise
from deployments.serve_log import share_serve_log
from deployments.store_spec import StoreSpec
from deployments.telemetry.ray_recorder import RayRecorder
from deployments.telemetry.watch import Spans
from erllama.cache.setup import transcript_root
from erllama.chat.transcript_book import TranscriptBook
from erllama.demo import demo_model_path
from erllama.errors import EngineStopped, ErllamaError
from erllama.hub.hub import Hub
from erllama.hub.manifest import Manifest

log = logging.getLogger(__name__)

_GOODBYE_S = 5.0  # before Serve kills an ingress replica


@serve.ingress()
class Ingress:
    """The HTTP front. Serve asks for the ASGI app once, in the replica."""

    def __init__(
        self, args: dict[str, Any], handles: dict[str, Any], scheduler: Any | None = None, hub: Any | None = None
    ) -> None:
        """`scheduler` makes it part of the application; it is asked for its status alone. `hub` is the
        manager of the hub's models.
        """
        config = BuildArgs.model_validate(args)
        share_serve_log(config.http.log.format)
        self._options = config.http
        self._default_model = config.default_model
        self._drain_s = config.drain_s
        self._grace_s = ingress_grace_s(config)
        self._open = OpenRequests()
        self._cluster = RayCluster(scheduler, config.scheduler.high)
        self._documents = _response_documents(config.store, config.http)
        self._recorder = RayRecorder()
        self._spans = _request_spans(config.http)
        self._noise = Noise(config.http.noise, self._count_noise)
        served = _Served(config, _transcript_book(config.store))
        self._models = [served.configured(spec, handles[spec.id]) for spec in config.models]
        self._library = None if hub is None else served.library(hub)
        threading.Thread(target=self._load_prompts, name="erllama-prompts", daemon=True).start()
        reference = weakref.ref(self)
        watch_drain(lambda: _end_streams(reference))

    def _load_prompts(self) -> None:
        """Open vocabularies and templates before the first request needs them: half a second for
        152 k tokens.
        """
        for model in self._models:
            try:
                model.prompts.load()
            except ErllamaError as error:  # told to whoever asks for this model
                log.warning("prompts of %s cannot be loaded: %s", model.id, error)

    def _count_noise(self, rule: str, n: int) -> None:
        """`rule` did what it says `n` times; NAME.left is a text that it found no place for."""
        self._recorder.inc("erllama_prompt_noise", n, {"rule": rule})

    def served(self) -> dict[str, tuple[str, ...]]:
        """Model ids with their aliases: what `Cluster` asks."""
        return {model.id: model.aliases for model in self._models}

    def end_streams(self) -> None:
        """Serve stops this process: tell the clients whose streams are too long to end in it.

        A connection cannot move. After an update streams have nearly all of the grace time to end
        by themselves; when the application itself goes, no model is left to finish them. Blocks;
        not for an event loop.
        """
        time.sleep(self._drain_s if app_is_deleted() else max(0.0, self._grace_s - _GOODBYE_S))
        self._tell_all()

    async def leave(self, seconds: float) -> None:
        """The application goes, and whoever stops it waits for this: refuse what comes, give what
        runs `seconds` to end, then tell its clients. May be called again with less time.
        """
        self._open.refuse(_going())
        if not await self._open.all_ended(seconds):
            self._tell_all()
            await self._open.all_ended(_GOODBYE_S)  # a client that does not read is left behind
        if self._documents is not None:
            await asyncio.to_thread(self._documents.flush, _GOODBYE_S)
        if self._spans is not None:
            await asyncio.to_thread(self._spans.close)

    def _tell_all(self) -> None:
        for client in (*(model.client for model in self._models), *(self._library.clients() if self._library else ())):
            client.end_all(_going())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_http_app(
            self._models,
            self._options,
            default_model=self._default_model,
            dialects=all_dialects(ResponseStore(self._documents), self._cluster),
            echo_request_id=False,  # Serve does
            open_requests=self._open,
            noise=self._noise,
            library=self._library,
            cluster=self._cluster,
            recorder=self._recorder,
            spans=self._spans,
        )


def _end_streams(reference: weakref.ref[Any]) -> None:
    ingress = reference()
    if ingress is not None:
        ingress.end_streams()


def _going() -> EngineStopped:
    return EngineStopped("the server is going away; send the request again", retry_after_s=1)


def ingress_grace_s(args: BuildArgs) -> float:
    own = (spec.graceful_shutdown_timeout_s for spec in args.models)
    return max(own, default=ModelSpec.graceful_shutdown_timeout_s)


def _transcript_book(store: StoreSpec) -> TranscriptBook:
    """What this process knows of earlier replies, with the store behind it. A tier that cannot be
    used here costs hits, not the ingress.
    """
    config = store.config()
    try:
        if config is not None:
            return TranscriptBook(ObjectReader(config).get)
    except StoreError as error:
        log.warning("replies of earlier runs cannot be looked up here: %s", error)
    return TranscriptBook()


def _response_documents(store: StoreSpec, http: HttpSpec) -> DocumentStore | None:
    """What keeps responses beyond this process. A tier that cannot be used here costs that alone."""
    config, options = store.config(), http.responses
    try:
        if config is not None:
            return DocumentStore.open(config, "responses", max_bytes=options.budget_bytes, ttl_s=options.ttl_s)
    except StoreError as error:
        log.warning("responses are kept in this process alone: %s", error)
    return None


def _request_spans(http: HttpSpec) -> Spans | None:
    """What makes spans of requests. Its packages are optional."""
    if http.traces is None:
        return None
    from deployments.telemetry.spans import RequestSpans

    return RequestSpans.exported(http.traces, server_version())


class _Served:
    """Makes the models of an ingress: each a client and the prompts of its file, all with one book of
    replies.
    """

    def __init__(self, config: BuildArgs, book: TranscriptBook) -> None:
        policy = config.policy
        self._config = config
        self._book = book
        self._pins_from = policy.min_tokens if policy.pin_from_requests and book.has_store else None

    def configured(self, spec: ModelSpec, handle: Any) -> ServedModel:
        why = partial(load_state, serve.get_replica_context().app_name, deployment_name(spec.id))
        scales_to_zero = spec.autoscaling is not None and spec.autoscaling.min_replicas == 0
        failover = self._config.failover
        return ServedModel(
            id=spec.id,
            client=ModelClient.of(handle, sleeps=scales_to_zero, failover=failover, load_state=why),
            prompts=self._prompts(spec, spec.reply_defaults()),
            created=int(time.time()),
            aliases=spec.aliases,
        )

    def library(self, manager: Any) -> HubLibrary:
        """The models of the hub, which `manager` has loaded when they are asked for."""
        hub = Hub(self._config.hub)
        link = HubLink(manager, self._config.hub.load_timeout_s)

        def connect(granted: Granted) -> ModelHandles:
            handle: Any = serve.get_deployment_handle(granted.deployment, granted.app_name, _check_exists=False)
            return handles_of(granted, handle)

        def make(model_id: str, manifest: Manifest) -> ServedModel:
            planned = spec_of(hub, self._config.hub, model_id, manifest)
            spec = replace(planned, n_ctx=0)  # the engine alone knows how much of the context was made
            given = defaults_of(manifest.parameters)
            defaults = replace(spec.reply_defaults(), stop=given.stop, max_tokens=given.max_tokens)
            place = HubPlace(model_id, manifest.digest, link, connect)
            client = ModelClient(place, sleeps=True, failover=self._config.failover)
            prompts = self._prompts(spec, defaults, manifest.system)
            created = int(manifest.created.timestamp())
            n_ctx = planned.n_ctx or manifest.details.n_ctx_train
            return ServedModel(model_id, client, prompts, created, on_demand=True, planned_ctx=n_ctx)

        return HubLibrary(hub, link, make, {spec.id: _file(spec) for spec in self._config.models})

    def _prompts(self, spec: ModelSpec, defaults: ReplyDefaults, system: str | None = None) -> PromptSource:
        return PromptSource(
            spec,
            root=transcript_root(spec.id, self._config.store.salt),
            book=self._book,
            defaults=defaults,
            pins_from=self._pins_from,
            system=system,
        )


def _file(spec: ModelSpec) -> str:
    return str(demo_model_path()) if spec.path == "demo" else str(Path(spec.path).absolute())
