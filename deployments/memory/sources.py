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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, Protocol

from deployments.memory.messages import RAM, Reading


class MemorySource(Protocol):
    def read(self, node_id: str) -> Sequence[Reading]:
        """What this source sees of the node now. May raise anything; must not take longer than a
        fraction of a second."""
        ...


class NvidiaMemory:
    """All GPUs of the node through NVML (the package nvidia-ml-py). Without package, driver or GPU:
    no readings, and no complaint."""

    def __init__(self, load: Callable[[], ModuleType | Any] = lambda: importlib.import_module("pynvml")) -> None:
        self._nvml = _started(load)

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """One reading per GPU. Raises NVML's errors."""
        if self._nvml is None:
            return ()
        devices = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(self._nvml.nvmlDeviceGetCount())]
        return tuple(self._reading(node_id, device) for device in devices)

    def resources(self, ids: Iterable[str]) -> tuple[str, ...]:
        """The resources of GPUs that are known by index or UUID, as CUDA_VISIBLE_DEVICES has
        them."""
        if self._nvml is None:
            return ()
        return tuple(_resource(self._uuid(id)) for id in ids)

    def _reading(self, node_id: str, device: Any) -> Reading:
        assert self._nvml is not None
        memory = self._nvml.nvmlDeviceGetMemoryInfo(device)
        return Reading(
            node_id, _resource(_text(self._nvml.nvmlDeviceGetUUID(device))), int(memory.used), int(memory.total)
        )

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
        """What the function returns. Raises what it raises, `TypeError` for anything but
        readings."""
        if self._function is None:
            module, _, name = self._name.partition(":")
            self._function = getattr(importlib.import_module(module), name)
        readings = tuple(self._function(node_id))
        for reading in readings:
            if not isinstance(reading, Reading):
                raise TypeError(f"returned {reading!r}, which is not a deployments.memory.messages.Reading")
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


@dataclass(frozen=True, slots=True)
class _Version:
    limits: tuple[str, ...]
    usage: str
    inactive: str  # in memory.stat


_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version(("memory.max", "memory.high"), "memory.current", "inactive_file")


@dataclass(frozen=True, slots=True)
class _Level:
    used: int
    total: int

    def capped(self, total: int | None) -> _Level:
        return self if total is None else _Level(self.used, min(self.total, total))

    @property
    def share(self) -> float:
        return self.used / self.total


class SystemMemory:
    """`total_bytes` lowers the limit that is nearest to this process. `root` is where the file
    system begins; tests have their own."""

    def __init__(self, total_bytes: int | None = None, root: Path = Path("/")) -> None:
        self._cap = total_bytes
        self._root = root

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """One reading. Raises `OSError` or `ValueError` where the machine has no /proc/meminfo to
        read."""
        machine = self._machine()
        nearest, *others = [*self._cgroups(machine.total), machine]
        worst = max((nearest.capped(self._cap), *others), key=lambda level: level.share)
        return (Reading(node_id, RAM, worst.used, worst.total),)

    def _machine(self) -> _Level:
        lines = (self._root / "proc/meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
        if "MemTotal" not in kib or "MemAvailable" not in kib:
            raise ValueError("/proc/meminfo has no MemTotal or no MemAvailable")
        return _Level((kib["MemTotal"] - kib["MemAvailable"]) << 10, kib["MemTotal"] << 10)

    def _cgroups(self, machine_bytes: int) -> Iterator[_Level]:
        """The cgroups around this process that have a limit, innermost first."""
        for folder, version in self._folders():
            limits = [
                limit
                for name in version.limits
                if (limit := _number(folder / name)) is not None and limit < machine_bytes
            ]
            usage = _number(folder / version.usage)
            if limits and usage is not None and min(limits) > 0:
                yield _Level(max(0, usage - _stat(folder / "memory.stat", version.inactive)), min(limits))

    def _folders(self) -> Iterator[tuple[Path, _Version]]:
        try:
            mounts = (self._root / "proc/self/mountinfo").read_text().splitlines()
            member_of = (self._root / "proc/self/cgroup").read_text().splitlines()
        except OSError:  # no cgroups here
            return
        paths = {controllers: path for _, controllers, path in (line.split(":", 2) for line in member_of)}
        by_memory = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), None)
        version, path = (_V2, paths.get("")) if by_memory is None else (_V1, by_memory)
        mount = next((found for line in mounts if (found := _cgroup_mount(line, version)) is not None), None)
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
            yield folder, version
            if folder == top:
                return


def _cgroup_mount(line: str, version: _Version) -> tuple[str, str] | None:
    """Origin and mount point of a line of mountinfo, if it is the cgroup hierarchy with the memory
    controller."""
    left, _, right = line.partition(" - ")
    fields, file_system = left.split(), right.split()
    if len(fields) < 5 or len(file_system) < 3:
        return None
    if version is _V2:
        return (fields[3], fields[4]) if file_system[0] == "cgroup2" else None
    return (fields[3], fields[4]) if file_system[0] == "cgroup" and "memory" in file_system[2].split(",") else None


def _number(path: Path) -> int | None:
    """None for a file that is not there, and for "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)
