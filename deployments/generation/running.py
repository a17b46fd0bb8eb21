"""What models that run tell of themselves; one that sleeps is not woken for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from deployments.http.ports import ServedModel
from erllama.errors import ErllamaError
from erllama.stats import EngineStats, ModelInfo

T = TypeVar("T")


async def infos(models: Iterable[ServedModel], timeout_s: float) -> list[ModelInfo | None]:
    """What each is, None for one that does not answer in time."""
    return await asyncio.gather(*(_answer(model, model.client.model_info, timeout_s) for model in models))


async def engine_stats(model: ServedModel, timeout_s: float) -> list[EngineStats]:
    """What the replicas of a model are doing; none of one that does not answer in time."""
    return await _answer(model, model.client.stats, timeout_s) or []


async def _answer(model: ServedModel, ask: Callable[[], Awaitable[T]], timeout_s: float) -> T | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await ask() if await model.client.ready() else None
    except (TimeoutError, ErllamaError):
        return None
