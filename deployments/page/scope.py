"""Serves the page's files, before API keys are looked at: they tell nothing of the server, and the page
itself asks for a key. Pure ASGI.

`/` is the page for who accepts `text/html`, as browsers say they do. Others get what they always
got: clients of Ollama look for its plain greeting there.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.http.dialect import route_path
from deployments.page.files import INDEX, PageFile, page_files

PREFIX = "/page/"
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # asked for again with the ETag: an upgrade shows at once
}


class PageScope:
    """Wraps the app; see the module's docstring. The files are read once, when it is made."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._files = page_files()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        path, headers = route_path(scope), Headers(scope=scope)
        if path in ("", "/"):
            if accepts_html(headers.get("accept", "")):
                await self._index(scope, headers)(scope, receive, send)
            else:
                await self._app(scope, receive, _varying(send))
        elif path.startswith(PREFIX) and (file := self._files.get(path.removeprefix(PREFIX))) is not None:
            await _answer(file, headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _index(self, scope: Scope, headers: Headers) -> Response:
        """The page names its files relative to itself, so below a prefix it needs the slash at the end."""
        if route_path(scope) == "/":
            return _answer(self._files[INDEX], headers)
        return Response(
            status_code=307, headers={"location": f"{scope['root_path'].rpartition('/')[2]}/", "vary": "Accept"}
        )


def accepts_html(accept: str) -> bool:
    """Whether an `Accept` names `text/html` itself: what takes everything, as curl and clients of APIs
    do, does not ask for a page.
    """
    for choice in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in choice.split(";"))
        if kind == "text/html":
            return not any(_is_zero(parameter) for parameter in parameters)
    return False


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip().rstrip("0") in ("", ".", "0.")


def _answer(file: PageFile, headers: Headers) -> Response:
    """304 for who has the file."""
    own = {**HEADERS, "etag": file.etag, "vary": "Accept"}
    known = {tag.strip().removeprefix("W/") for tag in headers.get("if-none-match", "").split(",")}
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=own)
    return Response(file.body, headers={**own, "content-type": file.media_type})


def _varying(send: Send) -> Send:
    """Caches shall not give the greeting to a browser."""

    async def tagged_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).add_vary_header("Accept")
        await send(message)

    return tagged_send
