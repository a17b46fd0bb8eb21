"""Who says how full memory is. A source answers with readings of the node that it runs on; the
scheduler learns them from the replicas.

    system               RAM: the machine or the cgroup around it    `SystemMemory`
    nvidia               every GPU that NVML sees; nothing where there is no NVML
    module:function      called with the node's id, returns `Reading`s: any other memory, any other
                         way to look
    none                 nothing is ever full

Any thread. A source that fails costs its readings, not the report: `read_all` says what went wrong.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import psutil

from deployments.memory.messages import RAM, Reading

_CGROUP_LIMITS = ("memory.max", "memory.high", "memory.limit_in_bytes")  # the last one is v1's


class MemorySource(Protocol):
    def read(self, node_id: str) -> Sequence[Reading]:
        """What this source sees of the node now. May raise anything; must not take longer than a
        fraction of a second."""
        ...


class NvidiaMemory:
    """All GPUs of the node through NVML (the package nvidia-ml-py). Without package, driver or GPU:
    no readings, and no complaint."""

    def __init__(self, load: Callable[[], Any] = lambda: importlib.import_module("pynvml")) -> None:
        self._nvml = _started(load)

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """One reading per GPU. Raises NVML's errors."""
        if self._nvml is None:
            return ()
        return tuple(self._reading(node_id, index) for index in range(self._nvml.nvmlDeviceGetCount()))

    def resources(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The resources of GPUs that are known by index or UUID, as CUDA_VISIBLE_DEVICES has
        them."""
        if self._nvml is None:
            return ()
        return tuple(self._resource(int(id)) if id.isdigit() else f"gpu:{id}" for id in ids)

    def _reading(self, node_id: str, index: int) -> Reading:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(self._nvml.nvmlDeviceGetHandleByIndex(index))
        return Reading(node_id, self._resource(index), int(memory.used), int(memory.total))

    def _resource(self, index: int) -> str:
        uuid = self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlDeviceGetHandleByIndex(index))
        return f"gpu:{uuid.decode() if isinstance(uuid, bytes) else uuid}"


class CallableMemory:
    """A function of the user's, named "module:function"."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """What the function returns. Raises what it raises, `TypeError` for anything but
        readings."""
        readings = tuple(pkgutil.resolve_name(self._name)(node_id))
        for reading in readings:
            if not isinstance(reading, Reading):
                raise TypeError(f"returned {reading!r}, which is not a deployments.memory.messages.Reading")
        return readings


def make_sources(names: Iterable[str], total_bytes: int | None = None) -> tuple[MemorySource, ...]:
    """The sources of a config, which has checked their names."""
    ours: dict[str, Callable[[], MemorySource]] = {"system": lambda: SystemMemory(total_bytes), "nvidia": NvidiaMemory}
    return tuple(ours[name]() if name in ours else CallableMemory(name) for name in names if name != "none")


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


class SystemMemory:
    """`total_bytes` lowers the limit that is nearest to this process. /proc/self and the cgroups
    are below `root`; tests have their own."""

    def __init__(self, total_bytes: int | None = None, root: Path = Path("/")) -> None:
        self._cap = total_bytes
        self._root = root

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """One reading: of the machine and the cgroups around this process the fullest."""
        machine = psutil.virtual_memory()
        limits = [
            *(Reading(node_id, RAM, used, total) for used, total in self._cgroups(machine.total)),
            Reading(node_id, RAM, machine.total - machine.available, machine.total),
        ]
        if self._cap is not None:
            limits[0] = replace(limits[0], total_bytes=min(limits[0].total_bytes, self._cap))
        return (max(limits, key=lambda reading: reading.share),)

    def _cgroups(self, machine_bytes: int) -> Iterator[tuple[int, int]]:
        """Used and total bytes of the cgroups around this process that have a limit, innermost
        first."""
        for folder in self._folders():
            limits = [limit for limit in (_number(folder / name) for name in _CGROUP_LIMITS) if limit is not None]
            usage = _number(folder / "memory.current")
            if usage is None:
                usage = _number(folder / "memory.usage_in_bytes")
            if limits and usage is not None and 0 < min(limits) < machine_bytes:
                yield max(0, usage - _inactive_cache(folder)), min(limits)

    def _folders(self) -> Iterator[Path]:
        try:
            mounts = (self._root / "proc/self/mountinfo").read_text().splitlines()
            member_of = (self._root / "proc/self/cgroup").read_text().splitlines()
        except OSError:  # no cgroups here
            return
        paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in member_of)}
        by_memory = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), None)
        is_v1 = by_memory is not None
        path = by_memory if is_v1 else paths.get("")
        mount = next((found for line in mounts if (found := _cgroup_mount(line, is_v1)) is not None), None)
        if path is None or mount is None:
            return
        origin, mounted_at = mount
        within = PurePosixPath(path)
        # In a container the path may be the host's: the mount tells which part of it is out of
        # sight.
        within = within.relative_to(origin) if within.is_relative_to(origin) else within.relative_to("/")
        top = self._root / mounted_at.lstrip("/")
        inner = top / within if ".." not in within.parts else top
        for folder in (inner, *inner.parents):
            yield folder
            if folder == top:
                return


def _cgroup_mount(line: str, is_v1: bool) -> tuple[str, str] | None:
    """Origin and mount point of a line of mountinfo, if it is the cgroup hierarchy with the memory
    controller."""
    left, _, right = line.partition(" - ")
    fields, file_system = left.split(), right.split()
    if len(fields) < 5 or len(file_system) < 3:
        return None
    kind, options = file_system[0], file_system[2].split(",")
    found = kind == "cgroup" and "memory" in options if is_v1 else kind == "cgroup2"
    return (fields[3], fields[4]) if found else None


def _number(path: Path) -> int | None:
    """None for a file that is not there, and for "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_cache(folder: Path) -> int:
    """Bytes of files that the kernel gives up first; v1 has a line of its own for what includes
    children."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = {key: value for key, _, value in (line.partition(" ") for line in lines)}
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
