"""An event loop on a thread of its own: how plain code uses what is written for asyncio.

Any number of threads may call, at once. None of them may be the loop's own: it would wait for
itself.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Coroutine, Generator
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from erllama.errors import EngineStopped

T = TypeVar("T")


class LoopThread:
    """Runs from its construction until `close`, or until nobody refers to it any more."""

    def __init__(self) -> None:
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(_until_stopped(started)), name="erllama-client", daemon=True
        )
        self._thread.start()
        self._loop, stop = started.result()
        self._stop = weakref.finalize(self, _stop, self._loop, stop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns; raises what it raises. A thread that is interrupted here cancels
        it."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise _closed() from None
        try:
            return future.result()
        except CancelledError:  # by `close`
            raise _closed() from None
        finally:
            future.cancel()
            del future  # with its error it would refer to this frame, and keep `self` until garbage is collected

    def stream(self, items: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """The items, read by one task as they come. Closing the generator ends that task and waits
        until it has closed `items`."""
        arrived: SimpleQueue[Any] = SimpleQueue()  # the items, and at last the task
        task = self.run(_started(items, arrived))
        ended = False
        try:
            while not ended:
                item = arrived.get()
                ended = item is task
                if not ended:
                    yield item
        finally:
            if not ended:
                with suppress(RuntimeError):  # the loop has ended, and the task with it
                    self._loop.call_soon_threadsafe(task.cancel)
                # Garbage collection closes a forgotten generator on any thread: the loop's own must
                # not wait for itself.
                while threading.current_thread() is not self._thread and arrived.get() is not task:
                    pass
        if task.cancelled():
            raise _closed()
        task.result()

    def close(self) -> None:
        """Cancel what runs and end the thread. Idempotent."""
        self._stop()
        self._thread.join()


async def _until_stopped(started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    """`asyncio.run` cancels and awaits all other tasks after this one."""
    stop = asyncio.Event()
    started.set_result((asyncio.get_running_loop(), stop))
    await stop.wait()


def _stop(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(stop.set)


async def _started(items: AsyncGenerator[T, None], arrived: SimpleQueue[Any]) -> asyncio.Task[None]:
    """A task that reads `items` into `arrived`, where it is put itself whatever ends it, even
    before its first step."""
    task = asyncio.create_task(_read(items, arrived))
    task.add_done_callback(arrived.put)
    return task


async def _read(items: AsyncGenerator[T, None], arrived: SimpleQueue[Any]) -> None:
    async with aclosing(items):
        async for item in items:
            arrived.put(item)


def _closed() -> EngineStopped:
    return EngineStopped("the client is closed")
