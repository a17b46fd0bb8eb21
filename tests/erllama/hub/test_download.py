"""Downloads from servers that lie, cut, change and stall: whole and right, or a clear error."""

from __future__ import annotations

import os
import random
import threading

import pytest

from erllama.errors import NotSupported
from erllama.hub.errors import PullCancelled, PullFailed, SourceNotFound
from erllama.hub.hub import Hub
from tests.erllama.hub.conftest import hub_config
from tests.support.hub_server import Served

CHUNK = 256 << 10


def pull(hub, source, **options):
    return list(hub.pull(source, **options))


@pytest.mark.parametrize(
    ("how", "times"),
    [
        ({}, 1),
        ({"etag": ""}, 1),  # knows neither etag nor time
        ({"etag": 'W/"weak"'}, 1),
        ({"cuts": 4}, 2),
        ({"fails": 3}, 1),
        ({"mode": "short bodies"}, 2),
        ({"mode": "ignores ranges"}, None),
        ({"mode": "wrong Content-Range"}, None),
        ({"mode": "no Content-Range"}, None),
        ({"mode": "long ranges"}, None),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_server_may_be_bad_at_ranges(hub, server, model_bytes, how, times):
    """`times` bounds what is sent, in sizes of the file: the header comes on top. None where the
    server sends whole files that nobody reads to the end.
    """
    file = server.add("/m.gguf", model_bytes, **how)
    events = pull(hub, f"{server.url}/m.gguf")
    assert hub.path_of("m").read_bytes() == model_bytes
    assert events[-1].status == "success"
    assert times is None or file.bytes_sent <= (times + 1) * len(model_bytes)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"mode": "gzip"}, "content-encoding gzip"),
        ({"mode": "denied"}, "access denied"),
        ({"mode": "long bodies"}, "sends more than"),
        ({"mode": "other total"}, "changes while it is fetched|header cannot be read"),
        ({"fails": 10**6}, "503"),
        ({"cuts": 10**6}, "header cannot be read|attempts"),
    ],
    ids=str,
)
def test_a_server_that_cannot_be_believed_is_an_error_that_says_why(hub, server, model_bytes, how, words):
    server.add("/m.gguf", model_bytes, **how)
    with pytest.raises(PullFailed, match=words):
        pull(hub, f"{server.url}/m.gguf")
    assert hub.list() == []


def test_an_address_with_nothing_there_is_not_found(hub, server):
    with pytest.raises(SourceNotFound, match="404"):
        pull(hub, f"{server.url}/nothing.gguf")


def test_content_that_changes_once_is_fetched_anew(hub, server, model_bytes):
    other = model_bytes[:-5] + b"other"
    server.add("/m.gguf", model_bytes, next_data=other)
    pull(hub, f"{server.url}/m.gguf")
    assert hub.path_of("m").read_bytes() == other


def test_content_that_changes_in_size_is_an_error_with_both_sizes(hub, server, model_bytes):
    server.add("/m.gguf", model_bytes, next_data=model_bytes + b"x" * 7)
    with pytest.raises(PullFailed, match=f"had {len(model_bytes)} bytes and has {len(model_bytes) + 7}"):
        pull(hub, f"{server.url}/m.gguf")


def test_content_that_changes_all_the_time_is_an_error(hub, server, model_bytes):
    server.files["/m.gguf"] = restless(Served(model_bytes))
    with pytest.raises(PullFailed, match=r"changes while it is fetched|cannot be read"):
        pull(hub, f"{server.url}/m.gguf")


def test_wrong_bytes_under_a_promised_digest_are_deleted(hub, server, model_bytes):
    files = server.add_repository("o/r", {"m-Q8_0.gguf": model_bytes})
    files["m-Q8_0.gguf"].mode = "wrong bytes"
    with pytest.raises(PullFailed, match=f"expected sha256:{files['m-Q8_0.gguf'].sha256}"):
        pull(hub, "hf://o/r")
    assert [path.name for path in (hub.config.root / "blobs").iterdir()] == []


def test_etags_that_differ_do_not_matter_where_the_digest_is_promised(hub, server, model_bytes):
    files = server.add_repository("o/r", {"m-Q8_0.gguf": model_bytes})
    server.files["/lfs/o/r/m-Q8_0.gguf"] = restless(files["m-Q8_0.gguf"])
    pull(hub, "hf://o/r", as_name="m")
    assert hub.path_of("m").read_bytes() == model_bytes


def test_a_connection_that_goes_silent_is_given_up_and_tried_again(tmp_path, server, model_bytes):
    hub = Hub(hub_config(tmp_path / "hub", server.url, stall_timeout_s=0.3, attempts=3))
    file = server.add("/m.gguf", model_bytes)
    events = hub.pull(f"{server.url}/m.gguf")
    for event in events:
        if event.total:
            break
    file.held = threading.Event()
    with pytest.raises(PullFailed, match=r"3 attempts"):
        list(events)
    file.held.set()
    file.held = None
    server.wait_until_left()
    before = file.bytes_sent
    pull(hub, f"{server.url}/m.gguf")
    assert hub.path_of("m").read_bytes() == model_bytes
    assert file.bytes_sent - before < 2.5 * len(model_bytes)


