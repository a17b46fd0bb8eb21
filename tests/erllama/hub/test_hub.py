"""The facade: names, defaults, what goes when a model goes, and what is damaged."""

from __future__ import annotations

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from erllama.errors import InvalidParameter, ModelNotFound, NotSupported
from erllama.gguf.check import inspect_gguf
from erllama.hub.errors import CorruptManifest, NoSpace, PullFailed
from erllama.hub.hub import Hub
from erllama.hub.manifest import Damaged
from tests.erllama.hub.conftest import hub_config


@pytest.fixture
def filled(hub, server, tiny_bytes):
    server.add("/tiny.gguf", tiny_bytes)
    list(hub.pull(f"{server.url}/tiny.gguf", as_name="tiny:v1"))
    return hub


def names(hub):
    return [manifest.name for manifest in hub.list()]


def blobs(hub):
    return sorted(path.name for path in (hub.config.root / "blobs").glob("sha256-*"))


def test_what_is_pulled_can_be_loaded_listed_and_shown(filled, tiny_bytes):
    manifest = filled.show("Tiny:V1")
    info = inspect_gguf(filled.path_of("tiny:v1"))
    assert names(filled) == ["tiny:v1"]
    assert (manifest.details.architecture, manifest.details.n_params) == (info.architecture, info.n_params)
    assert manifest.size == len(tiny_bytes)
    assert manifest.source.endswith("/tiny.gguf")


def test_a_name_that_is_not_there_is_answered_with_near_ones(filled):
    for ask in (filled.show, filled.path_of, filled.resolve, filled.delete, lambda name: filled.copy(name, "x")):
        with pytest.raises(ModelNotFound, match=r"did you mean tiny:v1\?") as raised:
            ask("tiny")
        assert (raised.value.http_status, raised.value.param) == (404, "model")
    assert str(filled.resolve("TINY:v1")) == "tiny:v1"


def test_a_copy_shares_its_blobs_and_outlives_its_model(filled, tiny_bytes):
    filled.copy("tiny:v1", "me/other")
    assert filled.show("me/other").digest == filled.show("tiny:v1").digest
    freed = filled.delete("tiny:v1")
    assert (freed.digests, freed.n_bytes) == ((), 0)
    assert filled.path_of("me/other").read_bytes() == tiny_bytes
    freed = filled.delete("me/other")
    assert freed.n_bytes == len(tiny_bytes)
    assert (names(filled), blobs(filled)) == ([], [])
    assert list((filled.config.root / "models").iterdir()) == []


def test_a_created_model_has_its_own_defaults_over_those_of_its_base(filled):
    filled.create("a", "tiny:v1", system="Be brief.", parameters={"temperature": 0.5, "stop": ["x"]})
    filled.create("b", "a", template="{{ messages }}", parameters={"temperature": None, "seed": 1})
    manifest = filled.show("b")
    assert (manifest.system, manifest.template) == ("Be brief.", "{{ messages }}")
    assert manifest.parameters == {"stop": ["x"], "seed": 1}
    assert len({filled.show(name).digest for name in ("tiny:v1", "a", "b")}) == 3
    assert len(blobs(filled)) == 1


def test_parameters_that_are_no_json_are_refused(filled):
    with pytest.raises(InvalidParameter, match="parameters") as raised:
        filled.create("a", "tiny:v1", parameters={"x": object()})
    assert raised.value.param == "parameters"
    assert names(filled) == ["tiny:v1"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 2}', b"\xff" * 10, b"[" * 10**5])
def test_a_damaged_manifest_is_told_and_its_model_can_go(filled, damage):
    filled.copy("tiny:v1", "sound")
    path = filled.config.root / "manifests" / "tiny@v1.json"
    path.write_bytes(damage)
    damaged, sound = sorted(filled.list(), key=lambda entry: isinstance(entry, Damaged), reverse=True)
    assert (damaged.name, sound.name) == ("tiny:v1", "sound:latest")
    for ask in (filled.show, filled.path_of, filled.resolve):
        with pytest.raises(CorruptManifest, match="tiny:v1"):
            ask("tiny:v1")
    filled.delete("sound")
    assert len(blobs(filled)) == 1  # nobody knows whether the damaged one needs it
    filled.delete("tiny:v1")
    assert blobs(filled) == []


