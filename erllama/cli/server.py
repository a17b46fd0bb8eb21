"""A running server, over HTTP: what the commands ask of it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Self
from urllib.parse import quote

import httpx
import typer

from erllama.benchmark.turn import event_data
from erllama.cli.failures import NoServer
from erllama.cli.server_url import key_headers, root_url
from erllama.errors import ErllamaError

_CONNECT_S = 5.0
_PROBE_S = 0.5  # whether a server runs on this machine
_MAX_REASON = 600

Key = Annotated[str | None, typer.Option("--api-key", envvar="ERLLAMA_API_KEY", help="The server's key.")]


class Server:
    """Close it, or use it as a context manager. Every method raises `NoServer` when nothing answers and
    `ErllamaError` with the server's own words when it refuses. An answer may take as long as it likes:
    a model may have to be loaded. One thread.
    """

    def __init__(self, host: str | None, key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        self.url = root_url(host)
        self._http = httpx.Client(
            base_url=self.url,
            headers=key_headers(key),
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            transport=transport,
        )

    def close(self) -> None:
        """Idempotent."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def answers(self) -> bool:
        """Whether a server of ours answers, soon."""
        try:
            reply = self._http.get("/health", timeout=_PROBE_S)
            return reply.status_code == 200 and isinstance(reply.json(), dict) and "status" in reply.json()
        except (httpx.HTTPError, ValueError):
            return False

    def get(self, path: str, **params: Any) -> Any:
        return self._json("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any], **params: Any) -> Any:
        return self._json("POST", path, body, params)

    def delete(self, path: str, body: Mapping[str, Any] | None = None, **params: Any) -> Any:
        return self._json("DELETE", path, body, params)

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """A stream of server-sent events: their data, without `[DONE]`. Closing it cancels the request."""
        with self._stream("POST", path, body) as reply:
            for line in reply.iter_lines():
                if data := event_data(line):
                    yield _checked(json.loads(data))

    def download(self, path: str, **params: Any) -> Generator[bytes, None, None]:
        with self._stream("GET", path, None, params) as reply:
            yield from reply.iter_bytes()

    def upload(self, path: str, pieces: Iterable[bytes], **params: Any) -> Any:
        with self._mapped():
            reply = self._http.post(path, content=pieces, params=_given(params))
        return _read(reply)

    def _json(self, method: str, path: str, body: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        with self._mapped():
            reply = self._http.request(method, path, json=body, params=_given(params or {}))
        return _read(reply)

    @contextmanager
    def _stream(
        self, method: str, path: str, body: Any, params: Mapping[str, Any] | None = None
    ) -> Iterator[httpx.Response]:
        with self._mapped(), self._http.stream(method, path, json=body, params=_given(params or {})) as reply:
            if reply.status_code >= 400:
                reply.read()
                _read(reply)
            yield reply

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise NoServer(f"no server answers at {self.url} ({error}); `erllama serve` starts one") from None
        except httpx.TransportError as error:
            raise NoServer(f"the connection to {self.url} broke: {str(error) or type(error).__name__}") from None


def path_of(*parts: str) -> str:
    """A path whose parts are quoted, slashes aside: names of models have them."""
    return "/" + "/".join(quote(part, safe="/:") for part in parts)


def open_server(host: str | None, key: str | None = None) -> Server | None:
    """The server that was named; else the one of this machine, if there is one."""
    server = Server(host, key)
    if host is not None or server.answers():
        return server
    server.close()
    return None


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _read(reply: httpx.Response) -> Any:
    if reply.status_code >= 400:
        raise _refusal(reply)
    if not reply.content:
        return {}
    try:
        return reply.json()
    except ValueError:
        raise ErllamaError(f"the server's answer to {reply.request.url.path} is not JSON") from None


def _refusal(reply: httpx.Response) -> ErllamaError:
    if reply.status_code == 401:
        return ErllamaError("the server asks for a key: set ERLLAMA_API_KEY, or give --api-key")
    try:
        message = _message(reply.json())
    except ValueError:
        message = reply.text
    wait = reply.headers.get("retry-after")
    later = f" (try again in {wait} s)" if wait and reply.status_code in (429, 503) else ""
    return ErllamaError((message or f"the server answered {reply.status_code}")[:_MAX_REASON] + later)


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    if event.get("error"):
        raise ErllamaError(_message(event)[:_MAX_REASON])
    return event


def _message(body: Any) -> str:
    """OpenAI's and our errors are objects, Ollama's are texts."""
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
