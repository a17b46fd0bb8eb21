"""What Ray and Serve raise when a handle is called, as the errors of `erllama.errors`. The one
place where that is known."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from erllama.errors import EngineStopped, ErllamaError, QueueFull

# By reference a dead replica is the first, and lost answers the others; over gRPC it is
# `ActorUnavailableError` or a bare RpcError.
_REPLICA_GONE = (RayActorError, NodeDiedError, WorkerCrashedError, OutOfMemoryError, ObjectLostError, grpc.RpcError)


class ModelUnavailable(EngineStopped):
    """No replica runs and Serve has stopped trying to start one, or none answered within a caller's
    `timeout_s`: asking again at once is pointless."""

    resumable = False


def _gone(error: BaseException) -> EngineStopped:
    lines = str(error).splitlines() or [repr(error)]
    return EngineStopped(f"the model's replica is gone: {lines[0]}", retry_after_s=1)


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn what a handle call raises into an `ErllamaError`; anything not listed is a bug and
    passes through."""
    try:
        yield
    except (ErllamaError, RayTaskError) as error:
        cause = getattr(error, "cause", None)  # RayTaskError inherits from its cause's class; the original is cleaner
        if isinstance(cause, ErllamaError):
            raise cause from None
        if isinstance(cause, asyncio.CancelledError):
            raise _gone(cause) from None
        raise
    except BackPressureError as error:
        raise QueueFull(str(error), retry_after_s=1) from None
    except DeploymentUnavailableError as error:
        raise ModelUnavailable(f"the model has no replica: {str(error).splitlines()[0]}", retry_after_s=1) from None
    except (asyncio.CancelledError, concurrent.futures.CancelledError, TaskCancelledError) as error:
        if _we_are_cancelled():
            raise asyncio.CancelledError from None
        raise _gone(error) from None  # a replica whose grace time is over cancels what it runs
    except _REPLICA_GONE as error:
        raise _gone(error) from None
    except RuntimeError as error:
        # how Serve wraps a gRPC status that it does not expect
        if not str(error).startswith("Unexpected error (StatusCode."):
            raise
        raise _gone(error) from None


def _we_are_cancelled() -> bool:
    """Whether the cancellation that arrives is our own task's, and not one that came over the
    wire."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # plain code
        return False
    return task is not None and task.cancelling() > 0


def silent() -> EngineStopped:
    """A replica that does not even send its heartbeat."""
    return EngineStopped("the model's replica has fallen silent", retry_after_s=1)


def unanswered() -> ModelUnavailable:
    """The time for a first answer is up."""
    return ModelUnavailable("no replica of the model answered in time: it is starting or very busy", retry_after_s=1)
