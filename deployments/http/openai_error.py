"""An error in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`: whole as a body or
as data in a stream.
"""

from __future__ import annotations

import json

from erllama.errors import ErllamaError

_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_type(http_status: int) -> str:
    """OpenAI's `type` of a status; 4xx without a name of its own is an `invalid_request_error`, 5xx
    a `server_error`.
    """
    return _ERROR_TYPES.get(http_status) or ("invalid_request_error" if http_status < 500 else "server_error")


def error_body(error: ErllamaError) -> bytes:
    fields = {"message": error.message, "type": error_type(error.http_status), "param": error.param, "code": error.code}
    return json.dumps({"error": fields}, ensure_ascii=False).encode()