def test_a_server_that_drips_is_slow(tmp_path, server, model_bytes):
    """Bytes come often enough for every read, and far too few of them."""
    hub = Hub(hub_config(tmp_path / "hub", server.url, stall_timeout_s=0.2, attempts=1, stall_bytes=1 << 40))
    file = server.add("/m.gguf", model_bytes)
    events = hub.pull(f"{server.url}/m.gguf")
    for event in events:
        if event.total:
            break
    pauses = threading.Event()
    pauses.wait = lambda timeout: threading.Event().wait(0.15)
    file.held = pauses
    with pytest.raises(PullFailed, match="bytes came in"):
        list(events)


def test_a_cancelled_pull_ends_at_once_and_the_next_goes_on(hub, server, model_bytes):
    file = server.add("/m.gguf", model_bytes)
    cancel = threading.Event()
    events = hub.pull(f"{server.url}/m.gguf", cancel=cancel)
    for event in events:
        if event.completed:
            file.held = threading.Event()  # its readers wait for bytes that do not come
            cancel.set()
            break
    with pytest.raises(PullCancelled):
        list(events)
    file.held.set()
    file.held = None
    server.wait_until_left()
    before = file.bytes_sent
    events = pull(hub, f"{server.url}/m.gguf")
    first = next(event for event in events if event.total)
    assert first.completed > 0
    assert hub.path_of("m").read_bytes() == model_bytes
    # the header (two blocks at most) and what was missing
    assert file.bytes_sent - before <= len(model_bytes) - first.completed + (3 << 20)


def test_closing_the_events_ends_the_threads(hub, server, model_bytes):
    """`no_engine_thread_leaks` of all tests looks for them."""
    server.add("/m.gguf", model_bytes)
    events = hub.pull(f"{server.url}/m.gguf")
    assert any(event.completed for event in events)
    events.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("erllama-pull")]


def test_bytes_without_any_validator_are_not_mixed_with_old_ones(hub, server, model_bytes):
    """Nothing tells that the file is still the same, so that the next pull begins anew."""
    server.add("/m.gguf", model_bytes, etag="")
    for event in hub.pull(f"{server.url}/m.gguf"):
        if event.completed > len(model_bytes) // 2:
            break
    other = model_bytes[:-5] + b"other"
    server.add("/m.gguf", other, etag="")
    pull(hub, f"{server.url}/m.gguf")
    assert hub.path_of("m").read_bytes() == other


def test_a_file_that_was_replaced_between_two_pulls_is_not_mixed(hub, server, model_bytes):
    server.add("/m.gguf", model_bytes)
    for event in hub.pull(f"{server.url}/m.gguf"):
        if event.completed > len(model_bytes) // 2:
            break
    other = os.urandom(8).join([model_bytes[:-8], b""])
    server.add("/m.gguf", other)
    pull(hub, f"{server.url}/m.gguf")
    assert hub.path_of("m").read_bytes() == other


def test_the_same_file_is_not_fetched_twice(hub, server, model_bytes):
    file = server.add("/m.gguf", model_bytes)
    pull(hub, f"{server.url}/m.gguf")
    before = file.bytes_sent
    pull(hub, f"{server.url}/m.gguf", as_name="again")
    assert file.bytes_sent == before
    assert hub.path_of("again").samefile(hub.path_of("m"))


MODES = ["honest", "short bodies", "ignores ranges", "wrong Content-Range", "no Content-Range", "long ranges",
         "long bodies", "gzip", "denied", "other total", "wrong bytes"]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_whatever_a_server_does_one_after_the_other_what_is_published_is_right(tmp_path, server, model_bytes, seed):
    """Faults by chance, pulls that are given up by chance; a digest is promised. Then the server is
    honest, and its file is there.
    """
    chance = random.Random(seed)
    hub = Hub(hub_config(tmp_path / "hub", server.url, attempts=2, backoff_s=0.001))
    file = server.add_repository("o/r", {"m-Q8_0.gguf": model_bytes})["m-Q8_0.gguf"]
    for _ in range(8):
        file.mode = chance.choice(MODES)
        file.cuts, file.fails = chance.choice([0, 0, 3]), chance.choice([0, 0, 2])
        give_up_at = chance.choice([len(model_bytes), len(model_bytes) // 3])
        events = hub.pull("hf://o/r", as_name="m")
        try:
            for event in events:
                if give_up_at <= event.completed < len(model_bytes):
                    events.close()
        except (PullFailed, NotSupported):
            continue
        finally:
            assert all(hub.path_of(entry.name).read_bytes() == model_bytes for entry in hub.list())
        if hub.list():
            hub.delete("m")
    file.mode, file.cuts, file.fails = "honest", 0, 0
    pull(hub, "hf://o/r", as_name="m")
    assert hub.path_of("m").read_bytes() == model_bytes


def test_progress_never_goes_back_and_ends_at_the_size(hub, server, model_bytes):
    server.add("/m.gguf", model_bytes)
    events = [event for event in pull(hub, f"{server.url}/m.gguf") if event.status.startswith("pulling m.")]
    completed = [event.completed for event in events]
    assert completed == sorted(completed)
    assert (completed[-1], events[-1].total) == (len(model_bytes), len(model_bytes))


class Restless(Served):
    """Another etag with every answer."""

    n = 0

    @property
    def etag(self):
        self.n += 1
        return f'"{self.n}"'

    @etag.setter
    def etag(self, value):
        """Nobody fixes it."""


def restless(file):
    return Restless(file.data)
