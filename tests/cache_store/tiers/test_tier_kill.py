"""kill -9 at any moment of a publish leaves whole objects and temp files that `sweep` removes.

One child process imports the tier once and forks a real writer per kill, so that a kill costs
milliseconds.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_store.testing import is_whole, sealed
from cache_store.tiers.base import ReadBuffer
from cache_store.tiers.local import LocalTier

ROOT = Path(__file__).resolve().parents[3]
SEED = 20_240
N_RANDOM_KILLS = 40

# Commands on stdin, one line each: "start DIR SEED" forks a writer that publishes until it is
# killed; "crash DIR CALL WHEN" forks one that kills itself at the first CALL of the os module,
# before or after it took effect; "reap" waits for the last one and tells how it ended.
NURSERY = r"""
import os, random, signal, sys
from cache_store.tiers.local import LocalTier
from cache_store.testing import sealed

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def write_until_killed(directory, seed):
    rng, tier, parent = random.Random(seed), LocalTier(directory), os.getppid()
    while os.getppid() == parent:  # never outlives its parent
        name = f"r/{rng.randrange(3):02x}/{rng.randrange(20)}"
        tier.publish(name, sealed(rng.randbytes(rng.choice([10, 5_000, 400_000]))))
        if rng.random() < 0.2:
            tier.delete(name)

def crash_in_publish(directory, call, when):
    tier, real = LocalTier(directory), getattr(os, call)
    def fatal(*args, **kwargs):
        if call == "write":
            args = (args[0], args[1][: len(args[1]) // 2])
        if when == "before":
            die()
        result = real(*args, **kwargs)
        die()
    setattr(os, call, fatal)
    tier._durable = True
    tier.publish("r/ab/one", sealed(b"new" * 1000))

child = 0
for line in sys.stdin:
    command, *args = line.split()
    if command == "reap":
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        try:
            write_until_killed(*args) if command == "start" else crash_in_publish(*args)
        finally:
            os._exit(1)
    print(child, flush=True)
"""


class Nursery:
    def __init__(self):
        command = [sys.executable, "-c", NURSERY]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery():
    nursery = Nursery()
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(timeout=10)
    nursery.process.stdout.close()


def temp_files(directory):
    return [name for _, _, files in os.walk(directory) for name in files if name.startswith(".tmp-")]


def test_killed_writers_leave_whole_objects_and_nothing_that_a_sweep_does_not_remove(tmp_path, nursery):
    rng = random.Random(SEED)
    tier = LocalTier(str(tmp_path / "tier"))
    n_left = 0
    for n in range(N_RANDOM_KILLS):
        pid = nursery.ask("start", tmp_path / "tier", SEED + n)
        time.sleep(rng.uniform(0, 0.05))  # the moment of the kill is what the test draws
        os.kill(pid, signal.SIGKILL)
        assert nursery.ask("reap") == -signal.SIGKILL
        left = temp_files(tmp_path)
        n_left += len(left)
        listed = list(tier.list())
        assert [found.name for found in listed if not is_whole(tier.read(found.name, ReadBuffer()))] == []
        assert tier.sweep(0) == len(left)
        assert temp_files(tmp_path) == []
    assert listed, "the writers wrote nothing"
    assert n_left, "no kill met a publish half-way: the test proves nothing"


CRASHES = [(call, when) for call in ("open", "write", "fsync", "close", "replace") for when in ("before", "after")]


@pytest.mark.parametrize("old", [None, "whole", "torn"])
@pytest.mark.parametrize(("call", "when"), CRASHES)
def test_a_writer_that_dies_at_any_step_leaves_the_old_object_or_the_new_one(tmp_path, nursery, call, when, old):
    tier = LocalTier(str(tmp_path / "tier"))
    before = {None: None, "whole": sealed(b"old"), "torn": sealed(b"old")[:9]}[old]
    after = sealed(b"new" * 1000)
    tier.publish("r/ab/one", before or memoryview(b""))
    if before is None:
        tier.delete("r/ab/one")
    nursery.ask("crash", tmp_path / "tier", call, when)
    assert nursery.ask("reap") == -signal.SIGKILL
    expected = after if (call, when) == ("replace", "after") else before
    assert tier.read("r/ab/one", ReadBuffer()) == expected
    assert tier.sweep(0) == (0 if (call, when) in [("open", "before"), ("replace", "after")] else 1)
    assert temp_files(tmp_path) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_that_dies_making_a_directory_leaves_nothing_in_the_way(tmp_path, nursery, when):
    tier = LocalTier(str(tmp_path / "tier"))
    nursery.ask("crash", tmp_path / "tier", "mkdir", when)
    assert nursery.ask("reap") == -signal.SIGKILL
    tier.sweep(0)
    assert os.listdir(tmp_path / "tier") == []
    tier.publish("r/ab/one", sealed(b"x"))
    assert [found.name for found in tier.list()] == ["r/ab/one"]
