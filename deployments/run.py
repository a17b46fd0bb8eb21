"""`python -m deployments.run CONFIG`: what the launcher becomes. Serves the applications of a checked
config until a signal, then stops them in order.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from deployments.stop_signals import StopSignals

log = logging.getLogger("ray.serve")  # which Ray shows on the console


def main(argv: Sequence[str]) -> None:
    """Runs until a signal; exits with 0 then, or with 128 and its number before Ray is up."""
    signals = StopSignals()
    with signals.end_at_once():
        from deployments.service import Service  # imports Ray, a second or more

        service = Service(Path(argv[0]))
    try:
        signals.install()
        service.start()
        service.watch(signals)
    except KeyboardInterrupt:  # while it started
        pass
    finally:
        signals.defer()
        signals.stop.set()
        started = time.monotonic()
        log.info("Stopping: streams may end by themselves, the rest is told and saved. A second signal does not wait.")
        service.stop(signals)
        log.info("Stopped in %.1f s.", time.monotonic() - started)


if __name__ == "__main__":
    main(sys.argv[1:])
