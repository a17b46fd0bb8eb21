"""The contract battery on every kind of tier that needs no server, and what only configuration and
local directories have.
"""

import os
import secrets
import shutil
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store.config import TierConfig, parse_bytes
from cache_store.errors import TierError
from cache_store.testing import FaultyTier, TierContract, sealed
from cache_store.tiers.base import ReadBuffer
from cache_store.tiers.local import LocalTier, file_system_type
from cache_store.tiers.open import open_tier
from cache_store.tiers.remote import RemoteTier


def in_ram() -> bool:
    return os.path.isdir("/dev/shm") and file_system_type("/dev/shm") == "tmpfs"


@pytest.fixture
def shm():
    if not in_ram():
        pytest.skip("no tmpfs at /dev/shm")
    directory = f"/dev/shm/erllama-test-{os.getpid()}-{secrets.token_hex(4)}"
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


class TestDiskTier(TierContract):
    @pytest.fixture
    def tier(self, tmp_path):
        return open_tier(TierConfig(f"file://{tmp_path}/tier"))

    @pytest.fixture
    def twin(self, tier, tmp_path):
        return open_tier(TierConfig(f"{tmp_path}/tier"))


class TestRamTier(TierContract):
    @pytest.fixture
    def tier(self, shm):
        return open_tier(TierConfig(f"file://{shm}"))

    @pytest.fixture
    def twin(self, tier, shm):
        return open_tier(TierConfig(shm))


class TestMemoryTier(TierContract):
    @pytest.fixture
    def url(self):
        name = f"tier-{secrets.token_hex(4)}"
        yield f"memory://{name}"
        filesystem = fsspec.filesystem("memory")
        for path in [path for path in filesystem.store if path.startswith(f"/{name}/")]:
            del filesystem.store[path]

    @pytest.fixture
    def tier(self, url):
        return open_tier(TierConfig(url))

    @pytest.fixture
    def twin(self, url):
        return open_tier(TierConfig(url))


class TestTierOfADriverWithoutAtomicPut(TierContract):
    """Drivers such as sftp: temp file and move. fsspec's own local driver stands for them."""

    @pytest.fixture
    def tier(self, tmp_path):
        return self.open(tmp_path)

    @pytest.fixture
    def twin(self, tmp_path):
        return self.open(tmp_path)

    @staticmethod
    def open(path):
        filesystem = fsspec.filesystem("file", skip_instance_cache=True)
        return RemoteTier(filesystem, f"{path}/tier", url="other://host/tier", label="other", one_put=False)

    def test_what_a_dead_writer_left_is_swept_when_it_is_old(self, tier, tmp_path):
        tier.publish("r/one", sealed(b"x"))
        left = tmp_path / "tier/r/.tmp-1-aa"
        left.write_bytes(b"half")
        assert [tier.sweep(60), tier.sweep(0)] == [0, 1]
        assert os.listdir(tmp_path / "tier/r") == ["one"]

    def test_a_failed_move_leaves_no_temp_file(self, tier, tmp_path):
        (tmp_path / "tier/r/one/in-the-way").mkdir(parents=True)
        (tmp_path / "tier/r/one/one").mkdir()
        tier._filesystem.mv = self.refuse
        with pytest.raises(TierError, match="publish r/one in other://host/tier: moved too far"):
            tier.publish("r/one", sealed(b"x"))
        assert os.listdir(tmp_path / "tier/r") == ["one"]

    @staticmethod
    def refuse(source, target):
        raise OSError("moved too far")


class TestFaultyTierWithoutFaults(TierContract):
    @pytest.fixture
    def twin(self, tmp_path):
        return open_tier(TierConfig(f"file://{tmp_path}"))

    @pytest.fixture
    def tier(self, twin):
        return FaultyTier(twin)


