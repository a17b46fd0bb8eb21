"""An event loop for plain code: results, streams, and that nothing goes on which nobody waits
for.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from deployments.jobs.loop_thread import LoopThread
from erllama.errors import EngineStopped

WAIT_S = 20.0


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


class Source:
    """Gives `n` numbers, then raises `error`, or waits for ever where there is none and `n` were
    not the last.
    """

    def __init__(self, n: int, error: Exception | None = None, *, ends: bool = True) -> None:
        self.waits, self.closed = threading.Event(), threading.Event()
        self._n, self._error, self._ends = n, error, ends

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for i in range(self._n):
                yield i
            if self._error is not None:
                raise self._error
            if not self._ends:
                self.waits.set()
                await asyncio.Event().wait()
        finally:
            self.closed.set()


def test_a_call_returns_what_the_coroutine_returns_and_raises_what_it_raises(loop):
    async def work(x: int) -> int:
        if x < 0:
            raise ValueError("negative")
        return x + 1

    assert loop.run(work(1)) == 2
    with pytest.raises(ValueError, match="negative"):
        loop.run(work(-1))


def test_all_calls_run_on_one_loop_whatever_their_threads(loop):
    async def where() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda _: loop.run(where()), range(8)))) == 1


def test_a_stream_gives_all_items_in_order(loop):
    source = Source(1000)
    assert list(loop.stream(source.items())) == list(range(1000))
    assert source.closed.is_set()


def test_the_error_of_a_stream_comes_after_its_items(loop):
    stream = loop.stream(Source(2, ValueError("broken")).items())
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(stream)


def test_a_stream_that_nobody_reads_does_not_begin(loop):
    source = Source(1)
    loop.stream(source.items()).close()
    assert not source.closed.is_set()


def test_a_stream_that_is_forgotten_may_be_closed_on_the_loop_itself(loop):
    """Garbage is collected on any thread."""
    source = Source(1, ends=False)
    stream = loop.stream(source.items())
    next(stream)

    async def collect() -> None:
        stream.close()

    loop.run(collect())
    assert source.closed.wait(WAIT_S)


@pytest.mark.parametrize("interrupt", [GeneratorExit, KeyboardInterrupt, ValueError])
def test_leaving_a_stream_closes_its_source_before_it_returns(loop, interrupt):
    source = Source(1, ends=False)
    stream = loop.stream(source.items())
    assert next(stream) == 0
    with pytest.raises(interrupt):
        stream.throw(interrupt())
    assert source.closed.is_set()


def test_whoever_waits_when_the_loop_is_closed_gets_an_error(loop):
    source = Source(0, ends=False)
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(2) as threads:
        reader = threads.submit(next, loop.stream(source.items()))
        caller = threads.submit(loop.run, wait())
        assert source.waits.wait(WAIT_S)
        assert waiting.wait(WAIT_S)
        loop.close()
        for future in (reader, caller):
            with pytest.raises(EngineStopped, match="closed"):
                future.result(WAIT_S)
    assert source.closed.is_set()


def test_after_close_which_is_idempotent_calls_are_refused(loop):
    loop.close()
    loop.close()
    with pytest.raises(EngineStopped, match="closed"):
        loop.run(asyncio.sleep(0))
    with pytest.raises(EngineStopped, match="closed"):
        next(loop.stream(Source(1).items()))


def test_a_stream_can_be_left_after_its_loop_was_closed(loop):
    source = Source(1, ends=False)
    stream = loop.stream(source.items())
    next(stream)
    loop.close()
    stream.close()
    assert source.closed.is_set()


def test_a_loop_that_nobody_holds_ends():
    loop = LoopThread()
    thread = loop._thread
    del loop
    gc.collect()
    thread.join(WAIT_S)
    assert not thread.is_alive()


def test_an_error_of_a_call_that_was_handled_holds_nothing():
    loop = LoopThread()

    async def fail() -> None:
        raise ValueError("broken")

    gc.disable()  # what is left must go by itself
    try:
        with suppress(ValueError):  # `pytest.raises` would hold the error
            loop.run(fail())
        thread = loop._thread
        del loop
        thread.join(WAIT_S)
        assert not thread.is_alive()
    finally:
        gc.enable()
