"""The boundary where every exception becomes an HTTP answer. What is wrong and its status belong to
the error, their form to the dialect.

The classes here are faults that only HTTP knows; those of the engine come from `erllama.errors`.
`as_erllama_error` is the one place where a foreign exception is mapped: it is logged with its
traceback, and the client learns only the request id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from deployments.http.dialect import Dialect, dialect_of
from erllama.errors import ErllamaError, RequestError

logger = logging.getLogger("deployments.http")


class Unauthorized(RequestError):
    """API keys are configured and the request carries none of them."""

    http_status = 401
    code = "invalid_api_key"


class AdminKeyRequired(RequestError):
    """The request's key is good, but not for this."""

    http_status = 403
    code = "admin_key_required"


class RouteNotFound(RequestError):
    """No such path."""

    http_status = 404
    code = "unknown_url"


class MethodNotAllowed(RequestError):
    """The path exists, for another method."""

    http_status = 405
    code = "method_not_allowed"


class BodyTooLarge(RequestError):
    """The body exceeds `HttpOptions.max_body_bytes`."""

    http_status = 413
    code = "request_too_large"


class StreamNotResumable(RequestError):
    """Of the stream that a client wants to go on with nothing is kept: never, or not any more."""

    http_status = 404
    code = "stream_not_resumable"


class StreamDiffers(RequestError):
    """The body is not the one that began the stream which shall go on."""

    http_status = 409
    code = "stream_differs"


class UnsupportedEncoding(RequestError):
    """The body is compressed in a way that nobody here can read."""

    http_status = 415
    code = "unsupported_encoding"


class ClientDisconnected(RequestError):
    """The client went away before the reply; nobody reads this answer, the access log does (499 is
    nginx's number for it).
    """

    http_status = 499
    code = "client_disconnected"


class SlowReader(ClientDisconnected):
    """The client has left its stream unread for too long, and is treated as gone."""

    code = "slow_reader"


class InternalError(ErllamaError):
    """A bug of ours. The message carries no detail."""


def as_erllama_error(exc: Exception, request_id: str) -> ErllamaError:
    """The error itself if it is one of ours, else a logged `InternalError` that names the
    request.
    """
    if isinstance(exc, ErllamaError):
        return exc
    logger.error("event=internal_error request_id=%s", request_id, exc_info=exc)
    return InternalError(
        f"The server had an error while processing your request; it is logged under request id {request_id}."
    )


def error_response(
    error: ErllamaError, dialect: Dialect, request_id: str, *, headers: Mapping[str, str] | None = None
) -> Response:
    """A whole answer for an error that is known before the status line."""
    headers = dict(headers or {})
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    elif error.http_status in (429, 503):
        headers["retry-after"] = "1"  # clients back off blindly without it
    schemes = [place.scheme for place in dialect.keys if place.scheme]
    if error.http_status == 401 and schemes:
        headers["www-authenticate"] = schemes[0]
    body = dialect.error_body(error, request_id)
    return Response(body, status_code=dialect.status(error), headers=headers, media_type="application/json")


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    where = f"{request.method} {request.url.path}"
    headers = dict(exc.headers or {})
    error: ErllamaError
    match exc.status_code:
        case 404:
            error = RouteNotFound(f"Unknown request URL: {where}. Please check the URL for typos.")
        case 405:
            methods = headers.get("Allow", "").split(", ")
            headers["Allow"] = ", ".join(methods + ["HEAD"] * ("GET" in methods and "HEAD" not in methods))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": f"{headers['Allow']}, OPTIONS"})
            error = MethodNotAllowed(f"Not allowed method: {where}.")
        case _:  # only our own routes could raise others, and they raise ErllamaError
            raise exc
    scope = request.scope
    return error_response(error, dialect_of(scope), scope["state"]["request_id"], headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    """What routing refuses. All that a handler raises reaches `RequestScope`, which answers it."""
    app.add_exception_handler(HTTPException, _on_http_exception)
