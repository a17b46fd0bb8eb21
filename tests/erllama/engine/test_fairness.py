"""The order of those that wait, as tables and over simulated arrivals: who is next, what shares come
out, and what bounds a wait.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from erllama.engine.fairness import AGE_TURNS, CLASS_TURNS, CREDIT, Claim, FairOrder

UNIT = 10
LONG = 100_000


@dataclass
class Queue:
    """Claims by name, and slices that are served by the order under test."""

    order: FairOrder = field(default_factory=lambda: FairOrder(UNIT))
    waiting: dict[str, Claim] = field(default_factory=dict)
    served: list[tuple[str, int]] = field(default_factory=list)
    n_arrived: int = 0

    def add(self, name: str, n_tokens: int, tenant: str = "", priority: int = 0) -> None:
        self.n_arrived += 1
        self.waiting[name] = Claim(tenant, priority, n_tokens, self.n_arrived)

    def serve(self) -> str:
        """One slice; the name of whoever got it."""
        names, claims = list(self.waiting), list(self.waiting.values())
        chosen = self.order.pick(claims)
        name, claim = names[chosen], claims[chosen]
        n_tokens = min(UNIT, claim.n_tokens)
        self.order.charge(claims, chosen, n_tokens)
        if n_tokens == claim.n_tokens:
            del self.waiting[name]
        else:
            self.waiting[name] = claim._replace(n_tokens=claim.n_tokens - n_tokens)
        self.served.append((name, n_tokens))
        return name

    def serve_all(self) -> list[str]:
        """The names, each once, in the order in which they were done."""
        order = []
        while self.waiting:
            name = self.serve()
            order += [name] if name not in self.waiting else []
        return order

    def shares(self, key: Callable[[str], str]) -> Counter[str]:
        total: Counter[str] = Counter()
        for name, n_tokens in self.served:
            total[key(name)] += n_tokens
        return total


def queue_of(*claims: tuple[str, int, str, int]) -> Queue:
    queue = Queue()
    for claim in claims:
        queue.add(*claim)
    return queue


# --- who is next ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "next_one"),
    [
        ([("only", 5, "", 0)], "only"),
        ([("first", 40, "", 0), ("second", 40, "", 0)], "first"),
        ([("first", 40, "", 0), ("alike", 31, "", 0)], "first"),
        ([("long", 400, "", 0), ("short", 5, "", 0)], "short"),
        ([("long", 400, "a", 0), ("short", 5, "b", 0)], "short"),
        ([("first", 400, "a", 0), ("second", 400, "b", 0)], "first"),
        ([("low", 5, "", 1), ("high", 400, "", 0)], "high"),
        ([("lowest", 5, "", 9), ("high", 400, "", -3), ("low", 5, "", 0)], "high"),
        ([("nothing is left", 0, "", 0), ("one", 1, "", 0)], "nothing is left"),
    ],
    ids=str,
)
def test_who_is_next_of_those_who_have_had_nothing(claims: list[tuple[str, int, str, int]], next_one: str):
    assert queue_of(*claims).serve() == next_one


def test_alike_sizes_of_one_tenant_are_served_one_after_the_other_in_order_of_arrival():
    queue = queue_of(*((str(i), size, "", 0) for i, size in enumerate((80, 50, 80, 61))))
    assert queue.serve_all() == ["0", "1", "2", "3"]
    assert [name for name, _ in queue.served] == sorted(name for name, _ in queue.served)


@given(st.integers(1, 20), st.integers(1, 300))
def test_equal_claims_of_one_tenant_are_first_come_first_served(n: int, size: int):
    queue = queue_of(*((str(i), size, "", 0) for i in range(n)))
    assert queue.serve_all() == [str(i) for i in range(n)]
    order = [int(name) for name, _ in queue.served]
    assert order == sorted(order)


def test_a_long_claim_that_runs_is_passed_by_short_ones_and_has_its_turns_between_them():
    queue = queue_of(("long", LONG, "", 0))
    queue.serve()
    for i in range(30):
        queue.add(str(i), UNIT)
    served = [queue.serve() for _ in range(30)]
    assert served[: AGE_TURNS - 1] == ["0", "1", "2"]
    assert served.count("long") == 30 // AGE_TURNS


# --- tenants --------------------------------------------------------------------------------------


def flooded(*floods: str) -> Queue:
    """Tenants with more long claims than can be served."""
    queue = Queue()
    for tenant in floods:
        for i in range(3):
            queue.add(f"{tenant}.{i}", LONG, tenant)
    return queue


def tenant_of(name: str) -> str:
    return name.partition(".")[0]


def test_tenants_that_all_want_more_get_equal_shares_however_many_claims_they_have():
    queue = flooded("a", "b")
    queue.add("c.0", LONG, "c")
    for _ in range(900):
        queue.serve()
    shares = queue.shares(tenant_of)
    assert sum(shares.values()) == 900 * UNIT
    assert max(shares.values()) - min(shares.values()) <= (CREDIT + 1) * UNIT


def test_short_claims_of_another_tenant_do_not_wait_for_a_flood():
    queue = flooded("a")
    for i in range(50):
        for _ in range(4):  # while they are away
            assert queue.serve() == "a.0"
        queue.add(f"b.{i}", 2 * UNIT, "b")
        assert [queue.serve(), queue.serve()] == [f"b.{i}", f"b.{i}"]


def test_a_tenant_that_asks_again_and_again_has_no_more_than_its_share_and_its_credit():
    queue = flooded("a")
    for i in range(300):
        queue.add(f"b.{i}", UNIT, "b")
        while f"b.{i}" in queue.waiting:
            queue.serve()
    shares = queue.shares(tenant_of)
    assert abs(shares["b"] - shares["a"]) <= (CREDIT + 1) * UNIT


def test_a_tenant_that_comes_late_does_not_make_up_for_the_time_before():
    queue = flooded("a")
    for _ in range(500):
        queue.serve()
    queue.add("b.0", LONG, "b")
    before = queue.shares(tenant_of)["a"]
    for _ in range(200):
        queue.serve()
    assert queue.shares(tenant_of)["a"] - before >= (100 - CREDIT) * UNIT


# --- priorities -----------------------------------------------------------------------------------


def test_a_higher_class_leaves_the_lower_ones_one_token_in_so_many():
    queue = Queue()
    for priority in (0, 5, 9):
        queue.add(f"{priority}.", LONG, priority=priority)
    for _ in range(CLASS_TURNS**2 * 10):
        queue.serve()
    shares = queue.shares(tenant_of)
    total = sum(shares.values())
    assert shares["0"] / total == pytest.approx(1 - 1 / CLASS_TURNS, abs=0.02)
    assert shares["9"] / total == pytest.approx(1 / CLASS_TURNS**2, rel=0.2)


def test_a_class_that_is_alone_owes_nothing_to_one_that_comes_later():
    queue = Queue()
    queue.add("high", LONG)
    for _ in range(100):
        queue.serve()
    queue.add("low", LONG, priority=1)
    assert [queue.serve() for _ in range(CLASS_TURNS)].count("low") == 1


# --- no claim waits for ever ----------------------------------------------------------------------

newcomers = st.lists(
    st.tuples(st.integers(1, 8 * UNIT), st.sampled_from("tuv"), st.sampled_from([0, 0, 1, -1])), min_size=1, max_size=8
)


def most_tokens(own: int, n_tenants: int, *, passed_by: int) -> int:
    """What is served at most until a claim is done: `own` tokens of itself and older ones of its
    tenant, beside other tenants and below so many classes.
    """
    share = AGE_TURNS * (own + UNIT)
    most = n_tenants * share + 2 * (n_tenants - 1) * (CREDIT + 1) * UNIT
    for _ in range(passed_by):
        most = CLASS_TURNS * (most + 2 * UNIT)
    return most


@example(8 * UNIT, [], [(UNIT, "t", 0)], 0, 0)
@example(8 * UNIT, [], [(UNIT, "u", -1)], 0, 0)
@example(8 * UNIT, [], [(8 * UNIT, "t", -1)], 0, 0)
@given(
    st.integers(1, 8 * UNIT),
    st.lists(st.integers(1, 4 * UNIT), max_size=2),
    newcomers,
    st.integers(0, 60),
    st.sampled_from([0, 0, 1]),
)
def test_a_claim_is_done_in_bounded_time_whatever_comes_later(
    size: int, older: list[int], later: list[tuple[int, str, int]], n_before: int, priority: int
):
    """Newcomers, more than can be served, of the same tenant and others, before it comes and after."""
    queue = Queue()

    def arrive(i: int) -> None:
        n_tokens, tenant, its_priority = later[i % len(later)]
        queue.add(f"later {i}", n_tokens, tenant, its_priority)
        queue.waiting.pop(f"later {i - 12}", None)  # its client has gone: choosing among ever more takes long

    for i in range(n_before):
        arrive(i)
        queue.serve()
    queue.waiting = {name: claim for name, claim in queue.waiting.items() if claim.tenant != "t"}
    for i, n_tokens in enumerate(older):
        queue.add(f"older {i}", n_tokens, "t", priority)
    queue.add("it", size, "t", priority)
    start = len(queue.served)
    classes = {p for _, _, p in later if p < priority}
    bound = most_tokens(size + sum(older), 3, passed_by=len(classes))
    i = n_before
    while "it" in queue.waiting:
        arrive(i)
        queue.serve()
        i += 1
        assert sum(n for _, n in queue.served[start:]) <= bound


@given(newcomers, st.integers(1, 50))
def test_choosing_changes_nothing_and_serving_what_was_chosen_is_all_there_is(
    claims: Iterable[tuple[int, str, int]], n_served: int
):
    asked, served = Queue(), Queue()
    for queue in (asked, served):
        for i, (n_tokens, tenant, priority) in enumerate(claims):
            queue.add(str(i), n_tokens, tenant, priority)
    for _ in range(n_served):
        if not asked.waiting:
            break
        for _ in range(3):
            asked.order.pick(list(asked.waiting.values()))
        assert asked.serve() == served.serve()


def test_what_is_kept_of_tenants_is_forgotten_once_the_others_have_had_as_much():
    order = FairOrder(UNIT)
    for i in range(1000):
        claims = [Claim(f"tenant {i}", 0, UNIT, i), Claim("stays", 0, LONG, i)]
        order.charge(claims, 0, UNIT)
        order.charge(claims, 1, 2 * UNIT)
    (kept,) = order._classes.values()
    assert len(kept._used) <= 2
