"""What the tests of a store need, ours and yours: a contract battery for tiers, a tier that fails
on command, a clock that stands still.

The battery is used by inheriting from it (pytest collects the subclass):

    class TestMyTier(TierContract):
        @pytest.fixture
        def tier(self, tmp_path): ...       # an empty tier
        @pytest.fixture
        def twin(self, tier, tmp_path): ... # another one on the same place, as a second process would open it

Call `pytest.register_assert_rewrite("cache_store.testing")` in a conftest to see the values of a
failed assertion.
"""

from __future__ import annotations

import errno
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import xxhash

from cache_store.tiers.base import Placer, ReadBuffer, Stat, Tier, tier_errors


class FakeClock:
    """Stands in for `time.monotonic_ns`; moves only when told to."""

    def __init__(self, start_ns: int = 0) -> None:
        self.now_ns = start_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Fault(StrEnum):
    FAIL = "fail"  # an I/O error
    HANG = "hang"  # waits for `FaultyTier.release`, then goes on as if nothing had been
    TEAR = "tear"  # a read or a publish ends at byte n and claims success
    NO_SPACE = "no_space"
    READ_ONLY = "read_only"


_ERRNO = {Fault.FAIL: errno.EIO, Fault.NO_SPACE: errno.ENOSPC, Fault.READ_ONLY: errno.EROFS}


@dataclass(slots=True)
class _Rule:
    operation: str
    fault: Fault
    skip: int
    times: float
    n_bytes: int

    def decides(self, operation: str) -> bool:
        """Counts the call."""
        if self.operation not in ("*", operation):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return self.times >= 0


class FaultyTier:
    """A tier whose calls fail as told, by operation ("read", "read_head", "publish", ..., "*" for
    all) and by count; deterministic in one thread.

    Rules are asked in the order in which they were given; the first that matches decides. `calls`
    counts the calls of every operation, failed ones too. Thread-safe.
    """

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self.url, self.label, self.local, self.max_bytes = tier.url, tier.label, tier.local, tier.max_bytes
        self._lock = threading.Condition()
        self._rules: list[_Rule] = []
        self._n_hanging = 0
        self._released = threading.Event()
        self.calls: Counter[str] = Counter()

    def inject(self, operation: str, fault: Fault, *, skip: int = 0, times: int | None = 1, n_bytes: int = 0) -> None:
        """After `skip` more calls of `operation`, the next `times` of them (None: all) meet
        `fault`. `n_bytes`: where TEAR cuts.
        """
        with self._lock:
            self._rules.append(_Rule(operation, fault, skip, math.inf if times is None else times, n_bytes))

    def heal(self) -> None:
        """Forget all rules and let hanging calls go on."""
        with self._lock:
            self._rules.clear()
        self.release()

    def release(self) -> None:
        """Let the calls that hang now go on; later ones hang again."""
        with self._lock:
            self._released.set()
            self._released = threading.Event()

    def wait_hanging(self, n_calls: int = 1, timeout_s: float = 10.0) -> bool:
        """True as soon as `n_calls` calls hang at once."""
        with self._lock:
            return self._lock.wait_for(lambda: self._n_hanging >= n_calls, timeout_s)

    def read(
        self, name: str, buffer: ReadBuffer, head_bytes: int | None = None, placer: Placer | None = None
    ) -> memoryview | None:
        end = self._meet("read" if head_bytes is None else "read_head", name)
        view = self._tier.read(name, buffer, head_bytes, placer)
        return view if view is None else view[:end]

    def publish(self, name: str, data: memoryview) -> None:
        end = self._meet("publish", name)
        self._tier.publish(name, data[:end])

    def delete(self, name: str) -> bool:
        self._meet("delete", name)
        return self._tier.delete(name)

    def stat(self, name: str) -> Stat | None:
        self._meet("stat", name)
        return self._tier.stat(name)

    def list(self, prefix: str = "") -> Iterator[Stat]:
        self._meet("list", prefix)
        return self._tier.list(prefix)

    def sweep(self, older_than_s: float) -> int:
        self._meet("sweep", "")
        return self._tier.sweep(older_than_s)

    def close(self) -> None:
        self.heal()
        self._tier.close()

    def _meet(self, operation: str, name: str) -> int | None:
        """Where to cut what is read or written; None: nowhere. Raises and waits as told."""
        with self._lock:
            self.calls[operation] += 1
            rule = next((rule for rule in self._rules if rule.decides(operation)), None)
            released = self._released
        if rule is None:
            return None
        if rule.fault is Fault.TEAR:
            return rule.n_bytes
        if rule.fault is Fault.HANG:
            self._hang(released)
            return None
        code = _ERRNO[rule.fault]
        with tier_errors(self, operation, name):
            raise OSError(code, os.strerror(code))

    def _hang(self, released: threading.Event) -> None:
        with self._lock:
            self._n_hanging += 1
            self._lock.notify_all()
        released.wait()
        with self._lock:
            self._n_hanging -= 1


