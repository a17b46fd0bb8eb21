"""SIGTERM wakes a thread that saves, wherever the handler was asked for."""

from __future__ import annotations

import faulthandler
import signal
import threading
from collections.abc import Iterator

import pytest

from deployments.model.sigterm import SigtermWatch
from tests.support.bounds import NO_WAIT_S


@pytest.fixture(autouse=True)
def handler_as_before() -> Iterator[None]:
    yield
    faulthandler.unregister(signal.SIGTERM)


def save_and_leave(done: list[object], fails: bool = False) -> SigtermWatch:
    def work() -> None:
        done.append(threading.current_thread())
        if fails:
            raise RuntimeError("the disk is full")

    return SigtermWatch(work, done.append)


@pytest.mark.parametrize("fails", [False, True])
def test_the_work_is_done_off_the_main_thread_and_then_the_process_leaves(fails):
    done: list[object] = []
    watch = save_and_leave(done, fails)
    signal.raise_signal(signal.SIGTERM)
    watch.thread.join(NO_WAIT_S)
    assert done == [watch.thread, 0]


def test_it_may_be_asked_for_on_any_thread():
    done: list[object] = []
    watches: list[SigtermWatch] = []
    asking = threading.Thread(target=lambda: watches.append(save_and_leave(done)))
    asking.start()
    asking.join()
    signal.raise_signal(signal.SIGTERM)
    watches[0].thread.join(NO_WAIT_S)
    assert done == [watches[0].thread, 0]
