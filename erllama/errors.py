"""Every error that leaves the engine: a `RequestError` is the caller's fault (HTTP 4xx, nothing was
computed), the others are ours.

Each class carries `http_status` and `code`, so that an HTTP dialect only chooses the shape of the
body, and `resumable`: whether the same request may go on elsewhere (`GenerationRequest.resumed`),
because the fault was the replica's and not the request's. Instances pickle: they travel from a
replica to the ingress as the payload of a `Failed` event, never as a raised exception that loses
its type on the way. Any other exception is a bug.
"""

from __future__ import annotations

import math
from types import UnionType
from typing import ClassVar


class ErllamaError(Exception):
    """`message` is a sentence for the caller; `param` names the offending field, or is None."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    resumable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class RequestError(ErllamaError):
    """The request cannot be served; sending it again unchanged is pointless but for `QueueFull`."""

    http_status = 400
    code = "invalid_request"


class InvalidParameter(RequestError):
    """A parameter (`param`) has the wrong type, is out of its range, or is not known at all."""

    code = "invalid_parameter"


class ContextOverflow(RequestError):
    """The prompt (plus one token to generate) does not fit into the context of one sequence.

    `n_prompt` and `n_most` are its tokens and what would fit, 0 where that is not known.
    """

    code = "context_length_exceeded"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: int | None = None,
        n_prompt: int = 0,
        n_most: int = 0,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.n_prompt = n_prompt
        self.n_most = n_most


class NotSupported(RequestError):
    """The model, or this build of it, has no such ability."""

    code = "not_supported"


class ModelNotFound(RequestError):
    """No deployment serves the model that the request names."""

    http_status = 404
    code = "model_not_found"


class SessionNotFound(RequestError):
    """No session of that id is known: never, not any more, or not here. Send the whole prompt."""

    http_status = 404
    code = "session_not_found"


class PrefixNotFound(RequestError):
    """No prefix of that key is stored for this model: never, not any more, or not here."""

    http_status = 404
    code = "prefix_not_found"


class RequestNotFound(RequestError):
    """Nothing is remembered of a request of that id: never, not any more, or not for who asks."""

    http_status = 404
    code = "request_not_found"


class TranscriptMismatch(RequestError):
    """A session's tokens are not what the caller expects; they agree before index `diverges_at`."""

    http_status = 409
    code = "transcript_mismatch"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None, diverges_at: int = 0
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.diverges_at = diverges_at


class QueueFull(RequestError):
    """The bounded queue is full. Nothing was admitted; retry after `retry_after_s` seconds."""

    http_status = 429
    code = "queue_full"


class ModelLoadError(ErllamaError):
    """A model or adapter file is missing, malformed, or does not fit; the message says why."""

    code = "model_load_error"


class LoadFailedForNow(ModelLoadError):
    """llama.cpp has nothing against the file, but did not load it: as a rule, memory is short."""

    code = "model_load_failed"


class DoesNotFit(ModelLoadError):
    """The model needs more memory than it may have, however short its context is."""

    http_status = 503
    code = "model_does_not_fit"


class EngineStopped(ErllamaError):
    """The engine takes no more requests: it is shutting down, or its thread died of a bug."""

    http_status = 503
    code = "engine_stopped"
    resumable = True


class StoreUnavailable(ErllamaError):
    """The KV store could not do what was asked of it by name. Requests never meet this."""

    http_status = 503
    code = "store_unavailable"


class DecodeAborted(ErllamaError):
    """A decode exceeded its time budget. The model recovers; the request may go on elsewhere."""

    http_status = 503
    code = "decode_aborted"
    resumable = True


class ContextLost(ErllamaError):
    """The context went with a neighbour's aborted decode; the request may go on elsewhere."""

    http_status = 503
    code = "context_lost"
    resumable = True


class DecodeFailed(ErllamaError):
    """llama.cpp refused a batch. Its sequences end with this error; the model stays usable."""

    code = "decode_failed"


class IllegalTransition(AssertionError):
    """A bug of ours: the state machine does not allow a step. Raised before anything changed."""


def check(name: str, ok: bool, message: str) -> None:
    """Raise `InvalidParameter` for the parameter `name`, as the functions below do, unless `ok`."""
    if not ok:
        raise InvalidParameter(f"{name} {message}", param=name)


def check_type(name: str, value: object, kind: type | UnionType, words: str) -> None:
    """A value that `words` describe."""
    if not isinstance(value, kind):
        raise InvalidParameter(f"{name} must be {words}, got {value!r:.80}", param=name)


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    """An integer, no bool, from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParameter(f"{name} must be an integer, got {value!r}", param=name)
    _check_bounds(name, value, low, high)


def check_number(name: str, value: float, low: float, high: float | None = None) -> None:
    """A finite number, no bool, from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < math.inf:
        raise InvalidParameter(f"{name} must be a finite number, got {value!r}", param=name)
    _check_bounds(name, value, low, high)


def _check_bounds(name: str, value: float, low: float, high: float | None) -> None:
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidParameter(f"{name} must be {bounds}, got {value!r}", param=name)
