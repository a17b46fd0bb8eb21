"""An error in the shape of llama.cpp's server, `{"error": {"code", "message", "type"}}`, whole as a
body or as data in a stream.
"""

from __future__ import annotations

from typing import Any

from deployments.http.body import encode
from erllama.errors import ContextOverflow, ErllamaError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}


def error_type(http_status: int) -> str:
    """Other 4xx are an `invalid_request_error`, other 5xx a `server_error`."""
    return _TYPES.get(http_status) or ("invalid_request_error" if http_status < 500 else "server_error")


def error_body(error: ErllamaError) -> bytes:
    """There is no place for the field but the message. A prompt that is too long is told in the words
    and with the counts on which clients shorten it.
    """
    message, kind = error.message, error_type(error.http_status)
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    more: dict[str, Any] = {}
    if isinstance(error, ContextOverflow) and error.n_prompt:
        n_ctx = error.n_most + 1  # one token is left for the reply
        message = f"request ({error.n_prompt} tokens) exceeds the available context size ({n_ctx} tokens)"
        kind, more = "exceed_context_size_error", {"n_prompt_tokens": error.n_prompt, "n_ctx": n_ctx}
    return encode({"error": {"code": error.http_status, "message": message, "type": kind, **more}}).encode()
