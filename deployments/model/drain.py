"""How a replica learns that Serve has begun to stop it, while its requests still run.

Serve stops routing to the replica, waits for its requests and calls the destructor when they have
ended, or kills it after `graceful_shutdown_timeout_s`. It tells user code nothing before that. The
only sign is a flag on its own replica object; the two private names that lead there are in
`serve_is_stopping`. If another Ray lacks them, nothing is noticed early: requests then run to their
end or to the kill, and go on elsewhere from what was saved by then.

When the application is deleted its streams can end with an error event. Serve's full shutdown
kills the HTTP proxies at once: streams break there, whatever a replica does. Hence
`deployments/service.py` asks every replica to `leave` before it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

log = logging.getLogger(__name__)

PERIOD_S = 0.5


def serve_is_stopping() -> bool:
    """Whether Serve has begun to stop the replica that this process is; False outside of one, or
    when Ray has changed."""
    worker = ray._private.worker.global_worker
    actor = getattr(worker, "actors", {}).get(getattr(worker, "actor_id", None))
    replica = getattr(actor, "_replica_impl", None)  # Serve's own object
    return bool(getattr(replica, "_shutting_down", False))


def app_is_deleted() -> bool:
    """Whether the whole application of this replica goes, and not just this replica. Asks Serve's
    controller."""
    try:
        name = serve.get_replica_context().app_name
        application = serve.status().applications.get(name)
    except Exception as error:  # the controller may be gone already
        log.info("the application's state is unknown: %r", error)
        return True
    return application is None or application.status == ApplicationStatus.DELETING


def watch_drain(on_drain: Callable[[], None], is_stopping: Callable[[], bool] = serve_is_stopping) -> threading.Thread:
    """Calls `on_drain` once, on the thread that is returned, when `is_stopping` first says so."""

    def watch() -> None:
        while not is_stopping():
            time.sleep(PERIOD_S)
        try:
            on_drain()
        except Exception:  # Serve's own stop goes on; what was not saved is computed again
            log.exception("drain failed")

    thread = threading.Thread(target=watch, name="erllama-drain", daemon=True)
    thread.start()
    return thread
