"""The manager with models that are made up: who is granted, what is started and put to sleep, and that
a manager that begins anew loses nothing.
"""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from deployments.config import HubSpec, ModelSpec
from deployments.http.model_library import ModelInUse, ModelPhase
from deployments.hub.manager import HubManager
from deployments.hub.messages import Granted, Waiting, Wanted
from deployments.hub.policy import Residence
from deployments.hub.residents import Loadable, Running
from deployments.hub.rooms import NodeReading
from deployments.model.ray_errors import ModelUnavailable
from deployments.model.states import LoadState, Phase
from erllama.errors import DoesNotFit, ModelNotFound
from erllama.stats import ModelMemory

pytestmark = pytest.mark.anyio

NEED, PROCESS = 100, 10


def loadable(model_id, digest="d1", need=NEED):
    return Loadable(model_id, digest, ModelSpec(id=model_id, path="demo"), need, PROCESS, f"build-{digest}")


@dataclass
class FakeLauncher:
    """Applications that load at once, unless their name is in `failing`."""

    apps: dict[str, ModelMemory] = field(default_factory=dict)
    found: list[Running] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    in_use: set[str] = field(default_factory=set)
    node: str = "n1"
    n_refused: int = 0
    log: list[str] = field(default_factory=list)

    async def find(self):
        return self.found

    async def start(self, loadable, node_id):
        name = f"{loadable.model_id}.{loadable.build}"
        self.log.append(f"start {name}")
        self.apps[name] = self.memory(loaded=True)
        return name

    def memory(self, *, loaded, n_running=0):
        return ModelMemory(0, 1 if loaded else 0, 0, n_running, 0, 0.0, loaded, loaded, False)

    async def state(self, app_name):
        failed = app_name in self.failing
        return LoadState(Phase.FAILED, "the file is broken") if failed else LoadState(Phase.LOADING)

    async def look(self, app_name):
        return None if app_name in self.failing else (self.node, self.apps[app_name])

    async def sleep(self, app_name):
        if app_name in self.in_use:
            self.n_refused += 1
            return False
        self.log.append(f"sleep {app_name}")
        self.apps[app_name] = self.memory(loaded=False)
        return True

    async def end(self, app_name):
        self.log.append(f"end {app_name}")
        self.apps.pop(app_name, None)

    def deployment(self, app_name):
        return f"model-{app_name}"


@dataclass
class FakeNodes:
    total: int = 10_000
    names: tuple[str, ...] = ("n1",)

    async def read(self):
        return [NodeReading(name, 0, self.total, 0) for name in self.names]


async def loads(model_id, room_bytes):
    if model_id == "gone":
        raise ModelNotFound("model 'gone' is not in the hub", param="model")
    return loadable(model_id, "d2" if model_id == "renewed" else "d1")


@asynccontextmanager
async def managed(launcher, *, room=2 * NEED + 3 * PROCESS, loadable_of=loads, nodes=None, **spec):
    manager = HubManager(
        HubSpec(**{"max_models": 5, "keep_alive_s": None, **spec}),
        launcher,
        nodes or FakeNodes(),
        loadable_of,
        high=1.0,
        memory_bytes=room,
        answer_s=0.2,
    )
    manager.start()
    try:
        yield manager
    finally:
        manager.close()


def wanted(model_id, ticket="t", ingress="i", digest="d1"):
    return Wanted(ingress, ticket, model_id, digest)


async def use(manager, model_id, ticket, during=None):
    """One request from its ticket to its end."""
    while isinstance(answer := await manager.acquire(wanted(model_id, ticket)), Waiting):
        pass
    if during is not None:
        await during
    await manager.release("i", ticket)
    return answer


