"""Several processes on one hub, and processes that die: at any point, with and without warning."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub
from erllama.hub.manifest import Damaged
from erllama.hub.partial import completed_of
from erllama.hub.sources import resolve
from erllama.hub.sources.plain import fsspec_files
from tests.erllama.hub.conftest import hub_config

ROOT = Path(__file__).resolve().parents[3]
CHILD = """
import dataclasses, json, pathlib, sys
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub
source, options = sys.argv[1], json.loads(sys.argv[2])
options["dir"] = pathlib.Path(options["dir"])
for event in Hub(HubConfig(**options)).pull(source):
    print(json.dumps(dataclasses.asdict(event)), flush=True)
"""
OPTIONS = ("hf_endpoint", "hf_token", "ollama_registry", "chunk_bytes", "keep_free_bytes", "backoff_s")
MIB = 1 << 20


@contextmanager
def puller(config: HubConfig, source: str):
    """A process that pulls; the events that it prints."""
    options = {name: getattr(config, name) for name in OPTIONS} | {"dir": str(config.dir)}
    command = [sys.executable, "-c", CHILD, source, json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def read_until(process, enough):
    for line in process.stdout:
        event = json.loads(line)
        if enough(event):
            return event
    raise AssertionError("the process ended before that")


def test_of_two_processes_one_fetches_and_the_other_sees_its_progress(hub, server, model_bytes):
    file = server.add("/m.gguf", model_bytes, held=threading.Event(), held_from=2 * MIB)
    source = f"{server.url}/m.gguf"
    with puller(hub.config, source) as one:
        read_until(one, lambda event: event["completed"] >= MIB)
        with puller(hub.config, source) as other:
            read_until(other, lambda event: event["completed"] >= MIB)
            file.held.set()
            for process in (one, other):
                assert read_until(process, lambda event: event["status"] == "success")
                assert process.wait() == 0
    assert hub.path_of("m").read_bytes() == model_bytes
    assert file.bytes_sent <= len(model_bytes) + 2 * MIB  # the file once, its header twice


def test_what_a_killed_process_had_is_not_fetched_again(hub, server, model_bytes):
    file = server.add("/m.gguf", model_bytes, held=threading.Event(), held_from=2 * MIB)
    with puller(hub.config, f"{server.url}/m.gguf") as process:
        read_until(process, lambda event: event["completed"] >= 2 * MIB)
        process.kill()
        process.wait()
    (partial,) = (hub.config.root / "blobs").glob("*-partial")
    there, size = completed_of(partial)
    assert (there >= MIB, size) == (True, len(model_bytes))
    file.held.set()
    file.held = None
    server.wait_until_left()
    before = file.bytes_sent
    list(hub.pull(f"{server.url}/m.gguf"))
    assert hub.path_of("m").read_bytes() == model_bytes
    assert file.bytes_sent - before <= len(model_bytes) - there + MIB  # one block for the header
    assert hub.collect_garbage().digests == ()


class Countdown:
    """Ends the process, without any clean-up, at its n-th change of the disk."""

    CHANGES = frozenset(["os.rename", "os.remove", "os.truncate", "os.link", "os.mkdir"])

    def __init__(self, n):
        self.left = n
        self.seen = 0
        self.lock = threading.Lock()
        for name in ("pwrite", "fdatasync", "fsync"):
            setattr(os, name, self._counted(getattr(os, name)))
        sys.addaudithook(self._audit)

    def _audit(self, event, args):
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in self.CHANGES:
            self.count()

    def _counted(self, function):
        def counted(*args):
            self.count()
            return function(*args)

        return counted

    def count(self):
        with self.lock:
            self.seen += 1
            self.left -= 1
            if self.left == 0:
                os._exit(9)


def in_child(work, n=-1):
    """Run `work` in a fork that dies at its n-th change; returns (its status, the changes made)."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            countdown = Countdown(n)
            work()
            os.write(write_end, str(countdown.seen).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read_end) as pipe:
        seen = pipe.read()
    return os.waitstatus_to_exitcode(status), int(seen or 0)


@pytest.fixture
def fast_path(tmp_path):
    """In memory where that can be had: hundreds of fsyncs take minutes on a busy disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.mark.parametrize("promised", [False, True], ids=["no digest", "digest promised"])
def test_a_process_may_die_at_any_change_of_the_disk(fast_path, tiny_bytes, monkeypatch, promised):
    """The name is that of an older model: at each point it leads to one of the two, as a whole."""
    old, new = fast_path / "old.gguf", fast_path / "new.gguf"
    old_bytes = tiny_bytes[:-1] + bytes([tiny_bytes[-1] ^ 1])
    old.write_bytes(old_bytes)
    new.write_bytes(tiny_bytes)
    first = hub_in(fast_path / "first")
    list(first.pull(str(old), as_name="m"))
    if promised:
        monkeypatch.setattr(resolve, "fsspec_files", lambda *args: with_digests(fsspec_files(*args)))

    def prepare(n):
        shutil.copytree(first.config.root, fast_path / f"hub{n}")
        return hub_in(fast_path / f"hub{n}")

    def work(hub):
        list(hub.pull(str(new), as_name="m"))
        hub.copy("m", "n")
        hub.delete("n")
        hub.collect_garbage()

    hub = prepare(0)
    status, changes = in_child(lambda: work(hub))
    assert (status, changes > 20) == (0, True)
    assert hub.path_of("m").read_bytes() == tiny_bytes
    for n in range(1, changes + 1):
        hub = prepare(n)
        status, _ = in_child(lambda hub=hub: work(hub), n)
        assert status in (0, 9)  # 0: not every run makes the same number of changes
        assert [entry for entry in hub.list() if isinstance(entry, Damaged)] == []
        assert hub.path_of("m").read_bytes() in (old_bytes, tiny_bytes)
        list(hub.pull(str(new), as_name="m"))
        assert hub.path_of("m").read_bytes() == tiny_bytes
        for entry in hub.list():
            assert hub.path_of(entry.name).read_bytes() == tiny_bytes
            hub.delete(entry.name)
        assert list((hub.config.root / "blobs").glob("sha256-*")) == []
        assert [path for path in (hub.config.root / "leases").iterdir() if path.suffix != ".lock"] == []
        assert list((hub.config.root / "models").iterdir()) == []
        shutil.rmtree(hub.config.root)


def hub_in(root):
    return Hub(hub_config(root, None, ollama_registry="https://registry.invalid", chunk_bytes=128 << 10))


def with_digests(files):
    return [replace(file, sha256=hashlib.sha256(Path(file.url[7:]).read_bytes()).hexdigest()) for file in files]
