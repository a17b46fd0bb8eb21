"""The digest of a model file: stable, sensitive to what its mode promises, and remembered without
reading again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os

import pytest

from erllama.errors import ModelLoadError
from erllama.gguf import fingerprint as module
from erllama.gguf.fingerprint import CHUNK_BYTES, FingerprintMode, fingerprint

SAFE, CHUNKED, TRUSTED = FingerprintMode


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(range(256)) * 100)
    return path


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "fingerprints.json"


@pytest.fixture
def reads(monkeypatch):
    """Counts how often the bytes of a model are read in safe mode."""
    counted = []
    original = module._all_bytes

    def counting(parts, total):
        counted.append(total)
        return original(parts, total)

    monkeypatch.setattr(module, "_all_bytes", counting)
    return counted


def touch(path, content):
    """Replace the content, keeping size and mtime whenever the content has the same length."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_safe_is_the_sha256_of_the_file(model):
    assert fingerprint(model, SAFE) == "safe:" + hashlib.sha256(model.read_bytes()).hexdigest()


def test_the_mode_is_part_of_the_digest(model):
    digests = {mode: fingerprint(model, mode) for mode in FingerprintMode}
    assert [digest.split(":")[0] for digest in digests.values()] == ["safe", "chunked", "trusted"]
    assert len({digest.split(":")[1] for digest in digests.values()}) == 3


def test_safe_and_chunked_do_not_depend_on_the_path(model, tmp_path):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(model.read_bytes())
    assert fingerprint(model, SAFE) == fingerprint(copy, SAFE)
    assert fingerprint(model, CHUNKED) == fingerprint(copy, CHUNKED)


def test_chunked_sees_the_header_the_end_and_the_size_of_a_large_file(tmp_path):
    path = tmp_path / "large.gguf"
    size = 80 * CHUNK_BYTES + 12_345

    def digest(position=None, extra=0):
        with path.open("wb") as file:
            file.truncate(size + extra)
            if position is not None:
                file.seek(position)
                file.write(b"x")
        return fingerprint(path, CHUNKED)

    digests = [digest(), digest(0), digest(size - 1), digest(size // 63), digest(extra=1)]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]


def test_trusted_reads_nothing_and_follows_the_mtime(model):
    first = fingerprint(model, TRUSTED)
    touch(model, b"y" * model.stat().st_size)
    assert fingerprint(model, TRUSTED) == first
    os.utime(model, ns=(1, 1))
    assert fingerprint(model, TRUSTED) != first


def test_a_second_start_does_not_read_the_file_again(model, memory, reads):
    first = fingerprint(model, SAFE, memory)
    assert fingerprint(model, SAFE, memory) == first
    assert len(reads) == 1


def test_a_changed_file_is_read_again(model, memory, reads):
    first = fingerprint(model, SAFE, memory)
    model.write_bytes(b"z" * model.stat().st_size)
    os.utime(model, ns=(5, 5))
    assert fingerprint(model, SAFE, memory) != first
    assert len(reads) == 2


def test_a_file_that_was_replaced_by_a_rename_is_read_again(model, memory, reads, tmp_path):
    first = fingerprint(model, SAFE, memory)
    other = tmp_path / "other"
    other.write_bytes(b"z" * model.stat().st_size)
    os.utime(other, ns=(model.stat().st_atime_ns, model.stat().st_mtime_ns))
    other.replace(model)
    assert fingerprint(model, SAFE, memory) != first
    assert len(reads) == 2


def test_two_models_are_remembered_side_by_side(model, memory, reads, tmp_path):
    second = tmp_path / "second.gguf"
    second.write_bytes(b"second")
    for _ in range(2):
        fingerprint(model, SAFE, memory)
        fingerprint(second, SAFE, memory)
    assert len(reads) == 2
    assert [path.name for path in memory.parent.iterdir()] == [memory.name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"version": 2, "entries": {}}',
        b'{"version": 1, "entries": 3}',
        b"[" * 100_000,
    ],
)
def test_a_corrupt_memory_is_ignored_with_a_warning_and_replaced(model, memory, caplog, content):
    memory.parent.mkdir()
    memory.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        digest = fingerprint(model, SAFE, memory)
    assert digest == fingerprint(model, SAFE)
    assert "ignoring the fingerprint memory" in caplog.text
    assert json.loads(memory.read_bytes())["version"] == 1


@pytest.mark.parametrize("entry", [None, 3, {}, {"parts": None, "sha256": "x"}])
def test_a_corrupt_entry_is_a_rehash(model, memory, entry):
    memory.parent.mkdir()
    memory.write_text(json.dumps({"version": 1, "entries": {str(model): entry}}))
    assert fingerprint(model, SAFE, memory) == fingerprint(model, SAFE)


def test_an_entry_whose_digest_is_not_one_is_a_rehash(model, memory):
    digest = fingerprint(model, SAFE, memory)
    memory.write_text(memory.read_text().replace(digest.removeprefix("safe:"), "../../etc"))
    assert fingerprint(model, SAFE, memory) == digest


def test_an_unwritable_memory_costs_a_warning_only(model, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with caplog.at_level(logging.WARNING):
        assert fingerprint(model, SAFE, blocked / "fingerprints.json").startswith("safe:")
    assert "fingerprint memory" in caplog.text


def test_a_split_model_is_digested_over_all_its_parts(tmp_path):
    one, two = tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf"
    one.write_bytes(b"one")
    two.write_bytes(b"two")
    first = {mode: fingerprint(one, mode) for mode in FingerprintMode}
    assert first[SAFE] == "safe:" + hashlib.sha256(b"onetwo").hexdigest()
    two.write_bytes(b"other")
    assert all(fingerprint(one, mode) != first[mode] for mode in FingerprintMode)
    two.unlink()
    with pytest.raises(ModelLoadError, match="00002-of-00002"):
        fingerprint(one, SAFE)


def test_a_file_that_changes_while_it_is_read_has_no_fingerprint(model, memory, monkeypatch):
    original = module._all_bytes

    def growing(parts, total):
        yield from original(parts, total)
        model.write_bytes(b"longer" * 10_000)

    monkeypatch.setattr(module, "_all_bytes", growing)
    with pytest.raises(ModelLoadError, match="changed while"):
        fingerprint(model, SAFE, memory)
    assert not memory.exists()


def test_a_missing_file_is_a_model_load_error(tmp_path):
    for mode in FingerprintMode:
        with pytest.raises(ModelLoadError, match=r"none.gguf"):
            fingerprint(tmp_path / "none.gguf", mode)


def test_progress_of_a_large_file_is_logged(model, caplog, monkeypatch):
    monkeypatch.setattr(module, "PROGRESS_BYTES", 10_000)
    monkeypatch.setattr(module, "READ_BYTES", 4096)
    with caplog.at_level(logging.INFO):
        fingerprint(model, SAFE)
    assert len([record for record in caplog.records if "done_gb" in record.message]) == 2
