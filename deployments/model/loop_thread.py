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
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from erllama.errors import EngineStopped

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _End:
    """The last of a stream: None, or what the stream raised."""

    error: BaseException | None


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
        arrived: SimpleQueue[T | _End] = SimpleQueue()
        task = self.run(_started(items, arrived))
        end: _End | None = None
        try:
            while end is None:
                item = arrived.get()
                if isinstance(item, _End):
                    end = item
                else:
                    yield item
        finally:
            if end is None:
                self._cancel(task)
                # Garbage collection closes a forgotten generator on any thread: the loop's own must
                # not wait for itself.
                while threading.current_thread() is not self._thread and not isinstance(arrived.get(), _End):
                    pass
        if end.error is not None:
            raise end.error

    def _cancel(self, task: asyncio.Task[None]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and the task with it
            self._loop.call_soon_threadsafe(task.cancel)

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


async def _started(items: AsyncGenerator[T, None], arrived: SimpleQueue[T | _End]) -> asyncio.Task[None]:
    """A task that reads `items` into `arrived`; `_End` is put there whatever ends it, even before
    its first step."""

    def ended(task: asyncio.Task[None]) -> None:
        arrived.put(_End(_closed() if task.cancelled() else task.exception()))

    task = asyncio.get_running_loop().create_task(_read(items, arrived))
    task.add_done_callback(ended)
    return task


async def _read(items: AsyncGenerator[T, None], arrived: SimpleQueue[T | _End]) -> None:
    async with aclosing(items):
        async for item in items:
            arrived.put(item)


def _closed() -> EngineStopped:
    return EngineStopped("the client is closed")
