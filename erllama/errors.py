"""Every error that leaves the engine.

    ErllamaError
    ├── RequestError            the caller's fault: HTTP 4xx, nothing was computed
    │   ├── InvalidParameter    400  a value is of the wrong type, out of range, or an unknown name
    │   ├── ContextOverflow     400  the prompt does not fit into the context (names both numbers)
    │   ├── NotSupported        400  this model cannot do that (no template, no embeddings, ...)
    │   ├── ModelNotFound       404  no model of that id is served
    │   ├── SessionNotFound     404  no session of that id is known here
    │   ├── TranscriptMismatch  409  a session's tokens are not what the caller thinks;
                                     `diverges_at` says from where on
    │   └── QueueFull           429  the bounded queue is full; `retry_after_s` says when to come
                                     back
    ├── ModelLoadError          500  a GGUF or an adapter is missing, malformed or of another
                                     architecture
    ├── EngineStopped           503  the engine is shutting down or its thread has died; resumable
    ├── DecodeAborted           503  a decode exceeded its time budget; resumable
    ├── ContextLost             503  the context went with a neighbour's aborted decode; resumable
    └── DecodeFailed            500  llama.cpp refused a batch; the sequence is lost, the model
                                     lives

Each class carries `http_status` and `code`, so that an HTTP dialect only chooses the shape of the
body, and `resumable`: whether the same request may go on elsewhere (`GenerationRequest.resumed`),
because the fault was the replica's and not the request's. Instances pickle: they travel from a
replica to the ingress as the payload of a `Failed` event, never as a raised exception that loses
its type on the way. Any other exception is a bug.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ErllamaError(Exception):
    """Base class. `message` is a sentence for the caller; `param` names the offending field, or is
    None.
    """

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    resumable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.param, self.retry_after_s))


def _rebuild(cls: type[ErllamaError], message: str, param: str | None, retry_after_s: int | None) -> ErllamaError:
    return cls(message, param=param, retry_after_s=retry_after_s)


class RequestError(ErllamaError):
    """The request cannot be served as it stands; sending it again unchanged is pointless (except
    `QueueFull`).
    """

    http_status = 400
    code = "invalid_request"


class InvalidParameter(RequestError):
    """A parameter has the wrong type, is out of its range, or is not known at all. `param` is its
    name.
    """

    code = "invalid_parameter"


class ContextOverflow(RequestError):
    """The prompt (plus one token to generate) does not fit into the context of one sequence."""

    code = "context_length_exceeded"


class NotSupported(RequestError):
    """The model, or this build of it, has no such ability."""

    code = "not_supported"


class ModelNotFound(RequestError):
    """No deployment serves the model that the request names."""

    http_status = 404
    code = "model_not_found"


class SessionNotFound(RequestError):
    """No session of that id is known: it never was, has ended, or the model was restarted. Send the
    whole prompt.
    """

    http_status = 404
    code = "session_not_found"


class TranscriptMismatch(RequestError):
    """The tokens committed to a session are not those the caller expects. They agree before index
    `diverges_at`.
    """

    http_status = 409
    code = "transcript_mismatch"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None, diverges_at: int = 0
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.diverges_at = diverges_at

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild_mismatch, (self.message, self.param, self.retry_after_s, self.diverges_at))


def _rebuild_mismatch(
    message: str, param: str | None, retry_after_s: int | None, diverges_at: int
) -> TranscriptMismatch:
    return TranscriptMismatch(message, param=param, retry_after_s=retry_after_s, diverges_at=diverges_at)


class QueueFull(RequestError):
    """The bounded queue of the engine is full. Nothing was admitted; retry after
    `retry_after_s`.
    """

    http_status = 429
    code = "queue_full"


class ModelLoadError(ErllamaError):
    """A model or adapter file is missing, malformed, or does not fit; the message says which and
    why.
    """

    code = "model_load_error"


class EngineStopped(ErllamaError):
    """The engine takes no more requests: it is shutting down, or its thread died of a bug (the
    message tells).
    """

    http_status = 503
    code = "engine_stopped"
    resumable = True


class DecodeAborted(ErllamaError):
    """A decode exceeded its time budget and was aborted. The model recovers in place; the request
    may go on from what it delivered.
    """

    http_status = 503
    code = "decode_aborted"
    resumable = True


class ContextLost(ErllamaError):
    """The context was made anew because a neighbour's decode was aborted; the request may go on
    from what it delivered.
    """

    http_status = 503
    code = "context_lost"
    resumable = True


class DecodeFailed(ErllamaError):
    """llama.cpp refused a batch. The sequences of that batch end with this error; the model stays
    usable.
    """

    code = "decode_failed"


class IllegalTransition(AssertionError):
    """A bug of ours: an event that the state machine does not allow. Raised before anything
    changed.
    """
