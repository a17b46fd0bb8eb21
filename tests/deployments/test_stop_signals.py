"""Ctrl-C, SIGTERM and SIGHUP are one and the same to the process that serves."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from deployments.stop_signals import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    signals = StopSignals()
    signals.install()
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_start_is_broken_off_and_a_stop_is_asked_for_once_and_then_urged(signals, number):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signals.stop.is_set()
    signals = StopSignals()
    signals.install()
    signals.defer()
    signal.raise_signal(number)
    assert (signals.stop.is_set(), signals.hurry.is_set()) == (True, False)
    signal.raise_signal(signal.SIGTERM)
    assert signals.hurry.is_set()


def test_under_nohup_a_closed_terminal_stops_nothing(signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install()
    signal.raise_signal(signal.SIGHUP)
    assert not signals.stop.is_set()