def sealed(content: bytes) -> memoryview:
    """`content` behind its xxh3, so that `is_whole` can judge it without knowing it."""
    return memoryview(xxhash.xxh3_64_digest(content) + content)


def is_whole(data: memoryview) -> bool:
    """`data` is something that `sealed` made, complete and undamaged."""
    return data[:8] == xxhash.xxh3_64_digest(data[8:])


def _names(tier: Tier, prefix: str = "") -> list[str]:
    return sorted(found.name for found in tier.list(prefix))


def _read(tier: Tier, name: str, head_bytes: int | None = None) -> bytes | None:
    view = tier.read(name, ReadBuffer(), head_bytes)
    return None if view is None else bytes(view)


def _together(*calls: Callable[[], object]) -> None:
    """Run all at once, one thread each; the first failure is raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


class TierContract:
    """What a tier promises, one promise per test."""

    def test_what_is_published_is_read_back(self, tier: Tier) -> None:
        tier.publish("r/ab/one", sealed(b"x" * 1000))
        assert _read(tier, "r/ab/one") == bytes(sealed(b"x" * 1000))

    def test_a_missing_object_is_none_and_not_an_error(self, tier: Tier) -> None:
        tier.publish("r/ab/one", sealed(b"x"))
        for name in ("two", "r/ab/two", "r/cd/one", "r/ab/one/below"):
            assert (_read(tier, name), _read(tier, name, 10), tier.stat(name)) == (None, None, None)

    def test_a_directory_is_not_an_object(self, tier: Tier) -> None:
        tier.publish("r/ab/one", sealed(b"x"))
        assert tier.stat("r/ab") is None

    def test_an_empty_object_is_an_object(self, tier: Tier) -> None:
        tier.publish("r/empty", memoryview(b""))
        assert (_read(tier, "r/empty"), _read(tier, "r/empty", 10)) == (b"", b"")

    def test_a_large_object_is_read_back(self, tier: Tier) -> None:
        content = sealed(bytes(range(256)) * (3 << 12) + b"tail")
        tier.publish("r/large", content)
        assert _read(tier, "r/large") == bytes(content)

    def test_the_head_is_the_first_bytes_or_all_there_are(self, tier: Tier) -> None:
        tier.publish("r/one", memoryview(b"0123456789"))
        assert [_read(tier, "r/one", n) for n in (4, 10, 99)] == [b"0123", b"0123456789", b"0123456789"]

    def test_one_buffer_serves_objects_of_every_size(self, tier: Tier) -> None:
        contents = {f"r/{n}": bytes([n % 251]) * n for n in (10, 200_000, 3, 70_000)}
        for name, content in contents.items():
            tier.publish(name, memoryview(content))
        buffer = ReadBuffer()
        for name, content in contents.items():
            assert bytes(tier.read(name, buffer) or b"") == content

    def test_the_last_publisher_wins(self, tier: Tier) -> None:
        tier.publish("r/one", sealed(b"first, and longer"))
        tier.publish("r/one", sealed(b"second"))
        assert _read(tier, "r/one") == bytes(sealed(b"second"))

    def test_a_part_of_a_larger_buffer_can_be_published(self, tier: Tier) -> None:
        tier.publish("r/one", memoryview(bytearray(b"..0123.."))[2:6])
        assert _read(tier, "r/one") == b"0123"

    def test_deleting_tells_whether_there_was_something(self, tier: Tier) -> None:
        tier.publish("r/one", sealed(b"x"))
        assert [tier.delete("r/one"), tier.delete("r/one"), tier.delete("other/one")] == [True, False, False]
        assert _read(tier, "r/one") is None

    def test_stat_knows_the_size(self, tier: Tier) -> None:
        tier.publish("r/one", memoryview(b"0123456789"))
        found = tier.stat("r/one")
        assert found is not None
        assert (found.name, found.n_bytes) == ("r/one", 10)

    def test_stat_and_list_tell_the_same_time(self, tier: Tier) -> None:
        tier.publish("r/one", memoryview(b"0123456789"))
        stat, (listed,) = tier.stat("r/one"), tier.list("r/")
        assert stat is not None
        assert stat.modified_s > 1_600_000_000
        assert abs(stat.modified_s - listed.modified_s) < 1  # some stores round in one of the two

    def test_a_list_holds_every_object_with_its_size(self, tier: Tier) -> None:
        sizes = {"one": 1, "r/two": 2, "r/ab/three": 3, "r/ab/cd/ef/four": 4}
        for name, size in sizes.items():
            tier.publish(name, memoryview(bytes(size)))
        assert {found.name: found.n_bytes for found in tier.list()} == sizes

    def test_a_prefix_is_one_of_names_and_not_of_directories(self, tier: Tier) -> None:
        for name in ("r/ab/aa-1", "r/ab/aa-2", "r/ab/ab-3", "r/ac/aa-4", "r2/ab/aa-5"):
            tier.publish(name, sealed(b"x"))
        assert _names(tier, "r/ab/aa-") == ["r/ab/aa-1", "r/ab/aa-2"]
        assert _names(tier, "r/ab/") == ["r/ab/aa-1", "r/ab/aa-2", "r/ab/ab-3"]
        assert _names(tier, "r/a") == ["r/ab/aa-1", "r/ab/aa-2", "r/ab/ab-3", "r/ac/aa-4"]
        assert _names(tier, "r") == ["r/ab/aa-1", "r/ab/aa-2", "r/ab/ab-3", "r/ac/aa-4", "r2/ab/aa-5"]

    def test_a_list_of_what_is_not_there_is_empty(self, tier: Tier) -> None:
        tier.publish("r/ab/one", sealed(b"x"))
        assert [_names(tier, prefix) for prefix in ("other/", "r/ab/two", "r/ab/one/", "x/y/z-")] == [[], [], [], []]

    def test_a_new_tier_is_empty(self, tier: Tier) -> None:
        assert _names(tier) == []

    def test_a_list_may_be_dropped_half_way(self, tier: Tier) -> None:
        for n in range(5):
            tier.publish(f"r/{n}/one", sealed(b"x"))
        assert next(iter(tier.list())).n_bytes == len(sealed(b"x"))

    def test_names_that_leave_the_tier_or_hide_in_it_are_refused(self, tier: Tier) -> None:
        for name in ("", "/etc/passwd", "../x", "r/../../x", "r//x", "r/", ".tmp-1", "r/.hidden", "r/x\0y"):
            for call in (
                lambda bad: tier.read(bad, ReadBuffer()),
                lambda bad: tier.publish(bad, memoryview(b"x")),
                tier.delete,
                tier.stat,
            ):
                assert _refuses(call, name), name

    def test_a_prefix_that_leaves_the_tier_is_refused(self, tier: Tier) -> None:
        for prefix in ("../", "/etc/", "r/../../x/"):
            assert _refuses(lambda bad: list(tier.list(bad)), prefix), prefix

    def test_another_tier_on_the_same_place_sees_changes_at_once(self, tier: Tier, twin: Tier) -> None:
        assert _names(twin) == []
        tier.publish("r/ab/one", sealed(b"x"))
        assert (_names(twin), _names(twin, "r/ab/")) == (["r/ab/one"], ["r/ab/one"])
        assert twin.stat("r/ab/one") is not None
        tier.delete("r/ab/one")
        assert (twin.stat("r/ab/one"), _read(twin, "r/ab/one"), _names(twin)) == (None, None, [])

    def test_a_replaced_object_is_seen_whole_and_new_by_others(self, tier: Tier, twin: Tier) -> None:
        tier.publish("r/one", memoryview(b"old"))
        assert _read(twin, "r/one") == b"old"
        tier.publish("r/one", memoryview(b"new and longer"))
        found = twin.stat("r/one")
        assert found is not None
        assert (found.n_bytes, _read(twin, "r/one")) == (14, b"new and longer")

    def test_many_publishers_of_one_name_leave_one_whole_object(self, tier: Tier, twin: Tier) -> None:
        contents = [sealed(bytes([n]) * (1000 + n)) for n in range(8)]
        calls = [
            lambda data=data, place=place: place.publish("r/ab/one", data)
            for data in contents
            for place in (tier, twin)
        ]
        _together(*calls)
        assert _names(tier) == ["r/ab/one"]
        assert memoryview(_read(tier, "r/ab/one") or b"") in contents
        assert tier.sweep(0) == 0

    def test_publishers_of_many_names_do_not_disturb_each_other(self, tier: Tier) -> None:
        names = [f"r/{n % 3:02x}/{n}" for n in range(16)]
        _together(*[lambda name=name: tier.publish(name, sealed(name.encode())) for name in names])
        assert _names(tier) == sorted(names)
        assert all(_read(tier, name) == bytes(sealed(name.encode())) for name in names)

    def test_a_reader_beside_a_deleter_sees_the_whole_object_or_none(self, tier: Tier, twin: Tier) -> None:
        data = sealed(b"y" * 100_000)
        seen: list[bool] = []

        def write_and_delete() -> None:
            for _ in range(20):
                tier.publish("r/ab/one", data)
                tier.delete("r/ab/one")

        def read() -> None:
            buffer = ReadBuffer()
            for _ in range(40):
                view = twin.read("r/ab/one", buffer)
                seen.append(view is None or view == data)

        _together(write_and_delete, read, write_and_delete, read)
        assert len(seen) == 80
        assert all(seen)

    def test_a_list_beside_a_deleter_does_not_fail(self, tier: Tier, twin: Tier) -> None:
        names = [f"r/{n % 4:02x}/{n}" for n in range(24)]
        for name in names:
            tier.publish(name, sealed(b"x"))

        def delete_and_sweep() -> None:
            for name in names:
                tier.delete(name)
                tier.sweep(0)

        _together(delete_and_sweep, *[lambda: [_names(twin) for _ in range(6)]] * 2)
        assert _names(twin) == []

    def test_a_publisher_beside_a_sweeper_loses_nothing(self, tier: Tier, twin: Tier) -> None:
        names = [f"r/{n:02x}/one" for n in range(24)]

        def sweep() -> None:
            for _ in range(100):
                twin.sweep(60)

        def publish() -> None:
            for name in names:
                tier.publish(name, sealed(b"x"))

        _together(sweep, publish)
        assert _names(twin) == names

    def test_sweeping_keeps_objects(self, tier: Tier) -> None:
        tier.publish("r/ab/one", sealed(b"x"))
        assert tier.sweep(0) == 0
        assert _names(tier) == ["r/ab/one"]

    def test_closing_twice_is_fine(self, tier: Tier) -> None:
        tier.publish("r/one", sealed(b"x"))
        tier.close()
        tier.close()


def _refuses(call: Callable[[str], object], name: str) -> bool:
    try:
        call(name)
    except ValueError:
        return True
    return False
