"""The contract battery on S3, through s3fs and moto's server in this process; and what only a
remote store can do to a tier.
"""

import gc
import logging
import secrets
import socket
import threading
import weakref

import fsspec
import pytest
from aiobotocore.session import AioSession
from moto.server import ThreadedMotoServer

from cache_store.config import TierConfig
from cache_store.errors import TierError
from cache_store.testing import TierContract, sealed
from cache_store.tiers.base import ReadBuffer
from cache_store.tiers.open import open_tier

BUCKET = "kv-blocks"


@pytest.fixture(scope="module")
def options():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # One session: each of its own reads the whole description of S3 again (0.4 s).
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test", "session": AioSession()}
    fsspec.filesystem("s3", skip_instance_cache=True, **options).mkdir(BUCKET)
    yield options
    server.stop()
    server._server.server_close()


@pytest.fixture
def config(options):
    return TierConfig(f"s3://{BUCKET}/{secrets.token_hex(4)}", storage_options=options)


@pytest.fixture
def opened(config):
    tiers = []

    def open_one():
        tiers.append(open_tier(config))
        return tiers[-1]

    yield open_one
    for tier in tiers:
        tier.close()


class TestS3Tier(TierContract):
    @pytest.fixture
    def tier(self, opened):
        return opened()

    @pytest.fixture
    def twin(self, opened):
        return opened()


@pytest.fixture
def requests(config, opened, monkeypatch):
    """A tier, and the S3 operations that it asks for from now on."""
    tier = opened()
    asked = []
    real = tier._filesystem._call_s3

    async def note(method, *args, **kwargs):
        asked.append(method)
        return await real(method, *args, **kwargs)

    monkeypatch.setattr(tier._filesystem, "_call_s3", note)
    return tier, asked


def test_a_tier_on_s3_says_so(opened, config):
    tier = opened()
    assert (tier.label, tier.local, tier.url) == ("s3", False, config.url)


def test_a_publish_is_one_put_whatever_the_size(requests):
    tier, asked = requests
    tier.publish("r/small", memoryview(b"x"))
    tier.publish("r/large", memoryview(bytes(8 << 20)))
    assert asked == ["put_object", "put_object"]


def test_a_read_is_one_get_whatever_the_size(requests):
    tier, asked = requests
    tier.publish("r/small", memoryview(b"x"))
    tier.publish("r/large", memoryview(bytes(60 << 20)))  # s3fs would ask for the size and cut reads of more than 50 MB
    asked.clear()
    assert len(tier.read("r/small", ReadBuffer()) or b"") == 1
    assert len(tier.read("r/large", ReadBuffer()) or b"") == 60 << 20
    assert len(tier.read("r/large", ReadBuffer(), 100) or b"") == 100
    assert tier.read("r/missing", ReadBuffer()) is None
    assert asked == ["get_object"] * 4


def test_a_listing_by_prefix_is_one_request_for_that_prefix(options, opened, monkeypatch):
    tier = opened()
    for n in range(4):
        tier.publish(f"r/{n:02x}/one", sealed(b"x"))
    real = tier._filesystem._lsdir
    asked = []

    async def note(path, **kwargs):
        asked.append((path.partition("/")[2].partition("/")[2], kwargs.get("prefix")))
        return await real(path, **kwargs)

    monkeypatch.setattr(tier._filesystem, "_lsdir", note)
    assert [found.name for found in tier.list("r/03/on")] == ["r/03/one"]
    assert asked == [("r/03", "on")]


def test_objects_beside_the_prefix_are_not_ours(opened, options, config):
    tier = opened()
    neighbour = open_tier(TierConfig(f"{config.url}2", storage_options=options))
    neighbour.publish("r/one", sealed(b"x"))
    assert list(tier.list()) == []
    neighbour.close()


def test_a_missing_bucket_is_refused_with_its_url(options):
    with pytest.raises(TierError, match="cannot use the tier s3://no-such-bucket/x: "):
        open_tier(TierConfig("s3://no-such-bucket/x", storage_options=options))


def test_an_option_that_the_driver_does_not_know_is_refused(options):
    with pytest.raises(TierError, match="nosuch"):
        open_tier(TierConfig(f"s3://{BUCKET}", storage_options={**options, "session": None, "nosuch": 1}))


def test_the_callers_own_client_settings_are_kept(options):
    tier = open_tier(TierConfig(f"s3://{BUCKET}/x", storage_options={**options, "config_kwargs": {"read_timeout": 7}}))
    assert {key: tier._filesystem.config_kwargs[key] for key in ("connect_timeout", "read_timeout")} == {
        "connect_timeout": 5,
        "read_timeout": 7,
    }
    tier.close()


def test_a_store_that_does_not_answer_is_opened_with_a_warning_and_fails_per_call(options, caplog):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    nowhere = {"endpoint_url": f"http://127.0.0.1:{port}", "config_kwargs": {"retries": {"max_attempts": 0}}}
    tier = open_tier(TierConfig(f"s3://{BUCKET}/x", storage_options={**options, **nowhere}))
    assert f"tier=s3://{BUCKET}/x does not answer" in caplog.text
    with pytest.raises(TierError, match=f"read r/one in s3://{BUCKET}/x: "):
        tier.read("r/one", ReadBuffer())
    tier.close()


def test_credentials_are_in_no_message(options):
    with pytest.raises(TierError) as failure:
        open_tier(TierConfig("s3://no-such-bucket/x", storage_options={**options, "secret": "hush-hush"}))
    assert "hush-hush" not in f"{failure.value!r} {failure.value.__cause__!r}"


def test_closing_lets_go_of_the_driver_which_ends_its_connections(config):
    own_session = {name: value for name, value in config.storage_options.items() if name != "session"}
    tier = open_tier(TierConfig(config.url, storage_options=own_session))
    tier.publish("r/one", sealed(b"x"))
    driver = weakref.ref(tier._filesystem)
    tier.close()
    gc.collect()
    assert driver() is None


def test_many_threads_may_use_one_tier(opened):
    tier = opened()
    names = [f"r/{n:02x}" for n in range(24)]
    barrier = threading.Barrier(8)
    failures = []

    def work(mine):
        barrier.wait()
        try:
            for name in mine:
                tier.publish(name, sealed(name.encode()))
                assert tier.read(name, ReadBuffer()) == sealed(name.encode())
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(names[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(found.name for found in tier.list()) == names
