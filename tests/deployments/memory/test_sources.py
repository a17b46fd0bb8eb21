"""Sources of readings: cgroups v1 and v2 from a made-up file tree, NVML from a made-up library,
functions of the user's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest

from deployments.memory.messages import RAM, Reading
from deployments.memory.sources import CallableMemory, NvidiaMemory, SystemMemory, make_sources, read_all

GB = 1 << 30

V2_MOUNT = "30 24 0:26 {origin} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "35 31 0:32 {origin} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory"


class Tree:
    """A machine of 64 GB of which 16 are in use."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write(
            "proc/meminfo",
            f"MemTotal:  {64 << 20} kB\nMemFree:  1 kB\nMemAvailable:  {48 << 20} kB\nHugePages_Total:  0\n"
            + "".join(f"{name}:  1 kB\n" for name in ("Buffers", "Cached", "Shmem", "Active", "Inactive", "Slab")),
        )

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, cgroup: str, *mounts: str) -> None:
        self.write("proc/self/cgroup", cgroup)
        self.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "\n".join(mounts) + "\n")

    def v2(self, folder: str, *, limit: str, used: int, inactive: int = 0, high: str = "max") -> None:
        at = f"sys/fs/cgroup{folder}"
        self.write(f"{at}/memory.max", f"{limit}\n")
        self.write(f"{at}/memory.high", f"{high}\n")
        self.write(f"{at}/memory.current", f"{used}\n")
        self.write(f"{at}/memory.stat", f"anon 1\nfile 2\nshmem {GB}\ninactive_file {inactive}\nactive_file 7\n")

    def v1(self, folder: str, *, limit: int, used: int, inactive: int = 0) -> None:
        at = f"sys/fs/cgroup/memory{folder}"
        self.write(f"{at}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{at}/memory.usage_in_bytes", f"{used}\n")
        self.write(f"{at}/memory.stat", f"cache 5\ninactive_file 3\ntotal_inactive_file {inactive}\n")

    def read(self, total_bytes: int | None = None) -> tuple[int, int]:
        (reading,) = SystemMemory(total_bytes, self.root).read("node")
        assert (reading.node_id, reading.resource) == ("node", RAM)
        return reading.used_bytes, reading.total_bytes


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return Tree(tmp_path)


def test_without_cgroups_the_machine_counts(tree):
    assert tree.read() == (16 * GB, 64 * GB)


def test_a_budget_takes_the_place_of_what_the_machine_has_but_never_adds_to_it(tree):
    assert tree.read(20 * GB) == (16 * GB, 20 * GB)
    assert tree.read(200 * GB) == (16 * GB, 64 * GB)


def test_of_a_v2_cgroup_inactive_file_cache_does_not_count_and_shared_memory_does(tree):
    tree.process("0::/pod\n", V2_MOUNT.format(origin="/"))
    tree.v2("/pod", limit=str(8 * GB), used=6 * GB, inactive=2 * GB)
    assert tree.read() == (4 * GB, 8 * GB)


def test_a_cgroup_without_a_limit_leaves_the_word_to_the_machine(tree):
    tree.process("0::/pod\n", V2_MOUNT.format(origin="/"))
    tree.v2("/pod", limit="max", used=6 * GB)
    assert tree.read() == (16 * GB, 64 * GB)


def test_memory_high_is_a_limit_too(tree):
    tree.process("0::/pod\n", V2_MOUNT.format(origin="/"))
    tree.v2("/pod", limit=str(8 * GB), high=str(6 * GB), used=5 * GB)
    assert tree.read() == (5 * GB, 6 * GB)


def test_of_nested_cgroups_the_fullest_counts(tree):
    tree.process("0::/kube/pod/box\n", V2_MOUNT.format(origin="/"))
    tree.v2("/kube/pod/box", limit=str(8 * GB), used=4 * GB)
    tree.v2("/kube/pod", limit="max", used=5 * GB)
    tree.v2("/kube", limit=str(10 * GB), used=9 * GB)
    assert tree.read() == (9 * GB, 10 * GB)
    tree.v2("/kube/pod/box", limit=str(8 * GB), used=8 * GB)
    assert tree.read() == (8 * GB, 8 * GB)


def test_a_budget_belongs_to_the_nearest_cgroup_with_a_limit(tree):
    tree.process("0::/kube/pod\n", V2_MOUNT.format(origin="/"))
    tree.v2("/kube/pod", limit=str(8 * GB), used=3 * GB)
    tree.v2("/kube", limit=str(10 * GB), used=9 * GB)
    assert tree.read(4 * GB) == (9 * GB, 10 * GB)
    assert tree.read(3 * GB) == (3 * GB, 3 * GB)


