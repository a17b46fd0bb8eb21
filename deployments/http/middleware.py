"""The outermost layer of the HTTP app (inside CORS): dialect, request id, API key and its limits, log
line, and the last-resort 500. HEAD and slashes at the end are dealt with here, for all routes. Pure ASGI.

The request id comes from `x-request-id` if that is sane, else it is made here; it leaves in the
same header, and is found at `scope["state"]["request_id"]`. Ray Serve gives every request that
comes without one an id and always adds the header to the answer: there `echo_request_id` is off, or
clients would read "id, id".
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from uuid import uuid4

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.access.key_book import NOBODY, KeyBook
from deployments.access.tenant import Tenant
from deployments.http.dialect import Dialect, choose_dialect, route_path
from deployments.http.errors import (
    AdminKeyRequired,
    ClientDisconnected,
    Unauthorized,
    as_erllama_error,
    error_response,
)
from deployments.http.open_requests import OpenRequests
from deployments.telemetry.facts import NO_DIALECT, RequestFacts
from deployments.telemetry.watch import RequestWatch

_SANE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:/+=@-]{0,127}\Z")
_MAX_QUERY_KEYS = 4  # each is hashed
_OPEN_PATHS = frozenset({"/health", "/health/ready", "/v1/health", "/ping"})  # probes carry no keys


def request_id(request: Request) -> str:
    """The id that the client sees."""
    return str(request.scope["state"]["request_id"])


def tenant_of(request: Request) -> Tenant:
    """Who sends it."""
    tenant: Tenant = request.scope["state"]["tenant"]
    return tenant


def key_book(request: Request) -> KeyBook:
    """All tenants that there are: for who may know of others."""
    book: KeyBook = request.scope["state"]["key_book"]
    return book


def may_see_all(request: Request) -> bool:
    """Whether the client has shown a key, or none is needed: others learn nothing of the machine."""
    return request.scope["state"]["access"] is not NOBODY


def require_admin(request: Request) -> None:
    """For routes that look into the server or change it. Raises `AdminKeyRequired`."""
    if not tenant_of(request).admin:
        raise AdminKeyRequired("This API key may not do that: it needs one that has admin: true in the configuration.")


def engine_id(request: Request) -> str:
    """The id for the engine, unique: one of the client's own may come twice and gets a suffix."""
    state = request.scope["state"]
    return str(state["request_id"]) + (f"~{uuid4().hex[:8]}" if state["request_id_given"] else "")


def request_facts(request: Request) -> RequestFacts:
    """What is gathered of a request for log, metrics and traces."""
    facts: RequestFacts = request.scope["state"]["facts"]
    return facts


def slow_reader_s(request: Request) -> float | None:
    """How long a piece of the answer may wait for its reader, in seconds; None is for ever."""
    bound: float | None = request.scope["state"]["slow_reader_s"]
    return bound


def _header(scope: Scope, name: bytes) -> bytes:
    """The value of a header (`name` in lower case), b"" without one."""
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _presented(dialect: Dialect, scope: Scope) -> list[bytes]:
    """What stands in the places of keys."""
    keys = [place.key(_header(scope, place.name.lower().encode())) for place in dialect.keys]
    if not dialect.key_query:
        return keys
    query = QueryParams(scope.get("query_string", b""))
    return keys + [key.encode() for key in query.getlist(dialect.key_query)[:_MAX_QUERY_KEYS]]


def _as_routed(scope: Scope) -> Scope:
    """The request as routes know it. HEAD is a GET whose body is not sent, and a slash at the end
    means nothing: a redirect would name a host, which behind a proxy is the wrong one.
    """
    path = str(scope["path"])
    root = str(scope.get("root_path", ""))
    bare = root + (path.removeprefix(root).rstrip("/") or "/")
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    return scope if (path, scope["method"]) == (bare, method) else {**scope, "path": bare, "method": method}


def _route_of(scope: Scope) -> str:
    """The path of the route that took a request, with {names} of its parameters; "" for none."""
    return str(getattr(scope.get("route"), "path_format", ""))


class RequestScope:
    """Wraps the app; see the module's docstring. Nothing but a cancellation leaves it as an
    exception.
    """

    def __init__(
        self,
        app: ASGIApp,
        dialects: Sequence[Dialect],
        keys: KeyBook | None = None,
        *,
        slow_reader_s: float | None = None,
        echo_request_id: bool = True,
        open_requests: OpenRequests | None = None,
        watch: RequestWatch | None = None,
        open_paths: Collection[str] = (),
    ) -> None:
        """`dialects`: the first one answers for paths that nobody claims. Without `keys` everybody may
        do all. A stream whose client leaves a piece unread for `slow_reader_s` seconds ends.
        `open_requests` counts all but the probes, and may refuse them. `watch` is told of all.
        `open_paths` need no key, as those of probes.
        """
        self._app = app
        self._dialects = dialects
        self._echo = echo_request_id
        self._open = open_requests or OpenRequests()
        self._keys = keys or KeyBook()
        self._slow_reader_s = slow_reader_s
        self._watch = watch or RequestWatch()
        self._open_paths = _OPEN_PATHS | set(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _header(scope, b"x-request-id")
        sane = bool(_SANE_ID.match(given))
        rid = given.decode("ascii") if sane else f"req-{uuid4().hex}"
        facts = RequestFacts(rid, method=scope["method"], path=scope["path"], started_ns=time.monotonic_ns())
        scope = _as_routed(scope)
        dialect = choose_dialect(self._dialects, scope)
        state = scope.setdefault("state", {})
        state["request_id"], state["request_id_given"], state["dialect"] = rid, sane, dialect
        state["facts"] = facts
        access = self._keys.find(_presented(dialect, scope)) or NOBODY
        state["access"], state["tenant"], state["key_book"] = access, access.tenant, self._keys
        claimed = dialect.claim(route_path(scope), scope) > 0
        facts.dialect, facts.tenant = dialect.name if claimed else NO_DIALECT, access.tenant.name
        facts.traceparent, facts.tracestate = (
            _header(scope, name).decode("latin-1") for name in (b"traceparent", b"tracestate")
        )
        state["slow_reader_s"] = self._slow_reader_s
        id_names = (*(("x-request-id",) if self._echo else ()), *dialect.id_headers)
        id_headers = [(name.encode(), rid.encode("ascii")) for name in id_names]
        status, head = 0, facts.method == "HEAD"
        is_open = route_path(scope) in self._open_paths

        async def tagged_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                limits = dialect.limit_headers(access.rate_limit.standings)
                own = [*id_headers, *((name.encode(), value.encode()) for name, value in limits.items())]
                message["headers"] = [*message.get("headers", ()), *own]
            elif head and message["type"] == "http.response.body":
                message["body"] = b""
            await send(message)

        self._watch.begin()
        try:
            if not is_open:
                if access is NOBODY:
                    raise Unauthorized(f"Incorrect or missing API key. Send it as '{dialect.keys[0]}'.")
                if scope["method"] == "POST":  # to look at models, or at what is kept, costs next to nothing
                    access.rate_limit.admit()
            with nullcontext() if is_open else self._open.one_more():
                await self._app(scope, receive, tagged_send)
        except asyncio.CancelledError:  # by Serve, because the client has gone
            facts.fail(ClientDisconnected("The client closed the connection."))
            raise
        except Exception as exc:
            error = as_erllama_error(exc, rid)
            facts.fail(error)
            if status == 0:
                await error_response(error, dialect, rid)(scope, receive, tagged_send)
        finally:
            facts.route = _route_of(scope)
            self._watch.end(facts, status or ClientDisconnected.http_status)
