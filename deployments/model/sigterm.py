"""What a replica does on SIGTERM, which it gets when its node goes away.

Ray's own handler raises `SystemExit`. Where it strikes while a task's code runs, as it does around
the first token of a stream, Ray ends the process without any exit handler, and nothing is saved
(measured: two of six). So the handler is replaced by one that wakes a thread, which saves in peace
while the event loop still delivers, and then ends the process.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class SigtermWatch:
    """From its construction, on any thread, until the process ends."""

    def __init__(self, work: Callable[[], None], leave: Callable[[int], object] = os._exit) -> None:
        """`work` runs on a thread of its own at the first SIGTERM, then `leave` with the exit
        status.
        """
        self._work = work
        self._leave = leave
        self._told, told = os.pipe()
        self.thread = threading.Thread(target=self._watch, name="erllama-sigterm", daemon=True)
        self.thread.start()
        # Serve makes replicas on its event loop's thread, where `signal.signal` is forbidden. This
        # is not; it writes where the signal struck into the pipe, and writing is all we need.
        faulthandler.register(signal.SIGTERM, file=told, all_threads=False, chain=False)

    def _watch(self) -> None:
        os.read(self._told, 1)
        try:
            self._work()
        except Exception:  # what was not saved is computed again
            log.exception("SIGTERM: not everything could be saved")
        self._leave(0)
