"""What a tier does when its file system is full, read-only, gone, or has a wrong clock; and the
tier that fails on command.
"""

import errno
import os
import shutil
import subprocess
import threading
import time

import pytest

from cache_store.config import TierConfig
from cache_store.errors import TierError
from cache_store.testing import FakeClock, Fault, FaultyTier, is_whole, sealed
from cache_store.tiers.base import NoSpace, ReadBuffer
from cache_store.tiers.local import LocalTier
from cache_store.tiers.open import open_tier

OLD_S = 600


@pytest.fixture
def tier(tmp_path):
    return LocalTier(str(tmp_path / "tier"))


@pytest.fixture
def faulty(tier):
    faulty = FaultyTier(tier)
    yield faulty
    faulty.close()


def read(tier, name):
    view = tier.read(name, ReadBuffer())
    return None if view is None else bytes(view)


def files(directory):
    return sorted(name for _, _, found in os.walk(directory) for name in found)


@pytest.fixture
def mount(tmp_path):
    """Mounts a small tmpfs, read-only or not; skips where the system does not let us."""
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = []

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting needs root")
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(place)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_file_system_is_told_apart_and_nothing_is_left_of_the_attempt(mount):
    place = mount("size=1m")
    tier = open_tier(TierConfig(f"{place}/tier"))
    tier.publish("r/one", sealed(b"x" * 700_000))
    with pytest.raises(NoSpace, match=r"publish r/two in file://.*No space left") as failure:
        tier.publish("r/two", sealed(b"x" * 700_000))
    assert failure.value.__cause__.errno == errno.ENOSPC
    assert files(place) == ["one"]
    tier.delete("r/one")
    tier.publish("r/two", sealed(b"x" * 700_000))


def test_replacing_on_a_full_file_system_keeps_the_old_object(mount):
    tier = open_tier(TierConfig(str(mount("size=1m"))))
    tier.publish("r/one", sealed(b"x" * 700_000))
    with pytest.raises(NoSpace):
        tier.publish("r/one", sealed(b"y" * 700_000))
    assert read(tier, "r/one") == bytes(sealed(b"x" * 700_000))


def test_a_file_system_without_inodes_is_full_too(mount):
    tier = open_tier(TierConfig(str(mount("size=1m,nr_inodes=4"))))
    tier.publish("r/one", sealed(b"x"))  # with the mount itself and the directory: three
    tier.publish("r/two", sealed(b"x"))
    with pytest.raises(NoSpace):
        tier.publish("r/three", sealed(b"x"))


def test_a_read_only_file_system_can_be_read_and_refuses_the_rest(mount):
    place = mount("size=1m")
    open_tier(TierConfig(str(place))).publish("r/one", sealed(b"x"))
    mount("remount,ro")
    tier = open_tier(TierConfig(str(place)))
    assert (read(tier, "r/one"), [found.name for found in tier.list()]) == (bytes(sealed(b"x")), ["r/one"])
    for call in (lambda: tier.publish("r/two", sealed(b"x")), lambda: tier.delete("r/one"), lambda: tier.sweep(0)):
        with pytest.raises(TierError, match="Read-only file system"):
            call()


def test_a_mount_that_goes_away_takes_the_objects_and_not_the_tier(mount):
    place = mount("size=1m")
    tier = open_tier(TierConfig(f"{place}/tier"))
    tier.publish("r/one", sealed(b"x"))
    mount("size=2m")  # over the first
    try:
        assert read(tier, "r/one") is None
        tier.publish("r/two", sealed(b"x"))
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert [found.name for found in tier.list()] == ["r/one"]


def test_a_write_that_fails_half_way_leaves_nothing(tier, tmp_path, monkeypatch):
    real = os.write
    calls = []

    def fail_at_the_second(descriptor, data):
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(errno.EIO, "the disk is ill")
        return real(descriptor, data[:100])

    monkeypatch.setattr(os, "write", fail_at_the_second)
    with pytest.raises(TierError, match="the disk is ill"):
        tier.publish("r/one", sealed(b"x" * 1000))
    assert (files(tmp_path), read(tier, "r/one")) == ([], None)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_publish_that_fails_at_any_step_leaves_no_temp_file(tier, tmp_path, monkeypatch, call):
    tier._durable = True
    tier.publish("r/one", sealed(b"old"))

    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, f"{call} failed")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(TierError, match=f"{call} failed"):
        tier.publish("r/one", sealed(b"new"))
    monkeypatch.undo()
    assert (files(tmp_path), read(tier, "r/one")) == (["one"], bytes(sealed(b"old")))


