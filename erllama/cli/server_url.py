"""Where a server is that a command talks to, and one question to it."""

from __future__ import annotations

import os
from typing import Annotated, Any

import httpx
import typer

from erllama.errors import ErllamaError, InvalidParameter

DEFAULT_URL = "http://127.0.0.1:8000"
NO_SERVER = 3  # exit code
_TIMEOUT_S = 15.0

Host = Annotated[
    str | None,
    typer.Option("--host", envvar="ERLLAMA_HOST", help=f"The server's URL; {DEFAULT_URL} by default."),
]


def root_url(host: str | None) -> str:
    """The URL without `/v1` and slashes at its end; `host:port` is HTTP. Raises `InvalidParameter`."""
    text = (host or DEFAULT_URL).strip()
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except httpx.InvalidURL as error:
        raise InvalidParameter(f"--host: {text!r} is no URL: {error}", param="host") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidParameter(f"--host: must be http://HOST:PORT or https://HOST:PORT, got {text!r}", param="host")
    return str(url.copy_with(query=None, fragment=None)).rstrip("/").removesuffix("/v1").rstrip("/")


def key_of_environment() -> str | None:
    return os.environ.get("ERLLAMA_API_KEY") or None


def key_headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def get_json(url: str, key: str | None) -> Any:
    """What a server answers. Raises `ErllamaError` with its refusal; exits with 3 where none answers."""
    try:
        reply = httpx.get(url, headers=key_headers(key), timeout=_TIMEOUT_S)
    except httpx.TransportError as error:
        typer.secho(f"error: no server answers at {url.split('/v1')[0]}: {error}", fg="red", err=True)
        raise typer.Exit(NO_SERVER) from error
    if reply.status_code == 401:
        raise ErllamaError("the server asks for a key: set ERLLAMA_API_KEY")
    if reply.status_code >= 400:
        raise ErllamaError(f"the server refuses {reply.request.url.path} with {reply.status_code}: {reply.text[:300]}")
    try:
        return reply.json()
    except ValueError:
        raise ErllamaError(f"the server's answer to {reply.request.url.path} is not JSON") from None
