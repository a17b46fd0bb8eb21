"""What an HTTP dialect is: one vendor's API, as far as the HTTP code that all dialects share must
know it.

A dialect lives in `deployments/dialects/<name>/`, with its wire types and routes; the ingress
mounts a tuple of them. This folder imports none. Each request belongs to one dialect
(`RequestScope` chooses it, `dialect_of` tells it), also when no route takes the request: so a 404,
405, 401 or 500 has the shape that this client reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from deployments.access.limit_headers import openai_limit_headers
from deployments.access.rate_limit import Standing
from deployments.http.options import HttpOptions
from deployments.http.registry import ModelRegistry
from erllama.errors import ErllamaError
from erllama.events import Event


@dataclass(frozen=True, slots=True)
class Framing:
    """How the pieces of a stream follow each other.

    `frame(data, event)` is one piece: `data` is JSON without line breaks, `event` the name of its
    event or "". `keepalive` is a piece that every client skips, b"" where the framing has none.
    `has_ids`: a piece may carry an id before it, on a line of its own.
    """

    media_type: str
    frame: Callable[[bytes, str], bytes]
    keepalive: bytes
    has_ids: bool = False


def _sse(data: bytes, event: str) -> bytes:
    return (b"event: " + event.encode() + b"\n" if event else b"") + b"data: " + data + b"\n\n"


def _line(data: bytes, event: str) -> bytes:
    return data + b"\n"


SSE = Framing("text/event-stream", _sse, b": keep-alive\n\n", has_ids=True)
NDJSON = Framing("application/x-ndjson", _line, b"")


@dataclass(frozen=True, slots=True)
class KeyHeader:
    """A header in which an API key may stand, behind a scheme ("Bearer"), or alone if that is
    "".
    """

    name: str
    scheme: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.scheme} <key>" if self.scheme else f"{self.name}: <key>"

    def key(self, value: bytes) -> bytes:
        """The key in this header's value, b"" if there is none."""
        if not self.scheme:
            return value.strip()
        scheme, _, key = value.partition(b" ")
        return key.strip() if scheme.lower() == self.scheme.lower().encode() else b""


BEARER = KeyHeader("Authorization", "Bearer")


class ReplyWriter(Protocol):
    """Events in, a stream of bytes out; one per reply. Only `Tokens` and good `Done` events arrive
    here. Every method returns whole pieces of the stream, or nothing.
    """

    def feed(self, index: int, events: Iterable[Event]) -> bytes:
        """What choice `index` produced."""

    def close(self) -> bytes:
        """The end of the stream, after every choice is done."""

    def fail(self, error: ErllamaError, request_id: str) -> bytes:
        """The end of a stream that fails after its status line has left."""

    def keepalive(self) -> bytes:
        """What tells client and proxies that a silent stream lives: a comment, an event of the
        dialect, or b"" for nothing.
        """


class Dialect(ABC):
    """One API. Immutable; used from the event loop.

    Attributes ---------- prefixes: beginnings of the paths that are this dialect's, whole segments
    without a slash at the end. bodies: what is posted to its paths, for the OpenAPI document.
    framing: of its streamed replies. keys: where its clients put an API key. The first one is what a
    refusal recommends. key_query: a parameter of the query in which one may stand, too; "" is none.
    id_headers: its own headers of the request's id, beside `x-request-id`.
    """

    prefixes: ClassVar[tuple[str, ...]]
    bodies: ClassVar[Mapping[str, type[BaseModel]]] = {}
    framing: ClassVar[Framing]
    keys: ClassVar[tuple[KeyHeader, ...]] = (BEARER,)
    key_query: ClassVar[str] = ""
    id_headers: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """What rules against noise call it."""
        return type(self).__name__.lower()

    @abstractmethod
    def routes(self, models: ModelRegistry, options: HttpOptions) -> APIRouter:
        """The endpoints, with whole paths."""

    @abstractmethod
    def error_body(self, error: ErllamaError, request_id: str) -> bytes:
        """The JSON body of an answer that is an error."""

    def status(self, error: ErllamaError) -> int:
        """The HTTP status of an error, for an API that has numbers of its own."""
        return error.http_status

    def limit_headers(self, standings: Sequence[Standing]) -> Mapping[str, str]:
        """What its answers to a key with rate limits say of them."""
        return openai_limit_headers(standings)

    def claim(self, path: str, scope: Scope) -> int:
        """How strongly this dialect claims a request: 0 not at all, else the length of the longest
        prefix that fits. A dialect that shares a path with another one looks at the headers in
        `scope`.
        """
        return max(
            (len(prefix) for prefix in self.prefixes if path == prefix or path.startswith(f"{prefix}/")), default=0
        )


def route_path(scope: Scope) -> str:
    """The path below where the application is mounted."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def choose_dialect(dialects: Sequence[Dialect], scope: Scope) -> Dialect:
    """The dialect with the strongest claim; the first one for a path that nobody claims."""
    path = route_path(scope)
    return max(dialects, key=lambda dialect: dialect.claim(path, scope))


def dialect_of(scope: Scope) -> Dialect:
    """The dialect that `RequestScope` chose for this request."""
    dialect: Dialect = scope["state"]["dialect"]
    return dialect


def own_routes(dialect: Dialect, prefix: str = "") -> APIRouter:
    """A router whose routes take the requests of `dialect` alone: so two dialects may have the same
    path.
    """

    class Own(APIRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            return super().matches(scope) if dialect_of(scope) is dialect else (Match.NONE, {})

    def unique_id(route: APIRoute) -> str:
        return "_".join((type(dialect).__name__, route.name, route.path_format, *sorted(route.methods or ())))

    return APIRouter(prefix=prefix, route_class=Own, generate_unique_id_function=unique_id)


def add_routes(router: APIRouter, more: APIRouter, prefix: str = "") -> None:
    """Appends the routes of `more`, whose paths begin with `prefix` then. All routes stay one flat
    list: `include_router` makes a tree, through which each request goes twice and whose routes are
    built a second time, together half of the CPU time that a small request takes.
    """
    for route in more.routes:
        router.routes.append(_under(prefix, route) if prefix else route)


def _under(prefix: str, route: BaseRoute) -> BaseRoute:
    if not isinstance(route, APIRoute):
        raise TypeError(f"{route!r} is no route of an APIRouter: it cannot get a prefix")
    return type(route)(
        prefix + route.path,
        route.endpoint,
        methods=route.methods,
        name=route.name,
        include_in_schema=route.include_in_schema,
        generate_unique_id_function=route.generate_unique_id_function,
    )