def test_a_container_that_sees_only_its_part_of_the_hierarchy_finds_itself(tree):
    tree.process("0::/docker/abc\n", V2_MOUNT.format(origin="/docker/abc"))
    tree.v2("", limit=str(8 * GB), used=7 * GB)
    assert tree.read() == (7 * GB, 8 * GB)


def test_a_path_that_leads_out_of_the_namespace_reads_the_top(tree):
    tree.process("0::/../other\n", V2_MOUNT.format(origin="/"))
    tree.v2("", limit=str(8 * GB), used=7 * GB)
    assert tree.read() == (7 * GB, 8 * GB)


def test_a_v1_hierarchy_wins_over_an_empty_v2_one_beside_it(tree):
    tree.process("4:memory:/pod\n1:name=systemd:/\n0::/\n", V1_MOUNT.format(origin="/"), V2_MOUNT.format(origin="/"))
    tree.v1("/pod", limit=4 * GB, used=3 * GB, inactive=1 * GB)
    tree.v1("", limit=9223372036854771712, used=50 * GB)  # how v1 spells "no limit"
    assert tree.read() == (2 * GB, 4 * GB)


def test_cgroup_files_that_vanish_or_make_no_sense_leave_the_machine(tree):
    tree.process("0::/pod\n", V2_MOUNT.format(origin="/"), "garbage", "1 2 3 - cgroup2")
    assert tree.read() == (16 * GB, 64 * GB)
    tree.v2("/pod", limit="soon", used=1)
    assert tree.read() == (16 * GB, 64 * GB)


def test_this_machine_can_be_read():
    (reading,) = SystemMemory().read("here")
    assert 0 < reading.used_bytes < reading.total_bytes


# --- GPUs -----------------------------------------------------------------------------------------


class FakeNvml:
    class NVMLError(Exception):
        pass

    gpus: ClassVar = {"GPU-a": (10 * GB, 80 * GB), "GPU-b": (70 * GB, 80 * GB)}

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def nvmlInit(self) -> None:
        if self.error is not None:
            raise self.error

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return list(self.gpus)[index]

    def nvmlDeviceGetUUID(self, handle: str) -> bytes:
        return handle.encode()  # older versions of the package answer bytes

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        used, total = self.gpus[handle]
        return SimpleNamespace(used=used, total=total)


def test_every_gpu_is_a_memory_of_its_own():
    source = NvidiaMemory(FakeNvml)
    assert source.read("n") == (
        Reading("n", "gpu:GPU-a", 10 * GB, 80 * GB),
        Reading("n", "gpu:GPU-b", 70 * GB, 80 * GB),
    )
    assert source.resources(["1", "GPU-a"]) == ("gpu:GPU-b", "gpu:GPU-a")


def test_without_package_or_driver_there_are_no_gpus_and_no_complaint():
    def absent() -> None:
        raise ImportError("pynvml")

    for source in (NvidiaMemory(absent), NvidiaMemory(lambda: FakeNvml(FakeNvml.NVMLError("no driver")))):
        assert read_all([source], "n") == ((), ())
        assert source.resources(["0"]) == ()


# --- functions ------------------------------------------------------------------------------------


def look(node_id: str) -> list[Reading]:
    return [Reading(node_id, "gpu:mine", 1, 2)]


def look_askew(node_id: str) -> list[str]:
    return [node_id]


def test_a_function_of_the_users_is_a_source():
    assert CallableMemory(f"{__name__}:look").read("n") == (Reading("n", "gpu:mine", 1, 2),)


@pytest.mark.parametrize("name", ["no_such_module:f", f"{__name__}:no_such_function", f"{__name__}:look_askew"])
def test_a_source_that_fails_costs_its_own_readings_only(name):
    assert __name__ in sys.modules
    readings, problems = read_all([CallableMemory(name), CallableMemory(f"{__name__}:look")], "n")
    assert readings == (Reading("n", "gpu:mine", 1, 2),)
    assert len(problems) == 1


def test_the_names_of_the_config_become_sources():
    system, nvidia, own = make_sources(["system", "nvidia", "a.b:c"], 5 * GB)
    assert (type(system), type(nvidia), type(own)) == (SystemMemory, NvidiaMemory, CallableMemory)
    assert system.read("n")[0].total_bytes <= 5 * GB
    assert make_sources(["none"]) == ()
