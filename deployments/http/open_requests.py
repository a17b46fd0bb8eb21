"""How many requests the HTTP app is answering, and the way to let them end when it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from erllama.errors import ErllamaError


class OpenRequests:
    """Counts what is being answered; after `refuse` it lets nobody in. One event loop."""

    def __init__(self) -> None:
        self._n_open = 0
        self._refusal: ErllamaError | None = None
        self._none_open = asyncio.Event()
        self._none_open.set()

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Around the answer to a request. Raises what `refuse` was given."""
        if self._refusal is not None:
            raise self._refusal
        self._n_open += 1
        self._none_open.clear()
        try:
            yield
        finally:
            self._n_open -= 1
            if not self._n_open:
                self._none_open.set()

    @property
    def refusing(self) -> bool:
        return self._refusal is not None

    def refuse(self, error: ErllamaError) -> None:
        """From here on requests are answered with `error`."""
        self._refusal = error

    async def all_ended(self, seconds: float) -> bool:
        """Wait for those that are being answered. Whether none is left."""
        if self._n_open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._none_open.wait(), seconds)
        return not self._n_open