def test_writes_that_end_early_are_continued(tier, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:777]))
    tier.publish("r/one", sealed(b"x" * 10_000))
    assert read(tier, "r/one") == bytes(sealed(b"x" * 10_000))


def test_reads_that_end_early_are_continued(tier, monkeypatch):
    tier.publish("r/one", sealed(b"x" * 10_000))
    real = os.readv
    monkeypatch.setattr(os, "readv", lambda descriptor, views: real(descriptor, [views[0][:777]]))
    assert read(tier, "r/one") == bytes(sealed(b"x" * 10_000))


def test_a_directory_that_cannot_be_synced_is_no_failure(tier, monkeypatch):
    """Some network file systems answer so."""
    tier._durable = True
    real = os.fsync

    def refuse_directories(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "not on a directory")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    tier.publish("r/one", sealed(b"x"))


def test_a_directory_removed_underneath_is_made_again(tier, tmp_path):
    tier.publish("r/ab/one", sealed(b"x"))
    shutil.rmtree(tmp_path / "tier")
    assert (read(tier, "r/ab/one"), list(tier.list()), tier.stat("r/ab/one"), tier.delete("r/ab/one")) == (
        None,
        [],
        None,
        False,
    )
    tier.publish("r/ab/one", sealed(b"y"))
    assert read(tier, "r/ab/one") == bytes(sealed(b"y"))
    assert os.stat(tmp_path / "tier").st_mode & 0o777 == 0o700


@pytest.mark.parametrize("depth", ["tier", "tier/r", "tier/r/ab"])
def test_a_directory_removed_in_the_middle_of_a_publish_costs_a_second_attempt(tier, tmp_path, monkeypatch, depth):
    real = os.replace
    n_removed = 0

    def remove_first(source, target):
        nonlocal n_removed
        if n_removed == 0:
            n_removed += 1
            shutil.rmtree(tmp_path / depth)
        real(source, target)

    monkeypatch.setattr(os, "replace", remove_first)
    tier.publish("r/ab/one", sealed(b"x"))
    assert (read(tier, "r/ab/one"), files(tmp_path), n_removed) == (bytes(sealed(b"x")), ["one"], 1)


def test_a_directory_that_vanishes_every_time_is_a_failure_and_not_a_loop(tier, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda source, target: shutil.rmtree(tmp_path / "tier/r") or os.stat(source))
    with pytest.raises(TierError, match=r"publish r/one in .*No such file"):
        tier.publish("r/one", sealed(b"x"))


