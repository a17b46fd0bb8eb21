"""Where a server is that a command talks to."""

from __future__ import annotations

from typing import Annotated

import httpx
import typer

from erllama.errors import InvalidParameter

DEFAULT_URL = "http://127.0.0.1:8000"

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


def key_headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}
