"""Documents: bounded, deleted for good, and missing rather than wrong."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_store import StoreConfig, TierConfig, TierError
from cache_store.documents.document import (
    BadDocument,
    Document,
    decode_document,
    document_name,
    encode_document,
    is_document,
)
from cache_store.documents.store import DocumentStore
from cache_store.documents.sweep import victims
from cache_store.testing import Fault, FaultyTier
from cache_store.tiers.base import Stat
from cache_store.tiers.guarded import GuardedTier
from cache_store.tiers.open import open_tier

SOON_S = 10.0


class Place:
    """A directory, a tier over it that fails as told, and stores over that."""

    def __init__(self, path):
        self.path = path
        self.tier = FaultyTier(open_tier(TierConfig(str(path))))
        self.now_s = None
        self.opened = []

    def store(self, tier=None, **options):
        options = {"max_bytes": 1 << 20, "ttl_s": 1000.0, "retry_s": 0.001, "unix_s": self.unix_s} | options
        self.opened.append(DocumentStore(GuardedTier(0, tier or self.tier, "disk"), "things", **options))
        return self.opened[-1]

    def unix_s(self):
        return os.stat(self.path).st_mtime if self.now_s is None else self.now_s

    def files(self):
        return sorted(path for path in Path(self.path).rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path)
    yield place
    place.tier.heal()
    for store in place.opened:
        store.close()


def put(store, id, content=b"content", scope=""):
    assert store.put(scope, id, lambda: content, len(content))


def read(store, id, scope=""):
    return store.get(scope, [id], SOON_S).get(id)


def test_what_was_put_is_found_by_another_store(place):
    store = place.store()
    put(store, "ab", b"x" * 100_000)
    put(store, "cd", b"")
    assert store.flush(SOON_S)
    other = place.store()
    assert other.get("", ["ab", "cd", "ef"], SOON_S) == {"ab": b"x" * 100_000, "cd": b""}
    assert other.gone("", ["ab", "ef"], SOON_S) == {"ef"}
    assert len(place.files()[0].read_bytes()) < 1000, "compressed"


def test_a_scope_and_a_salt_are_parts_of_the_name(place):
    salted = place.store(salt="s")
    put(salted, "ab", scope="one")
    salted.flush(SOON_S)
    for store, scope in [(salted, ""), (salted, "two"), (place.store(), "one"), (place.store(salt="so"), "ne")]:
        assert read(store, "ab", scope) is None
        assert not store.delete(scope, "ab", SOON_S)
    assert read(salted, "ab", "one") == b"content"


def test_deleting_is_for_all_and_tells_whether_there_was_something(place):
    store, other = place.store(), place.store()
    put(store, "ab")
    store.flush(SOON_S)
    assert [other.delete("", "ab", SOON_S), store.delete("", "ab", SOON_S)] == [True, False]
    assert read(store, "ab") is None
    assert place.files() == []


def test_what_is_deleted_before_it_is_written_never_comes_back(place):
    store = place.store()
    store.flush(SOON_S)
    place.tier.inject("publish", Fault.HANG)
    put(store, "ab")
    put(store, "cd")
    assert place.tier.wait_hanging()
    assert [store.delete("", id, SOON_S) for id in ("ab", "cd")] == [True, True]
    place.tier.heal()
    assert store.flush(SOON_S)
    assert place.files() == []


def test_the_oldest_go_when_the_budget_is_used_up(place):
    store = place.store(max_bytes=64_000)
    for number in range(40):
        put(store, f"id{number:02}", os.urandom(4000))
        store.flush(SOON_S)
        os.utime(place.files()[-1], (1e9 + number, 1e9 + number))
        place.now_s = 1e9 + number
    kept = [path.name for path in place.files()]
    assert kept == [f"id{number:02}.v1.doc" for number in range(40 - len(kept), 40)]
    assert 55_000 <= sum(path.stat().st_size for path in place.files()) <= 64_000


def test_what_is_too_old_is_a_miss_at_once_and_goes_with_the_next_sweep(place):
    store = place.store(ttl_s=1000.0)
    put(store, "ab")
    store.flush(SOON_S)
    place.now_s = place.files()[0].stat().st_mtime + 1001
    assert read(store, "ab") is None
    assert store.gone("", ["ab"], SOON_S) == {"ab"}
    place.store().flush(SOON_S)
    assert place.files() == []


def test_a_start_sweeps_and_leaves_foreign_files(place):
    foreign = place.path / "documents/things/notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"x" * 5000)
    store = place.store()
    put(store, "ab", os.urandom(3000))
    store.flush(SOON_S)
    other = place.store(max_bytes=1000)
    other.flush(SOON_S)
    assert place.files() == [foreign]
    assert other.counts()["evicted"] == 1


@pytest.mark.parametrize("damage", [
    lambda data: b"", lambda data: data[:20], lambda data: data[:-1], lambda data: b"x" + data[1:],
    lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"{}" * 100,
])  # fmt: skip
def test_a_damaged_or_foreign_file_is_a_miss(place, damage):
    store = place.store()
    put(store, "ab", b"content" * 100)
    store.flush(SOON_S)
    [path] = place.files()
    path.write_bytes(damage(path.read_bytes()))
    assert read(store, "ab") is None
    assert store.counts()["bad"] == 1


def test_another_documents_file_is_a_miss(place):
    store = place.store()
    put(store, "ab", scope="one")
    put(store, "ab", scope="two")
    store.flush(SOON_S)
    first, second = place.files()
    second.write_bytes(first.read_bytes())
    assert [read(store, "ab", scope) for scope in ("one", "two")].count(None) == 1


@pytest.mark.parametrize("id", ["", "a", "../../x", "a/b", ".ab", "a" * 129, "ä" * 5, "a\0b", "ab\n"])
def test_an_id_that_no_document_can_have_is_a_miss(place, id):
    store = place.store()
    assert not store.put("", id, lambda: b"x", 1)
    assert store.get("", [id], SOON_S) == {}
    assert not store.delete("", id, SOON_S)
    store.flush(SOON_S)
    assert place.files() == []


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.NO_SPACE, Fault.READ_ONLY])
def test_a_write_is_tried_again_and_then_dropped(place, fault):
    store = place.store(attempts=2)
    store.flush(SOON_S)
    place.tier.inject("publish", fault, times=2)
    put(store, "ab")
    put(store, "cd")
    store.flush(SOON_S)
    assert store.get("", ["ab", "cd"], SOON_S) == {"cd": b"content"}
    assert (store.counts()["dropped"], store.counts()["put"]) == (1, 1)


def test_nobody_waits_for_a_tier_that_hangs(place):
    store = place.store(queue_bytes=20)
    store.flush(SOON_S)
    place.tier.inject("*", Fault.HANG, times=None)
    put(store, "ab")
    assert place.tier.wait_hanging()
    put(store, "cd")
    assert not store.put("", "ef", lambda: b"content", 7), "what waits is bounded"
    assert store.get("", ["xy"], 0.01) == {}
    assert store.gone("", ["xy", "ab"], 0.01) == set()
    with pytest.raises(TierError):
        store.delete("", "xy", 0.01)
    place.tier.heal()
    store.flush(SOON_S)
    assert store.get("", ["ab", "cd"], SOON_S).keys() == {"ab", "cd"}


@pytest.mark.parametrize("operation", ["list", "read", "stat"])
def test_a_failed_sweep_read_or_look_is_a_miss(place, operation):
    place.tier.inject(operation, Fault.FAIL)
    store = place.store()
    put(store, "ab")
    store.flush(SOON_S)
    first = read(store, "ab"), store.gone("", ["ab"], SOON_S)
    assert first == (None if operation == "read" else b"content", set())
    assert read(store, "ab") == b"content"


def test_a_content_that_cannot_be_made_costs_itself(place):
    store = place.store()
    assert store.put("", "ab", lambda: 1 / 0, 1)
    put(store, "cd")
    assert store.flush(SOON_S)
    assert store.get("", ["ab", "cd"], SOON_S) == {"cd": b"content"}


def test_after_closing_nothing_is_taken_and_nothing_found(place):
    store = place.store()
    put(store, "ab")
    store.close(SOON_S)
    store.close()
    assert not store.put("", "cd", lambda: b"x", 1)
    assert store.get("", ["ab"], SOON_S) == {}
    assert read(place.store(), "ab") == b"content"


def test_many_threads_put_and_delete(place):
    store, other = place.store(), place.store()

    def work(number):
        for turn in range(20):
            id = f"id{number}-{turn}"
            put(store, id)
            if turn % 2:
                assert store.delete("", id, SOON_S)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush(SOON_S)
    ids = [f"id{number}-{turn}" for number in range(4) for turn in range(20)]
    assert sorted(other.get("", ids, SOON_S)) == sorted(id for id in ids if int(id.partition("-")[2]) % 2 == 0)


def test_documents_live_in_the_last_tier_that_outlives_memory(tmp_path):
    tiers = (TierConfig("memory://front"), TierConfig(str(tmp_path / "disk")), TierConfig("memory://behind"))
    store = DocumentStore.open(StoreConfig(tiers), "things", max_bytes=1000, ttl_s=10)
    put(store, "ab")
    store.close(SOON_S)
    assert len(list((tmp_path / "disk").rglob("*.doc"))) == (1 if on_disk(tmp_path) else 0)


def on_disk(path):
    return open_tier(TierConfig(str(path))).label == "disk"


@given(st.binary(max_size=2000), st.floats(0, 1e10), st.text("abc-_09", min_size=2, max_size=20))
def test_a_document_survives_its_bytes(content, created_s, id):
    name = document_name("things", "salt", "scope", id)
    assert is_document(name)
    data = memoryview(encode_document(name, Document(content, created_s)))
    assert decode_document(name, data) == Document(content, created_s)


@given(st.binary(max_size=200))
def test_no_bytes_are_taken_for_a_document(data):
    with pytest.raises(BadDocument):
        decode_document("documents/things/x", memoryview(data))


SIZES = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 1000)), max_size=30)


@given(SIZES, st.integers(1, 500), st.integers(1, 20))
def test_a_sweep_takes_the_oldest_and_no_more_than_it_must(sizes, max_bytes, max_files):
    name = document_name("things", "", "", "ab").replace("ab.v1", "{:04}.v1")
    found = [Stat(name.format(number), size, age) for number, (size, age) in enumerate(sizes)]
    going = victims(found, 1000.0, max_bytes, 500.0, max_files)
    left = [stat for stat in found if stat not in going]
    assert sum(stat.n_bytes for stat in left) <= max_bytes
    assert all(stat.modified_s >= 500 for stat in left)
    assert all(gone.modified_s <= kept.modified_s for gone in going for kept in left)
    assert len(left) <= max_files
    young = [stat for stat in found if stat.modified_s >= 500]
    if sum(stat.n_bytes for stat in young) <= max_bytes and len(young) <= max_files:
        assert all(stat.modified_s < 500 for stat in going)
