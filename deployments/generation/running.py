"""What models that run tell of themselves; one that sleeps is not woken for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from deployments.http.model_library import LibraryModel, ModelPhase
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


@dataclass(frozen=True, slots=True)
class ModelState:
    """Where a model is; `of_library` is what is known of one of the hub."""

    phase: ModelPhase
    of_library: LibraryModel | None = None


async def states_of(
    models: Iterable[ServedModel], of_library: Iterable[LibraryModel], timeout_s: float
) -> list[ModelState]:
    """Where each is: those of the hub as its manager has told, configured ones as they answer."""
    known = {model.id: model for model in of_library}

    async def state(model: ServedModel) -> ModelState:
        if model.on_demand:
            found = known.get(model.id)
            return ModelState(ModelPhase.UNLOADED if found is None else found.standing.phase, found)
        try:
            async with asyncio.timeout(timeout_s):
                ready = await model.client.ready()
        except (TimeoutError, ErllamaError):
            return ModelState(ModelPhase.FAILED)
        return ModelState(ModelPhase.SLEEPING if ready is None else ModelPhase.LOADED if ready else ModelPhase.LOADING)

    return await asyncio.gather(*map(state, models))


async def _answer(model: ServedModel, ask: Callable[[], Awaitable[T]], timeout_s: float) -> T | None:
    try:
        async with asyncio.timeout(timeout_s):
            return await ask() if await model.client.ready() else None
    except (TimeoutError, ErllamaError):
        return None
