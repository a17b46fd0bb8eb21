"""The HTTP application: health, the dialects' routes, and the layers around them. Plain FastAPI
without ray, so it runs anywhere.

Read on: `dialects/*/routes` (endpoints), `generation/reply` (the path that they share),
`http/middleware` (request id, keys, log), `http/dialect` (what a dialect is), `http/errors`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from deployments.access.key_book import KeyBook
from deployments.capture.scope import CaptureScope
from deployments.capture.writer import CaptureWriter
from deployments.dialects.anthropic.routes import Anthropic
from deployments.dialects.erllama_admin.cluster import ClusterPort, NoCluster
from deployments.dialects.erllama_admin.cluster_snapshot import ClusterWatch
from deployments.dialects.erllama_admin.routes import ErllamaAdmin
from deployments.dialects.gemini.routes import Gemini
from deployments.dialects.llama_server.routes import LlamaServer
from deployments.dialects.ollama.routes import Ollama
from deployments.dialects.openai.routes import OpenAI
from deployments.dialects.ranking.routes import Ranking
from deployments.dialects.responses.routes import Responses
from deployments.dialects.responses.stored.store import ResponseStore
from deployments.generation.expected import ExpectedTurns
from deployments.http.dialect import Dialect, add_routes
from deployments.http.errors import install_error_handlers
from deployments.http.middleware import RequestScope, may_see_all
from deployments.http.model_library import ModelLibrary
from deployments.http.noise_scope import HEADER, NoiseScope
from deployments.http.open_requests import OpenRequests
from deployments.http.options import HttpOptions
from deployments.http.ports import ServedModel
from deployments.http.registry import ModelRegistry
from deployments.http.tenant_client import Timeouts
from deployments.ingress.metrics import PATH as METRICS
from deployments.ingress.metrics import metrics_route
from deployments.ingress.openapi import openapi_document
from deployments.noise.filter import Noise
from deployments.page.scope import PageScope
from deployments.telemetry.recorder import PrometheusRecorder, Recorder, Recorders
from deployments.telemetry.watch import RequestWatch, Spans
from erllama.errors import ErllamaError

logger = logging.getLogger("deployments.http")

DIALECTS: tuple[Dialect, ...] = (
    OpenAI(),
    Anthropic(),
    Responses(),
    Ollama(),
    Gemini(),
    LlamaServer(),
    Ranking(),
    ErllamaAdmin(),
)


def all_dialects(responses: ResponseStore | None = None, cluster: ClusterPort | None = None) -> tuple[Dialect, ...]:
    """Every dialect; `responses` keeps those of the Responses API, `cluster` knows the machines."""
    own: dict[type[Dialect], Dialect] = {ErllamaAdmin: ErllamaAdmin(cluster)}
    if responses is not None:
        own[Responses] = Responses(responses)
    return tuple(own.get(type(dialect), dialect) for dialect in DIALECTS)


# for who has no key, in place of an error's own words: those name files and machines
_UNTOLD = "it cannot be used now; the server's log and callers with an API key see the reason"


async def _state(model: ServedModel, timeout_s: float, *, tells_errors: bool) -> tuple[str, str]:
    """Whether it is ready, and why not."""
    try:
        ready = await asyncio.wait_for(model.client.ready(), timeout_s)
    except TimeoutError:
        return "not_ready", f"no answer within {timeout_s:g} s"
    except ErllamaError as error:
        return "not_ready", error.message if tells_errors else _UNTOLD
    except Exception as exc:  # a probe must answer, whatever the reason
        logger.warning("event=not_ready model=%s error=%r", model.id, exc)
        return "not_ready", "its state cannot be asked; the log has the reason"
    if ready is None:
        return "unknown", ""
    return ("ready", "") if ready else ("not_ready", "it is loading")


def make_http_app(
    models: Iterable[ServedModel],
    options: HttpOptions | None = None,
    *,
    default_model: str | None = None,
    dialects: Sequence[Dialect] = DIALECTS,
    echo_request_id: bool = True,
    open_requests: OpenRequests | None = None,
    noise: Noise | None = None,
    library: ModelLibrary | None = None,
    cluster: ClusterPort | None = None,
    recorder: Recorder | None = None,
    spans: Spans | None = None,
) -> FastAPI:
    """The application for these models. Raises `InvalidParameter` when their names clash.

    The first of `dialects` answers for paths that none of them claims. `echo_request_id` is False
    under Ray Serve, which answers with the request id itself. Whoever passes `open_requests` can
    stop admission, and whoever passes `noise` can read what its rules did. `library`: models beside
    the configured ones. `cluster` knows machines and scheduler; `recorder` gets the numbers, too, that
    `/metrics` tells, `spans` each request.
    """
    options = options or HttpOptions()
    open_requests = open_requests or OpenRequests()
    timeouts = Timeouts(options.prefill_timeout_s, options.token_timeout_s, options.total_timeout_s)
    registry = ModelRegistry(models, default_model, timeouts=timeouts, library=library)
    own = PrometheusRecorder()
    watch = RequestWatch(own if recorder is None else Recorders(own, recorder), options.log.limits, spans)
    cluster_watch = ClusterWatch(registry, cluster or NoCluster(), options.ready_timeout_s)
    expected = ExpectedTurns()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await expected.close()

    app = FastAPI(title="erllama", openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.expected_turns = expected
    bodies = {path: kind for dialect in dialects for path, kind in dialect.bodies.items()}

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/health/ready")
    async def ready(request: Request) -> Response:
        """A model that sleeps ("unknown") does not count against us: a request would wake it, and a
        probe must not.
        """
        asked = (_state(model, options.ready_timeout_s, tells_errors=may_see_all(request)) for model in registry.all)
        told = await asyncio.gather(*asked)
        states = {model.id: state for model, (state, _) in zip(registry.all, told, strict=True)}
        reasons = {model.id: reason for model, (_, reason) in zip(registry.all, told, strict=True) if reason}
        ok = "not_ready" not in states.values() and not open_requests.refusing
        body = {"status": "ready" if ok else "not_ready", "models": states, **({"reasons": reasons} if reasons else {})}
        return JSONResponse(body, status_code=200 if ok else 503)

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return JSONResponse(openapi_document(app.routes, bodies))

    metrics_open = options.metrics == "open"
    add_routes(app.router, metrics_route(own.registry, cluster_watch, is_open=metrics_open))
    for dialect in dialects:
        add_routes(app.router, dialect.routes(registry, options))
    install_error_handlers(app)
    app.add_middleware(NoiseScope, noise=noise or Noise(options.noise))
    if options.capture.dir is not None:
        app.add_middleware(CaptureScope, writer=CaptureWriter(options.capture))
    app.add_middleware(
        RequestScope,
        dialects=dialects,
        keys=KeyBook(options.api_keys),
        slow_reader_s=options.slow_reader_s,
        echo_request_id=echo_request_id,
        open_requests=open_requests,
        watch=watch,
        open_paths=(METRICS,) if metrics_open else (),
    )
    app.add_middleware(PageScope)
    if options.cors_origins:  # outermost, so that refusals carry the headers too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "request-id", "retry-after", HEADER],
        )
    return app
