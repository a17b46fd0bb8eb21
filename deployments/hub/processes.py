"""The processes of the hub's models: started, watched, put to sleep and ended, by a `Launcher`.

Owned by the manager's event loop. What takes time runs as a task, and the model is LEAVING, or not
settled, until it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Protocol

from deployments.hub.policy import Residence
from deployments.hub.residents import Loadable, Running
from deployments.model.states import LoadState, Phase
from erllama.stats import ModelMemory

log = logging.getLogger(__name__)

_LOOK_S = 5.0  # how often models in memory are asked how they are


class Launcher(Protocol):
    """What runs models: an application of Serve for each, known by its name. Any method may raise."""

    async def find(self) -> list[Running]:
        """The models that run already, each as far as it can be told."""

    async def start(self, loadable: Loadable, node_id: str) -> str:
        """Begin to load a model; returns the application's name, before it is loaded."""

    async def state(self, app_name: str) -> LoadState:
        """How the loading of a model goes."""

    async def look(self, app_name: str) -> tuple[str, ModelMemory] | None:
        """The node of a model and what it has in memory there; None when it does not answer yet."""

    async def sleep(self, app_name: str) -> bool:
        """Save and unload; False when the model is in use."""

    async def end(self, app_name: str) -> None:
        """End the application, what it holds saved. Returns when it is gone."""

    def deployment(self, app_name: str) -> str:
        """The name of the application's deployment."""


class Processes:
    """`changed` is called when something has come to its end, `failed` with a model and the reason when
    it could not be loaded.
    """

    def __init__(
        self,
        launcher: Launcher,
        clock: Callable[[], int],
        changed: Callable[[], None],
        failed: Callable[[str, str], None],
    ) -> None:
        self._launcher = launcher
        self._clock = clock
        self._changed = changed
        self._failed = failed
        self._running: dict[str, Running] = {}
        self._looked_ns = 0
        self._tasks: set[asyncio.Task[object]] = set()
        self.swaps = Counter[str]()

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._running.values()))

    def get(self, model_id: str) -> Running | None:
        return self._running.get(model_id)

    def is_awake(self, model_id: str) -> bool:
        running = self._running.get(model_id)
        return running is not None and running.residence is Residence.AWAKE

    def close(self) -> None:
        """Wait for nothing more. Idempotent."""
        for task in list(self._tasks):
            task.cancel()

    async def recover(self) -> None:
        """Take over what runs."""
        self._running = {running.model_id: running for running in await self._launcher.find()}

    def deployment(self, running: Running) -> str:
        return self._launcher.deployment(running.app_name)

    def wake(self, loadable: Loadable, node_id: str) -> None:
        """Its memory counts from now on; its requests may be sent once it has an application."""
        now_ns = self._clock()
        running = self._running.get(loadable.model_id)
        if running is None:
            running = Running(loadable, "", node_id, Residence.AWAKE, now_ns, now_ns)
            self._running[loadable.model_id] = running
            self._spawn(self._start(running))
        running.residence, running.settled_ns = Residence.AWAKE, None
        running.awake_since_ns = running.last_used_ns = now_ns
        self.swaps["wake"] += 1
        log.info("event=hub_wake model=%s node=%s bytes=%d", loadable.model_id, node_id, loadable.need_bytes)
        self._changed()

    def begin_sleep(self, running: Running, reason: str) -> None:
        running.residence = Residence.LEAVING
        self._spawn(self.sleep(running, reason))

    def begin_end(self, running: Running) -> None:
        running.residence, running.ends = Residence.LEAVING, True
        self._spawn(self.end(running))

    async def sleep(self, running: Running, reason: str) -> bool:
        """False when requests run after all."""
        running.residence = Residence.LEAVING
        slept = False
        try:
            slept = await self._launcher.sleep(running.app_name)
        except Exception:  # the next look says what is in memory
            log.exception("event=hub_sleep_failed model=%s", running.model_id)
        running.residence = Residence.ASLEEP if slept else Residence.AWAKE
        running.n_running = 0 if slept else max(1, running.n_running)  # it is asked again after the next look
        if slept:
            running.settled_ns = self._clock()
            self.swaps[f"sleep {reason}"] += 1
        log.info("event=hub_sleep model=%s reason=%s outcome=%s", running.model_id, reason, "done" if slept else "kept")
        self._changed()
        return slept

    async def end(self, running: Running) -> None:
        """Returns when the process is gone."""
        running.residence, running.ends = Residence.LEAVING, True
        try:
            if running.app_name:
                await self._launcher.end(running.app_name)
        except Exception:  # a later plan ends it again
            log.exception("event=hub_end_failed model=%s", running.model_id)
            running.residence, running.ends = Residence.ASLEEP, False
        else:
            if self._running.get(running.model_id) is running:
                del self._running[running.model_id]
            self.swaps["remove"] += 1
            log.info("event=hub_removed model=%s", running.model_id)
        self._changed()

    async def look(self) -> None:
        """See how the models are: those that load each time, the others every few seconds."""
        now_ns = self._clock()
        due = now_ns - self._looked_ns >= int(_LOOK_S * 1e9)
        self._looked_ns = now_ns if due else self._looked_ns
        looked = [
            running
            for running in self
            if running.app_name and running.residence is not Residence.LEAVING and (due or running.settled_ns is None)
        ]
        await asyncio.gather(*map(self._look, looked))

    async def _start(self, running: Running) -> None:
        try:
            running.app_name = await self._launcher.start(running.loadable, running.node_id)
        except Exception as error:  # of Ray or Serve, whatever it is: those who wait are told
            log.exception("event=hub_start_failed model=%s", running.model_id)
            self._load_failed(running, f"it cannot be started: {error!r:.300}")
        self._changed()

    async def _look(self, running: Running) -> None:
        seen = await self._launcher.look(running.app_name)
        if running.residence is Residence.LEAVING:  # meanwhile
            return
        if seen is not None:
            running.node_id, memory = seen
            running.n_running = memory.n_running + memory.n_queued
            self._settle(running, memory.weights_loaded or memory.has_context)
        elif running.settled_ns is None and running.residence is Residence.AWAKE:
            state = await self._launcher.state(running.app_name)
            if state.phase is Phase.FAILED:
                self._load_failed(running, state.reason)

    def _settle(self, running: Running, in_memory: bool) -> None:
        """What was seen is what is: the scheduler may have unloaded a model that we thought in memory,
        a request of a job that came past us may have loaded one that slept.
        """
        if running.settled_ns is None:
            running.settled_ns = self._clock() if in_memory else None
        elif in_memory and running.residence is Residence.ASLEEP:
            running.residence, running.awake_since_ns = Residence.AWAKE, self._clock()
        elif not in_memory and running.residence is Residence.AWAKE and not running.n_running:
            running.residence = Residence.ASLEEP

    def _load_failed(self, running: Running, reason: str) -> None:
        self._failed(running.model_id, reason)
        self.begin_end(running)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
