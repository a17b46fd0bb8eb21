"""What models that run tell of themselves; one that sleeps is not woken for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from deployments.http.model_library import ModelPhase
from deployments.http.ports import ServedModel
from deployments.http.registry import TenantModels
from erllama.errors import ErllamaError
from erllama.stats import EngineStats, ModelInfo

T = TypeVar("T")


async def infos(models: Iterable[ServedModel], timeout_s: float) -> list[ModelInfo | None]:
    """What each is, None for one that does not answer in time."""
    return await asyncio.gather(*(_answer(model, model.client.model_info, timeout_s) for model in models))


async def engine_stats(model: ServedModel, timeout_s: float) -> list[EngineStats]:
    """What the replicas of a model are doing; none of one that does not answer in time."""
    return await _answer(model, model.client.stats, timeout_s) or []


async def phases_of(models: Iterable[ServedModel], known: TenantModels, timeout_s: float) -> list[ModelPhase]:
    """Where each is: those of the hub as its manager tells, configured ones as they answer."""
    of_hub = {model.id: model.standing.phase for model in await known.of_library()}

    async def phase(model: ServedModel) -> ModelPhase:
        if model.on_demand:
            return of_hub.get(model.id, ModelPhase.UNLOADED)
        try:
            async with asyncio.timeout(timeout_s):
                ready = await model.client.ready()
        except (TimeoutError, ErllamaError):
            return ModelPhase.FAILED
        return ModelPhase.SLEEPING if ready is None else ModelPhase.LOADED if ready else ModelPhase.LOADING

    return await asyncio.gather(*map(phase, models))


async def _answer(model: ServedModel, ask: Callable[[], Awaitable[T]], timeout_s: float) -> T | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await ask() if await model.client.ready() else None
    except (TimeoutError, ErllamaError):
        return None