def test_a_manifest_under_another_name_is_not_believed(filled):
    folder = filled.config.root / "manifests"
    (folder / "other@latest.json").write_bytes((folder / "tiny@v1.json").read_bytes())
    with pytest.raises(CorruptManifest, match="manifest of 'tiny:v1'"):
        filled.show("other")


def test_a_manifest_cannot_name_files_elsewhere(filled):
    path = filled.config.root / "manifests" / "tiny@v1.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["name"] = "../../../escaped.gguf"
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorruptManifest):
        filled.path_of("tiny:v1")


@pytest.mark.parametrize("way", ["missing", "other content", "no folder"])
def test_links_that_are_not_right_are_made_again(filled, tiny_bytes, way):
    path = filled.path_of("tiny:v1")
    path.unlink()
    if way == "other content":
        path.write_bytes(b"x")
    if way == "no folder":
        path.parent.rmdir()
    assert filled.path_of("tiny:v1") == path
    assert path.read_bytes() == tiny_bytes


def test_a_file_system_without_hard_links_gets_symbolic_ones(hub, server, tiny_bytes, monkeypatch):
    def no_links(*args, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    server.add("/tiny.gguf", tiny_bytes)
    list(hub.pull(f"{server.url}/tiny.gguf"))
    assert hub.path_of("tiny").is_symlink()
    assert hub.path_of("tiny").read_bytes() == tiny_bytes


def test_a_blob_that_is_gone_is_told_and_pulled_again(filled, server, tiny_bytes):
    (filled.config.root / "blobs" / blobs(filled)[0]).unlink()
    with pytest.raises(CorruptManifest, match="pull the model again"):
        filled.path_of("tiny:v1")
    list(filled.pull(f"{server.url}/tiny.gguf", as_name="tiny:v1"))
    assert filled.path_of("tiny:v1").read_bytes() == tiny_bytes


def test_a_name_that_is_pulled_again_leads_to_the_new_file_and_the_old_one_goes(filled, server, model_bytes):
    path = filled.path_of("tiny:v1")
    old = path.open("rb")  # as a replica that has it mapped
    server.add("/tiny.gguf", model_bytes)
    list(filled.pull(f"{server.url}/tiny.gguf", as_name="tiny:v1"))
    assert filled.path_of("tiny:v1") == path
    assert path.read_bytes() == model_bytes
    filled.collect_garbage()
    assert len(blobs(filled)) == 1
    assert old.read(4) == b"GGUF"
    old.close()


def test_what_cannot_run_is_refused_before_it_is_fetched(tmp_path, server, model_bytes):
    file = server.add("/m.gguf", model_bytes + b"\0" * (20 << 20))
    hub = Hub(hub_config(tmp_path / "hub", server.url, architectures=frozenset(["mamba"])))
    with pytest.raises(NotSupported, match="architecture") as raised:
        list(hub.pull(f"{server.url}/m.gguf"))
    assert (raised.value.http_status, raised.value.param) == (400, "model")
    assert file.bytes_sent < len(file.data) / 4
    assert blobs(hub) == []


def test_a_model_can_be_looked_at_without_being_pulled(hub, server, model_bytes, tiny_bytes):
    file = server.add("/m.gguf", model_bytes + b"\0" * (20 << 20))
    prospect = hub.inspect(f"{server.url}/m.gguf")
    assert prospect.total_bytes == len(file.data)
    assert prospect.info.n_vocab > 0
    assert file.bytes_sent < len(file.data) / 4
    assert (names(hub), blobs(hub)) == ([], [])


@pytest.mark.parametrize("data", [b"<html>not found</html>" * 100, b"GGUF\3\0\0\0" + b"\xff" * 100])
def test_what_is_no_model_is_refused_before_it_is_fetched(hub, server, data):
    server.add("/m.gguf", data)
    with pytest.raises(NotSupported, match=r"m\.gguf"):
        list(hub.pull(f"{server.url}/m.gguf"))


def test_a_header_that_claims_gigabytes_does_not_fetch_them(tmp_path, server, tiny_bytes):
    hub = Hub(hub_config(tmp_path / "hub", server.url, max_header_bytes=4096))
    file = server.add("/m.gguf", tiny_bytes)
    with pytest.raises(NotSupported, match="ends beyond byte 4096"):
        list(hub.pull(f"{server.url}/m.gguf"))
    assert file.bytes_sent <= 1 << 20


def test_a_disk_that_is_too_full_is_told_with_the_numbers(tmp_path, server, tiny_bytes):
    server.add("/m.gguf", tiny_bytes)
    hub = Hub(hub_config(tmp_path / "hub", server.url, keep_free_bytes=1 << 60))
    with pytest.raises(NoSpace, match=rf"needs {len(tiny_bytes)} bytes.*{1 << 60} are kept free"):
        list(hub.pull(f"{server.url}/m.gguf"))


def test_a_disk_that_fills_up_is_no_space_and_the_pull_goes_on_later(hub, server, model_bytes, monkeypatch):
    file = server.add("/m.gguf", model_bytes)
    pwrite, written = os.pwrite, []

    def full(*args):
        written.append(args)
        if len(written) > 30:
            raise OSError(28, "No space left on device")
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(NoSpace):
        list(hub.pull(f"{server.url}/m.gguf"))
    monkeypatch.undo()
    before = file.bytes_sent
    list(hub.pull(f"{server.url}/m.gguf"))
    assert hub.path_of("m").read_bytes() == model_bytes
    assert file.bytes_sent - before < len(model_bytes) + (3 << 20)


def test_a_directory_that_cannot_be_written_is_told(tmp_path, server, tiny_bytes):
    server.add("/m.gguf", tiny_bytes)
    (tmp_path / "file").write_text("no directory")
    hub = Hub(hub_config(tmp_path / "file" / "hub", server.url))
    with pytest.raises(PullFailed, match="the hub's directory"):
        list(hub.pull(f"{server.url}/m.gguf"))
    with pytest.raises(PullFailed, match="the hub's directory"):
        hub.delete("m")


def test_old_partials_are_garbage_and_young_ones_are_not(hub, server, model_bytes):
    server.add("/m.gguf", model_bytes)
    for event in hub.pull(f"{server.url}/m.gguf"):
        if event.completed:
            break
    folder = hub.config.root / "blobs"
    assert hub.collect_garbage().n_bytes == 0
    assert len(list(folder.iterdir())) == 2
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert hub.collect_garbage().n_bytes > 0
    assert list(folder.iterdir()) == []


def test_garbage_of_a_pull_that_runs_is_kept(hub, server, model_bytes, tiny_bytes):
    """Another hub on the same directory collects after each step; no manifest names the blobs yet."""
    server.add_ollama("library/two", "latest", [("model", tiny_bytes), ("license", b"MIT")])
    other = Hub(hub.config)
    for _ in hub.pull("two"):
        for path in (hub.config.root / "blobs").glob("*-partial*"):
            os.utime(path, (0, 0))
        assert other.collect_garbage().n_bytes == 0
    assert hub.path_of("two").read_bytes() == tiny_bytes
    assert other.collect_garbage().n_bytes == 0
    assert len(blobs(hub)) == 2


def test_threads_that_pull_copy_and_delete_at_once(hub, server, tiny_bytes):
    """Whatever the order: each model that is listed can be opened, and at the end nothing is left."""
    file = server.add("/tiny.gguf", tiny_bytes)
    start = threading.Barrier(6)

    def work(number):
        start.wait()
        for turn in range(5):
            name = f"m{number}:{turn}"
            list(hub.pull(f"{server.url}/tiny.gguf", as_name=name))
            hub.copy(name, f"copy{number}")
            assert hub.path_of(f"copy{number}").read_bytes() == tiny_bytes
            hub.delete(name)
        hub.delete(f"copy{number}")

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(work, number) for number in range(6)]:
            future.result()
    assert (names(hub), blobs(hub)) == ([], [])
    assert file.requests["GET"] < 5 * 6 * 2
    assert list((hub.config.root / "leases").iterdir()) == []


def test_the_default_directory_is_below_the_users_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert Hub().config.root == Path("/somewhere/erllama/hub")