def test_the_label_follows_the_file_system_and_not_the_path(tmp_path, shm):
    os.makedirs(shm)
    (tmp_path / "link").symlink_to(shm)
    tiers = [open_tier(TierConfig(url)) for url in (str(tmp_path), shm, f"{tmp_path}/link", "memory://x")]
    expected = "disk" if file_system_type(str(tmp_path)) != "tmpfs" else "ram_file"
    assert [(tier.label, tier.local) for tier in tiers] == [
        (expected, True),
        ("ram_file", True),
        ("ram_file", True),
        ("memory", False),
    ]


def test_only_a_ram_file_system_is_not_synced(tmp_path, shm, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.readlink(f"/proc/self/fd/{descriptor}")), real(descriptor))
    )
    open_tier(TierConfig(shm)).publish("r/one", sealed(b"x"))
    assert synced == []
    if file_system_type(str(tmp_path)) in ("tmpfs", "ramfs"):
        pytest.skip("temporary files lie in RAM here")
    open_tier(TierConfig(str(tmp_path))).publish("r/one", sealed(b"x"))
    made, temp, final = synced
    assert (made, final) == (str(tmp_path), f"{tmp_path}/r")
    assert temp.startswith(f"{tmp_path}/r/.tmp-{os.getpid()}-")


def test_directories_and_objects_are_for_their_owner_only(tmp_path):
    open_tier(TierConfig(f"{tmp_path}/tier")).publish("r/one", sealed(b"x"))
    modes = {path: os.stat(tmp_path / path).st_mode & 0o777 for path in ("tier", "tier/r", "tier/r/one")}
    assert modes == {"tier": 0o700, "tier/r": 0o700, "tier/r/one": 0o600}


def test_an_existing_directory_keeps_its_mode(tmp_path):
    (tmp_path / "tier").mkdir(mode=0o755)
    open_tier(TierConfig(f"{tmp_path}/tier"))
    assert os.stat(tmp_path / "tier").st_mode & 0o777 == 0o755


def test_listing_by_prefix_opens_one_directory_only(tmp_path, monkeypatch):
    tier = open_tier(TierConfig(str(tmp_path)))
    for n in range(5):
        tier.publish(f"r/{n:02x}/one", sealed(b"x"))
    opened = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (opened.append(path), real(path))[1])
    assert [found.name for found in tier.list("r/03/on")] == ["r/03/one"]
    assert opened == [f"{tmp_path}/r/03"]


