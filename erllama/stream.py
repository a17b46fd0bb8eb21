"""The events of one request as its caller reads them."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Self

from erllama.errors import InvalidParameter
from erllama.events import Completion, CompletionParts, Done, Event, Failed


def seconds_until(give_up: float) -> float:
    """What is left of a bound, by the monotonic clock."""
    return max(0.0, give_up - time.monotonic())


class InferStream:
    """Iterates over `Tokens` ..., then `Done` or `Failed`. `ref` is what `Model.cancel` takes.

    Leaving a `with` block, or `close()`, cancels what is still running. The engine thread puts
    events in, one other thread takes them out.
    """

    def __init__(self, ref: str, cancel: Callable[[str], None]) -> None:
        self.ref = ref
        self._cancel = cancel
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ended = False

    def put(self, event: Event) -> None:
        """Engine thread: append an event."""
        self._events.put(event)

    def __iter__(self) -> Iterator[Event]:
        return self._until(None)

    def result(self, timeout_s: float | None = None) -> Completion:
        """Wait for the reply. Raises the request's error, or `TimeoutError`, which cancels."""
        parts = CompletionParts()
        for event in self._until(None if timeout_s is None else time.monotonic() + timeout_s):
            match parts.add(event):
                case Completion() as completion:
                    return completion
                case Failed(error):
                    raise error
        raise InvalidParameter("this stream has been read already", param="ref")

    def _until(self, give_up: float | None) -> Iterator[Event]:
        while not self._ended:
            try:
                event = self._events.get(timeout=None if give_up is None else seconds_until(give_up))
            except queue.Empty:
                self.close()
                raise TimeoutError(f"request {self.ref} did not end in time") from None
            self._ended = isinstance(event, Done | Failed)
            yield event

    def close(self) -> None:
        """Cancel the request if it still runs. Idempotent."""
        if not self._ended:
            self._cancel(self.ref)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
