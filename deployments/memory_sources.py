"""Who says how full memory is. A source answers with readings of the node that it runs on; the scheduler learns them from the replicas.

    system               RAM: the machine or the cgroup around it    `memory_sources_system`
    nvidia               every GPU that NVML sees; nothing where there is no NVML
    module:function      called with the node's id, returns `Reading`s: any other memory, any other way to look
    none                 nothing is ever full

Any thread. A source that fails costs its readings, not the report: `read_all` says what went wrong.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, Protocol

from deployments.memory_sources_system import SystemMemory
from deployments.pressure import Reading


class MemorySource(Protocol):
    def read(self, node_id: str) -> Sequence[Reading]:
        """What this source sees of the node now. May raise anything; must not take longer than a fraction of a second."""
        ...


class NvidiaMemory:
    """All GPUs of the node through NVML (the package nvidia-ml-py). Without package, driver or GPU: no readings, and no complaint."""

    def __init__(self, load: Callable[[], ModuleType | Any] = lambda: importlib.import_module("pynvml")) -> None:
        self._nvml = _started(load)

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """One reading per GPU. Raises NVML's errors."""
        if self._nvml is None:
            return ()
        devices = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        return tuple(self._reading(node_id, device) for device in devices)

    def resources(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The resources of GPUs that are known by index or UUID, as CUDA_VISIBLE_DEVICES has them."""
        if self._nvml is None:
            return ()
        return tuple(_resource(self._uuid(id)) for id in ids)

    def _reading(self, node_id: str, device: Any) -> Reading:
        assert self._nvml is not None
        memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
        return Reading(node_id, _resource(_text(self._nvml.nvmlDeviceGetUUID(device))), int(memory.used), int(memory.total))

    def _uuid(self, id: str) -> str:
        assert self._nvml is not None
        if not id.isdigit():
            return id
        return _text(self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlDeviceGetHandleByIndex(int(id))))


class CallableMemory:
    """A function of the user's, named "module:function"."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._function: Callable[[str], Sequence[Reading]] | None = None

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """What the function returns. Raises what it raises, `TypeError` for anything but readings."""
        if self._function is None:
            module, _, name = self._name.partition(":")
            self._function = getattr(importlib.import_module(module), name)
        readings = tuple(self._function(node_id))
        for reading in readings:
            if not isinstance(reading, Reading):
                raise TypeError(f"returned {reading!r}, which is not a deployments.pressure.Reading")
        return readings


def make_sources(names: Iterable[str], total_bytes: int | None = None) -> tuple[MemorySource, ...]:
    """The sources of a config, which has checked their names."""
    return tuple(_make(name, total_bytes) for name in names if name != "none")


def read_all(sources: Iterable[MemorySource], node_id: str) -> tuple[tuple[Reading, ...], tuple[str, ...]]:
    """All readings of a node, and what kept a source from answering."""
    readings: list[Reading] = []
    problems: list[str] = []
    for source in sources:
        try:
            readings += source.read(node_id)
        except Exception as error:  # a user's function or a driver: memory goes unwatched, the model does not stop
            problems.append(f"{type(source).__name__}: {error!r}")
    return tuple(readings), tuple(problems)


def _make(name: str, total_bytes: int | None) -> MemorySource:
    match name:
        case "system":
            return SystemMemory(total_bytes)
        case "nvidia":
            return NvidiaMemory()
        case _:
            return CallableMemory(name)


def _started(load: Callable[[], Any]) -> Any:
    try:
        nvml = load()
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # the package without a driver
        return None
    return nvml


def _resource(uuid: str) -> str:
    return f"gpu:{uuid}"


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