async def until(condition):
    """Other tasks run between two looks."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (conditions are plain facts of the fakes)
            await asyncio.sleep(0)


async def until_waiting(manager, model_id):
    async with asyncio.timeout(10):
        while model_id not in (standings := await manager.standings()):  # noqa: ASYNC110  (as above)
            await asyncio.sleep(0)
        return standings[model_id]


async def test_a_request_has_its_model_started_and_is_told_where():
    launcher = FakeLauncher()
    async with managed(launcher) as manager:
        granted = await manager.acquire(wanted("a"))
        assert granted == Granted("a.build-d1", "model-a.build-d1")
        assert launcher.log == ["start a.build-d1"]
        standing = (await manager.standings())["a"]
        assert (standing.memory_bytes, standing.n_running, standing.node) == (NEED, 1, "n1")
        assert await manager.acquire(wanted("a", "t2")) == granted
        assert launcher.log == ["start a.build-d1"]


async def test_an_idle_model_sleeps_for_another_and_wakes_without_a_start():
    launcher = FakeLauncher()
    async with managed(launcher) as manager:
        for name in ("a", "b", "c", "a"):
            await use(manager, name, f"t-{name}")
        assert launcher.log == [
            "start a.build-d1", "start b.build-d1", "sleep a.build-d1", "start c.build-d1", "sleep b.build-d1",
        ]  # fmt: skip
        assert (await manager.swaps()) == {"wake": 4, "sleep pressure": 2}


async def test_fifty_requests_for_five_models_that_fit_two_at_a_time_are_all_answered():
    launcher = FakeLauncher()
    async with managed(launcher) as manager:
        work = (use(manager, "abcde"[n % 5], f"t{n}", asyncio.sleep(0.001)) for n in range(50))
        async with asyncio.timeout(60):
            answers = await asyncio.gather(*work)
        assert all(isinstance(answer, Granted) for answer in answers)
        assert (await manager.swaps())["wake"] == 5
        assert not await still_open(manager)


async def still_open(manager):
    return [standing for standing in (await manager.standings()).values() if standing.n_running or standing.n_waiting]


async def test_what_runs_keeps_its_memory_and_the_other_waits():
    launcher = FakeLauncher()
    async with managed(launcher, room=NEED + 2 * PROCESS) as manager:
        await manager.acquire(wanted("a", "ta"))
        asked = asyncio.ensure_future(manager.acquire(wanted("b", "tb")))
        assert (await until_waiting(manager, "b")).phase is ModelPhase.WAITING
        assert not asked.done()
        await manager.release("i", "ta")
        assert isinstance(await asked, Granted)
        assert "sleep a.build-d1" in launcher.log


async def test_a_model_that_is_in_use_after_all_stays():
    """A request of a job that came past the manager."""
    launcher = FakeLauncher(in_use={"a.build-d1"})
    async with managed(launcher, room=NEED + 2 * PROCESS) as manager:
        await use(manager, "a", "ta")
        asked = asyncio.ensure_future(manager.acquire(wanted("b", "tb")))
        assert isinstance(await asked, Waiting)
        assert launcher.n_refused == 1  # it is not asked again and again
        launcher.in_use.clear()
        assert isinstance(await use(manager, "b", "tb"), Granted)


async def test_who_leaves_while_it_waits_leaves_no_trace():
    launcher = FakeLauncher()
    async with managed(launcher, room=NEED + 2 * PROCESS) as manager:
        await manager.acquire(wanted("a", "ta"))
        asked = asyncio.ensure_future(manager.acquire(wanted("b", "tb")))
        await until_waiting(manager, "b")
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert "b" not in await manager.standings()


async def test_a_model_that_cannot_be_loaded_says_why_and_is_not_tried_again_at_once():
    launcher = FakeLauncher(failing={"a.build-d1"})
    async with managed(launcher) as manager:
        with suppress(ModelUnavailable):  # or it is granted, and its client learns from Serve
            await manager.acquire(wanted("a"))
        await until(lambda: "end a.build-d1" in launcher.log)
        with pytest.raises(ModelUnavailable, match="the file is broken"):
            await manager.acquire(wanted("a", "t2"))
        assert launcher.log.count("start a.build-d1") == 1
        assert (await manager.standings())["a"].phase is ModelPhase.FAILED


async def test_what_is_not_there_or_fits_nowhere_is_refused():
    async with managed(FakeLauncher(), room=NEED - 1) as manager:
        with pytest.raises(ModelNotFound):
            await manager.acquire(wanted("gone"))
        with pytest.raises(ModelUnavailable, match="no node has"):
            await manager.acquire(wanted("a"))


async def test_files_that_are_larger_than_any_node_are_refused_unless_gpus_take_a_part():
    async with managed(FakeLauncher()) as manager:
        await manager.check_room(2 * NEED)
        with pytest.raises(DoesNotFit, match="no node has more"):
            await manager.check_room(10 * NEED)
    async with managed(FakeLauncher(), defaults={"num_gpus": 1}) as manager:
        await manager.check_room(10 * NEED)


async def test_a_name_that_means_another_file_now_is_started_anew():
    launcher = FakeLauncher()
    digests = ["d1", "d2"]

    async def changing(model_id, room_bytes):
        return loadable(model_id, digests.pop(0))

    async with managed(launcher, loadable_of=changing) as manager:
        await use(manager, "a", "t1")
        while isinstance(answer := await manager.acquire(wanted("a", "t2", digest="d2")), Waiting):
            pass
        assert answer.app_name == "a.build-d2"
        assert launcher.log == ["start a.build-d1", "end a.build-d1", "start a.build-d2"]


async def test_keep_alive_puts_a_model_to_sleep_and_a_request_may_say_for_how_long():
    launcher = FakeLauncher()
    async with managed(launcher) as manager:
        await use(manager, "a", "t1")
        await manager.keep("a", 0)
        await until(lambda: "sleep a.build-d1" in launcher.log)
        assert (await manager.standings())["a"].phase is ModelPhase.SLEEPING


async def test_unloading_and_forgetting_spare_what_runs():
    launcher = FakeLauncher()
    async with managed(launcher) as manager:
        await manager.acquire(wanted("a"))
        assert not await manager.unload("a")
        with pytest.raises(ModelInUse):
            await manager.forget("a", force=False)
        await manager.release("i", "t")
        assert await manager.unload("a")
        assert launcher.log == ["start a.build-d1", "sleep a.build-d1"]
        await manager.forget("a", force=False)
        assert launcher.log[-1] == "end a.build-d1"
        assert "a" not in await manager.standings()


async def test_a_new_manager_takes_over_what_runs_and_learns_who_uses_it():
    launcher = FakeLauncher()
    launcher.apps["a.build-d1"] = launcher.memory(loaded=True)
    launcher.found = [Running(loadable("a"), "a.build-d1", "n1", Residence.AWAKE, 0, 0, settled_ns=0)]
    async with managed(launcher, room=NEED + 2 * PROCESS, keep_alive_s=0.0) as manager:
        asked = asyncio.ensure_future(manager.acquire(wanted("b", "tb")))
        launcher.in_use.add("a.build-d1")  # as the replica knows
        await manager.renew("i", {"ta": "a"})
        assert isinstance(await asked, Waiting)
        assert not [line for line in launcher.log if line.startswith("sleep")]
        launcher.in_use.clear()
        await manager.release("i", "ta")
        assert isinstance(await use(manager, "b", "tb"), Granted)
        assert launcher.log == ["sleep a.build-d1", "start b.build-d1"]


async def test_a_model_whose_node_is_gone_wakes_on_another():
    launcher, nodes = FakeLauncher(), FakeNodes()
    async with managed(launcher, nodes=nodes) as manager:
        await use(manager, "a", "ta")
        nodes.names = ("n2",)
        for number in range(3):  # requests of others have the nodes read
            await use(manager, f"b{number}", f"tb{number}")
        await until(lambda: "end a.build-d1" in launcher.log)
        launcher.node = "n2"
        await use(manager, "a", "ta2")
        assert launcher.log.count("start a.build-d1") == 2


async def test_a_model_that_is_known_waits_for_no_other_to_be_read():
    reading, read = asyncio.Event(), asyncio.Event()

    async def slowly(model_id, room_bytes):
        if model_id == "new":
            reading.set()
            await read.wait()
        return loadable(model_id)

    async with managed(FakeLauncher(), loadable_of=slowly) as manager:
        await use(manager, "a", "t1")
        asked = asyncio.ensure_future(use(manager, "new", "t2"))
        await reading.wait()
        assert isinstance(await manager.acquire(wanted("a", "t3")), Granted)
        assert not asked.done()
        read.set()
        assert isinstance(await asked, Granted)
