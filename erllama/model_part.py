"""What the parts of a `Model` have in common: one engine, reached through its loop, how requests get
there, and one vocabulary.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from erllama.backend.base import ModelBackend, Vocab
from erllama.engine.engine import Engine
from erllama.engine.loop import EngineLoop
from erllama.errors import EngineStopped
from erllama.request import GenerationRequest, build_request
from erllama.stream import InferStream

T = TypeVar("T")


class ModelPart:
    """Any thread. `Model` sets the attributes."""

    _backend: ModelBackend
    _loop: EngineLoop
    _closed: bool

    def infer(self, tokens: Sequence[int], params: Mapping[str, Any] | None = None, **more: Any) -> InferStream:
        """Queue a prompt, first in, first out, and return its stream of events at once."""
        request = build_request(uuid.uuid4().hex, tokens, {**(params or {}), **more})
        return self.submit(request)

    def submit(self, request: GenerationRequest) -> InferStream:
        """Like `infer`, for a request that is built already."""
        stream = InferStream(request.request_id, self._loop.cancel)
        self._loop.submit(request, stream)
        return stream

    def _call(self, function: Callable[[Engine], T]) -> T:
        """What `function` returns, called between two steps of the engine."""
        return self._loop.call(function).result()

    @property
    def _vocab(self) -> Vocab:
        """Raises `EngineStopped` after `shutdown`: the vocabulary goes with the model."""
        if self._closed:
            raise EngineStopped("the model has been shut down")
        return self._backend.vocab
