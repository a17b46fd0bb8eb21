"""What tests of a replica ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from deployments.model.replica import ModelReplica
from erllama.events import Completion, CompletionParts, Failed
from erllama.request import build_request


async def complete(replica: ModelReplica, tokens: Sequence[int], **params: Any) -> Completion:
    """A whole reply. Raises the error that ended it."""
    parts = CompletionParts()
    async with aclosing(replica.generate(build_request("complete", tokens, params))) as lists:
        async for events in lists:
            for event in events:
                whole = parts.add(event)
                if isinstance(whole, Failed):
                    raise whole.error
                if whole is not None:
                    return whole
    raise AssertionError("a request ended without Done or Failed")