def test_a_temp_file_swept_under_its_writer_costs_a_second_attempt(tier, tmp_path, monkeypatch):
    real = os.replace
    swept = []

    def sweep_first(source, target):
        if not swept:
            swept.append(tier.sweep(0))
        real(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    tier.publish("r/ab/one", sealed(b"x"))
    assert (swept, read(tier, "r/ab/one"), files(tmp_path)) == ([1], bytes(sealed(b"x")), ["one"])


def leave_temp(tmp_path, age_s):
    """A temp file that a dead writer left, and when it did by the clock of the time."""
    path = tmp_path / "tier" / "r" / f".tmp-1-{age_s}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age_s,) * 2)
    return path.name


def test_only_old_temp_files_are_swept(tier, tmp_path):
    old, young = leave_temp(tmp_path, OLD_S + 60), leave_temp(tmp_path, OLD_S - 60)
    (tmp_path / "tier/r/.hidden").write_text("not ours")
    assert tier.sweep(OLD_S) == 1
    assert old not in files(tmp_path)
    assert files(tmp_path) == sorted([young, ".hidden"])


def test_a_temp_file_from_the_future_is_old(tier, tmp_path):
    """The clock has been set back since: without this it would stay until the clock is there
    again.
    """
    leave_temp(tmp_path, -1e6)
    near = leave_temp(tmp_path, -60)
    assert tier.sweep(OLD_S) == 1
    assert files(tmp_path) == [near]


def test_the_clock_of_this_process_does_not_matter_to_a_sweep(tier, tmp_path, monkeypatch):
    young = leave_temp(tmp_path, 0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(time, "time_ns", lambda: 4 * 10**18)
    assert tier.sweep(OLD_S) == 0
    assert files(tmp_path) == [young]


def test_directories_that_have_long_been_empty_are_swept(tier, tmp_path):
    tier.publish("old/ab/one", sealed(b"x"))
    tier.publish("young/ab/one", sealed(b"x"))
    tier.publish("kept/ab/one", sealed(b"x"))
    tier.delete("old/ab/one")
    tier.delete("young/ab/one")
    long_ago = time.time() - OLD_S - 60
    for path in ("old/ab", "old", "kept/ab", "kept"):
        os.utime(tmp_path / "tier" / path, (long_ago,) * 2)
    assert tier.sweep(OLD_S) == 0
    assert sorted(os.listdir(tmp_path / "tier")) == ["kept", "young"]


def test_a_directory_that_cannot_be_opened_is_a_failure_with_its_cause(tier, monkeypatch):
    tier.publish("r/one", sealed(b"x"))
    monkeypatch.setattr(
        os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(errno.EACCES, "not yours", path))
    )
    with pytest.raises(TierError, match=r"list r/ in .*not yours") as failure:
        list(tier.list("r/"))
    assert isinstance(failure.value.__cause__, PermissionError)


def test_a_fault_meets_the_calls_it_was_meant_for(faulty):
    faulty.inject("publish", Fault.FAIL, skip=1, times=2)
    outcomes = []
    for n in range(5):
        try:
            faulty.publish(f"r/{n}", sealed(b"x"))
            outcomes.append(None)
        except TierError as failure:
            outcomes.append(failure.__cause__.errno)
    assert outcomes == [None, errno.EIO, errno.EIO, None, None]
    assert sorted(found.name for found in faulty.list()) == ["r/0", "r/3", "r/4"]
    assert (faulty.calls["publish"], faulty.calls["list"], faulty.calls["read"]) == (5, 1, 0)


def test_a_fault_for_all_operations_lasts_until_it_is_healed(faulty):
    faulty.inject("*", Fault.FAIL, times=None)
    calls = {
        "read": lambda: faulty.read("r/one", ReadBuffer()),
        "read_head": lambda: faulty.read("r/one", ReadBuffer(), 1),
        "publish": lambda: faulty.publish("r/one", sealed(b"x")),
        "delete": lambda: faulty.delete("r/one"),
        "stat": lambda: faulty.stat("r/one"),
        "list": lambda: list(faulty.list()),
        "sweep": lambda: faulty.sweep(0),
    }
    for operation, call in calls.items():
        with pytest.raises(TierError, match=f"^{operation} .*Input/output error"):
            call()
    faulty.heal()
    for call in calls.values():
        call()
    assert faulty.calls == dict.fromkeys(calls, 2)


def test_a_full_tier_and_a_read_only_tier_fail_as_real_ones_do(faulty):
    faulty.inject("publish", Fault.NO_SPACE)
    faulty.inject("delete", Fault.READ_ONLY)
    with pytest.raises(NoSpace, match="No space left"):
        faulty.publish("r/one", sealed(b"x"))
    with pytest.raises(TierError, match="Read-only file system") as failure:
        faulty.delete("r/one")
    assert not isinstance(failure.value, NoSpace)


def test_a_torn_publish_leaves_a_part_under_the_final_name(faulty):
    faulty.inject("publish", Fault.TEAR, n_bytes=5)
    faulty.publish("r/one", memoryview(b"0123456789"))
    assert read(faulty, "r/one") == b"01234"


def test_a_torn_read_ends_early_and_the_object_is_whole(faulty):
    faulty.publish("r/one", memoryview(b"0123456789"))
    faulty.inject("read", Fault.TEAR, n_bytes=3)
    assert [read(faulty, "r/one"), read(faulty, "r/one")] == [b"012", b"0123456789"]


def test_a_hanging_call_goes_on_when_it_is_released(faulty):
    faulty.publish("r/one", sealed(b"x"))
    faulty.inject("read", Fault.HANG, times=None)
    found = []
    threads = [threading.Thread(target=lambda: found.append(read(faulty, "r/one"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert faulty.wait_hanging(2)
    assert found == []
    faulty.release()
    for thread in threads:
        thread.join(timeout=10)
    assert found == [bytes(sealed(b"x"))] * 2
    assert not faulty.wait_hanging(1, timeout_s=0)


def test_closing_lets_hanging_calls_go(tier):
    faulty = FaultyTier(tier)
    faulty.inject("stat", Fault.HANG)
    thread = threading.Thread(target=faulty.stat, args=("r/one",))
    thread.start()
    assert faulty.wait_hanging()
    faulty.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_a_fake_clock_moves_only_when_told_to():
    clock = FakeClock(5)
    assert (clock(), clock()) == (5, 5)
    clock.advance(1.5)
    assert clock() == 1_500_000_005


def test_a_seal_is_broken_by_any_change():
    data = bytes(sealed(b"content"))
    assert is_whole(memoryview(data))
    for n in range(len(data)):
        assert not is_whole(memoryview(data[:n]))
        assert not is_whole(memoryview(data[:n] + bytes([data[n] ^ 1]) + data[n + 1 :]))