def test_links_and_other_oddities_are_not_listed(tmp_path):
    tier = open_tier(TierConfig(str(tmp_path)))
    tier.publish("r/one", sealed(b"x"))
    (tmp_path / "r/loop").symlink_to(tmp_path)
    (tmp_path / "r/gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "r/pipe")
    assert [found.name for found in tier.list()] == ["r/one"]


def test_an_object_that_shrinks_while_it_is_read_comes_short(tmp_path, monkeypatch):
    tier = open_tier(TierConfig(str(tmp_path)))
    tier.publish("one", memoryview(b"0123456789"))
    real = os.fstat

    def cut_after_stat(descriptor):
        found = real(descriptor)
        os.truncate(tmp_path / "one", 4)
        return found

    monkeypatch.setattr(os, "fstat", cut_after_stat)
    assert bytes(tier.read("one", ReadBuffer()) or b"") == b"0123"


def test_reads_of_a_local_tier_reuse_the_callers_memory(tmp_path):
    tier = open_tier(TierConfig(str(tmp_path)))
    tier.publish("one", memoryview(b"0123456789"))
    tier.publish("two", memoryview(b"abc"))
    buffer = ReadBuffer()
    first = tier.read("one", buffer)
    second = tier.read("two", buffer)
    assert (bytes(first or b""), bytes(second or b"")) == (b"abc3456789", b"abc")


def test_a_file_of_absurd_length_is_refused_and_not_read(tmp_path):
    tier = open_tier(TierConfig(str(tmp_path)))
    tier.publish("one", memoryview(b"x"))
    os.truncate(tmp_path / "one", 1 << 40)
    with pytest.raises(TierError, match="exceeds the limit of 4294967296 bytes"):
        tier.read("one", ReadBuffer())


@given(st.lists(st.integers(0, 300_000), max_size=6))
def test_a_read_buffer_gives_aligned_memory_of_the_wanted_size(sizes):
    buffer = ReadBuffer()
    for size in sizes:
        view = buffer.take(size)
        assert len(view) == size
        assert not view.readonly or size == 0
        assert memoryview_address(view) % 64 == 0


def memoryview_address(view):
    import numpy as np

    return np.frombuffer(view, np.uint8).ctypes.data if len(view) else 0


@pytest.mark.parametrize(
    ("size", "n_bytes"),
    [
        (1, 1),
        ("17", 17),
        ("2GiB", 2 << 30),
        ("500MB", 500_000_000),
        (" 1.5 KiB ", 1536),
        ("3tib", 3 << 40),
        ("0.5kb", 500),
        ("9 B", 9),
    ],
)
def test_a_size_may_have_a_unit(size, n_bytes):
    assert parse_bytes(size) == n_bytes


@pytest.mark.parametrize(
    "size", ["", "GiB", "2 gigs", "2G", "-1", -1, 0, "0GB", "0.1", True, None, 1.5, "1e9", "1,5GB", "inf", [1]]
)
def test_anything_else_is_no_size(size):
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": ""}, "url: a tier needs a URL or a path"),
        ({"url": 7}, "url: a tier needs a URL or a path"),
        ({"url": "file://dev/shm/x"}, "three slashes"),
        ({"url": "simplecache::s3://bucket"}, "url: chained URLs"),
        ({"url": "sftp://me:secret@host/x"}, "put credentials into storage_options"),
        ({"url": "/x", "max_bytes": "lots"}, "max_bytes: 'lots' is not a size"),
        ({"url": "/x", "compression": "gzip"}, "compression: 'gzip' is none of"),
        ({"url": "/x", "storage_options": {"key": "v"}}, "storage_options: the local directory '/x' takes none"),
        ({"url": "s3://x", "storage_options": ["key"]}, "storage_options: must be a mapping"),
    ],
)
def test_a_wrong_configuration_names_the_field(options, message):
    with pytest.raises(ValueError, match=message) as failure:
        TierConfig(**options)
    assert "secret" not in str(failure.value)


def test_a_configuration_does_not_show_its_options():
    assert "hush" not in repr(TierConfig("s3://bucket", storage_options={"secret": "hush"}))


def test_the_budget_is_carried_in_bytes(tmp_path):
    assert open_tier(TierConfig(str(tmp_path), max_bytes="2KiB")).max_bytes == 2048
    assert open_tier(TierConfig("memory://x", max_bytes=7)).max_bytes == 7
    assert open_tier(TierConfig(str(tmp_path))).max_bytes is None


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiers = [open_tier(TierConfig(url)) for url in ("~/tier", "file://~/tier")]
    assert [tier.url for tier in tiers] == [f"file://{tmp_path}/tier"] * 2


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("nosuch://x/y", "Protocol not known"),
        ("gs://bucket/x", "gcsfs"),
        ("s3://", "names no bucket"),
        ("file:///dev/null/x", "Not a directory"),
    ],
)
def test_a_url_that_cannot_be_used_is_named_with_the_reason(url, reason):
    with pytest.raises(TierError) as failure:
        open_tier(TierConfig(url))
    assert url.rstrip("x/") in str(failure.value)
    assert reason in str(failure.value)


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path):
    (tmp_path / "tier").write_text("")
    with pytest.raises(TierError, match=r"exists|Not a directory"):
        open_tier(TierConfig(f"{tmp_path}/tier"))


def test_a_closed_remote_tier_says_so():
    tier = open_tier(TierConfig("memory://closed"))
    tier.close()
    with pytest.raises(TierError, match="the tier memory://closed has been closed"):
        tier.read("one", ReadBuffer())


def test_a_tier_tells_what_it_is(tmp_path):
    assert repr(LocalTier(str(tmp_path))).endswith(f"{tmp_path}>")
    assert repr(open_tier(TierConfig("memory://x"))) == "<RemoteTier memory memory://x>"
