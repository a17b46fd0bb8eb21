"""What the parts of a `Model` have in common: one engine, reached through its loop, and one vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from erllama.backend.base import ModelBackend, Vocab
from erllama.engine.engine import Engine
from erllama.engine.loop import EngineLoop
from erllama.errors import EngineStopped

T = TypeVar("T")


class ModelPart:
    """Any thread. `Model` sets the attributes."""

    _backend: ModelBackend
    _loop: EngineLoop
    _closed: bool

    def _call(self, function: Callable[[Engine], T]) -> T:
        """What `function` returns, called between two steps of the engine."""
        return self._loop.call(function).result()

    @property
    def _vocab(self) -> Vocab:
        """Raises `EngineStopped` after `shutdown`: the vocabulary goes with the model."""
        if self._closed:
            raise EngineStopped("the model has been shut down")
        return self._backend.vocab
