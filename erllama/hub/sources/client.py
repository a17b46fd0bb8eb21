"""HTTP for pulls: httpx over connections that `safety` allows, redirects followed by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpcore
import httpx

from erllama.hub.config import HubConfig
from erllama.hub.errors import PullFailed, SourceNotFound
from erllama.hub.safety import PinnedBackend, Reach, Resolve, resolve_host

USER_AGENT = "erllama"
MAX_JSON_BYTES = 4 << 20
_REDIRECTS = frozenset([301, 302, 303, 307, 308])


def shown(url: str) -> str:
    """A URL as it may be told: without its query, which may be signed, and without credentials."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class HttpClient:
    """One pull's connections. Any thread may send; `abort` wakes those that wait for bytes.

    Use as a context manager. Proxies of the environment are not used: what they connect to could
    not be checked. Requests go to the transport itself, because httpx's client logs each URL as a
    whole, and redirects lead to signed ones.
    """

    def __init__(self, config: HubConfig, reach: Reach, resolve: Resolve = resolve_host) -> None:
        self._reach = reach
        self._max_redirects = config.max_redirects
        self._backend = PinnedBackend(reach, resolve)
        timeout = httpx.Timeout(config.stall_timeout_s, connect=config.connect_timeout_s, pool=None)
        self._extensions = {"timeout": timeout.as_dict()}
        self._max_connections = config.connections + 1
        self._transport: _Transport | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._transport is not None:
                self._transport.close()

    def abort(self) -> None:
        """End what is under way: its readers get a network error. No request succeeds then."""
        self._backend.abort()

    @contextmanager
    def send(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, authorization: str | None = None
    ) -> Iterator[httpx.Response]:
        """The response to a request, its body not read yet; whatever its status, but no redirect.

        `authorization` is sent to the origin of `url` and to no other that it redirects to. Raises
        `SourceRefused`, `PullFailed` for too many redirects, and httpx's errors.
        """
        first = _origin(url)
        for _ in range(self._max_redirects + 1):
            self._reach.check_url(url)
            sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
            if authorization is not None and _origin(url) == first:
                sent["Authorization"] = authorization
            try:
                request = httpx.Request(method, url, headers=sent, extensions=self._extensions)
            except (httpx.InvalidURL, UnicodeError) as error:
                raise PullFailed(f"the source leads to a URL that cannot be read: {error}") from None
            response = self._opened().handle_request(request)
            try:
                target = response.headers.get("location")
                if response.status_code not in _REDIRECTS or not target:
                    yield response
                    return
                url = urljoin(url, target)
            finally:
                response.close()
        raise PullFailed(f"{shown(url)}: more than {self._max_redirects} redirects")

    def _opened(self) -> _Transport:
        """Made when it is needed: reading the certificates takes longer than copying a small file."""
        with self._lock:
            if self._transport is None:
                self._transport = _Transport(self._backend, self._max_connections)
            return self._transport

    def get_json(self, url: str, headers: Mapping[str, str] | None = None, authorization: str | None = None) -> Any:
        """The JSON at a URL. Raises `SourceNotFound` for a 404, `PullFailed` for all else."""
        body = bytearray()
        try:
            with self.send("GET", url, headers, authorization) as response:
                check_status(response, url)
                for data in response.iter_raw():
                    body += data
                    if len(body) > MAX_JSON_BYTES:
                        raise PullFailed(f"{shown(url)}: answers with more than {MAX_JSON_BYTES} bytes")
        except httpx.HTTPError as error:
            raise PullFailed(f"{shown(url)}: {error or type(error).__name__}") from error
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise PullFailed(f"{shown(url)}: answers with what is no JSON") from error


def check_status(response: httpx.Response, url: str) -> None:
    """Raises for a status that another try would not change, and for one that is no success."""
    status = response.status_code
    if status in (404, 410):
        raise SourceNotFound(f"{shown(url)}: is not there (HTTP {status})", param="model")
    if status in (401, 403):
        raise PullFailed(f"{shown(url)}: access denied (HTTP {status}): is a token needed?", param="model")
    if not response.is_success:
        raise PullFailed(f"{shown(url)}: answers with HTTP {status}")
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise PullFailed(f"{shown(url)}: sends the file in content-encoding {encoding}, though only identity was asked")


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


class _Transport(httpx.BaseTransport):
    """httpx's own transport, but for the network backend, which that one does not let choose."""

    def __init__(self, backend: PinnedBackend, max_connections: int) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(), max_connections=max_connections, network_backend=backend
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        sent = httpcore.Request(request.method, url, headers=request.headers.raw, extensions=request.extensions)
        with _as_httpx(request):
            response = self._pool.handle_request(sent)
        return httpx.Response(response.status, headers=response.headers, stream=_Body(response, request))

    def close(self) -> None:
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, response: httpcore.Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx(self._request):
            yield from self._response.iter_stream()

    def close(self) -> None:
        self._response.close()


@contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    """httpcore's errors as httpx's: they have the same names."""
    try:
        yield
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
        kind = getattr(httpx, type(error).__name__, httpx.TransportError)
        raise kind(str(error), request=request) from error
