"""A call to every replica of a model that ends at a deadline, whatever one of them does."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.http.answers import Answer
from deployments.model.ray_errors import ModelUnavailable, mapped_errors
from erllama.errors import ErllamaError


async def ask_each(handle: DeploymentHandle[Any], deadline_s: float, method: str, *args: Any) -> list[Answer[Any]]:
    """What each running replica answers within `deadline_s`; a `ModelUnavailable` stands for those that
    do not. Empty when none runs. Raises an `ErllamaError` when the replicas cannot be asked at all.

    Serve's own `results_async` has one timeout for all: a replica that hangs would hide what the
    others said.
    """
    give_up = time.monotonic() + deadline_s
    try:
        async with asyncio.timeout(deadline_s):
            with mapped_errors():
                replicas = await handle.broadcast(method, *args)._fetch_replica_results_async()
    except TimeoutError:
        raise _silent(deadline_s) from None
    return await asyncio.gather(*[_answer(replica, give_up, deadline_s) for replica in replicas])


async def _answer(replica: Any, give_up: float, deadline_s: float) -> Answer[Any]:
    try:
        async with asyncio.timeout(max(0.0, give_up - time.monotonic())):
            with mapped_errors():
                return Answer(await replica.get_async())
    except TimeoutError:
        replica.cancel()
        return Answer(error=_silent(deadline_s))
    except ErllamaError as error:
        return Answer(error=error)


def _silent(deadline_s: float) -> ModelUnavailable:
    return ModelUnavailable(f"a replica of the model did not answer within {deadline_s:g} s", retry_after_s=1)
