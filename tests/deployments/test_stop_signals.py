"""Ctrl-C, SIGTERM and SIGHUP are one and the same to the process that serves."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from deployments.stop_signals import StopSignals
from tests.support.serve_process import ROOT
from tests.support.store_kit import wait_until

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


CHILD = """
import os, signal, subprocess, sys, time
from deployments.stop_signals import StopSignals

def others(number, frame):
    sys.exit("Ray's own")

signals = StopSignals()
with signals.end_at_once():
    if "nohup" in sys.argv:
        os.kill(os.getpid(), signal.SIGHUP)
    signal.signal(signal.SIGTERM, others)
    mask = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    subprocess.run([sys.executable, "-c", mask], preexec_fn=lambda: None)
    child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    if "late" not in sys.argv:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(60)
os.kill(os.getpid(), int(sys.argv[1]))
try:
    signals.install()
except KeyboardInterrupt:
    child.kill()
    print("as Ctrl-C")
"""


def start(number: int, *how: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(int(number)), *how]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN) if "nohup" in how else None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    finally:
        if ignored is not None:
            signal.signal(signal.SIGHUP, ignored)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_the_very_start_ends_all_at_once_whatever_handlers_there_are(number):
    done = start(number)
    assert (done.returncode, done.stderr) == (128 + number, "")
    mask, child = done.stdout.splitlines()
    assert mask == "[]", "children would inherit blocked signals"
    wait_until(lambda: is_gone(int(child)))  # the kernel takes its moment


def test_a_signal_between_the_very_start_and_the_rest_waits_for_its_handler():
    done = start(signal.SIGTERM, "late")
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "as Ctrl-C")


def test_under_nohup_a_closed_terminal_does_not_end_the_very_start_either():
    assert start(signal.SIGTERM, "nohup").returncode == 128 + signal.SIGTERM


@pytest.mark.usefixtures("signals")  # which puts the handlers back
def test_under_nohup_a_closed_terminal_stops_nothing():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals = StopSignals()
    signals.install()
    signal.raise_signal(signal.SIGHUP)
    assert not signals.stop.is_set()
