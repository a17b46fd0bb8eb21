"""How full the RAM of this node is, as the first to run out sees it: the machine, or a cgroup (v1 or v2) around this process.

Used are pages that cannot simply be dropped: of the machine what is not available, of a cgroup its usage without inactive file cache. Pages
of /dev/shm count as used in both. Bytes. Any thread; a reading opens a handful of files below /proc and /sys (0.2 ms).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from deployments.pressure import RAM, Reading


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
    """`total_bytes` lowers the limit that is nearest to this process. `root` is where the file system begins; tests have their own."""

    def __init__(self, total_bytes: int | None = None, root: Path = Path("/")) -> None:
        self._cap = total_bytes
        self._root = root

    def read(self, node_id: str) -> tuple[Reading, ...]:
        """One reading. Raises `OSError` or `ValueError` where the machine has no /proc/meminfo to read."""
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
            limits = [limit for name in version.limits if (limit := _number(folder / name)) is not None and limit < machine_bytes]
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
        # In a container the path may be the host's: the mount tells which part of it is out of sight.
        within = within.relative_to(origin) if within.is_relative_to(origin) else within.relative_to("/")
        top = self._root / mounted_at.lstrip("/")
        inner = top / within if ".." not in within.parts else top
        for folder in (inner, *inner.parents):
            yield folder, version
            if folder == top:
                return


def _cgroup_mount(line: str, version: _Version) -> tuple[str, str] | None:
    """Origin and mount point of a line of mountinfo, if it is the cgroup hierarchy with the memory controller."""
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
