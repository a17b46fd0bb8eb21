"""What a router knows of its replicas, from decisions, acceptances, ends and what replicas publish.
A clock by hand, no Ray.
"""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.routing.prompt import RoutedPrompt, chunk_chain, chunk_hashes, pack_hashes, session_hash
from deployments.routing.table import RouteTable

CHUNK = 32
LAG_NS = 3_000_000_000


class Fixture:
    def __init__(self, *replicas: str, **settings: Any) -> None:
        self.now = 0
        self.table: RouteTable[str] = RouteTable(
            **{
                "chunk_tokens": CHUNK,
                "n_parallel": 4,
                "lag_s": LAG_NS / 1e9,
                "node_min_tokens": 512,
                "clock": lambda: self.now,
                **settings,
            }
        )
        self.stats: dict[str, dict[str, Any]] = {name: {} for name in replicas or ("a", "b")}
        self.update()

    def update(self) -> None:
        self.table.update({name: (f"node-{name}", stats) for name, stats in self.stats.items()})

    def publish(self, name: str, **stats: Any) -> None:
        """`prefixes` and `tails` are prompts, `sessions` names."""
        packed = {
            key: pack_hashes(h for p in stats.pop(key) for h in p.chain)
            for key in ("prefixes", "tails")
            if key in stats
        }
        if "sessions" in stats:
            packed["sessions"] = pack_hashes(map(session_hash, stats.pop("sessions")))
        self.stats[name] = {**packed, **stats}
        self.update()

    def pass_lag(self) -> None:
        self.now += LAG_NS

    def seen(self, prompt: RoutedPrompt, field: str) -> dict[str, Any]:
        return {view.key: getattr(view, field) for view in self.table.views(prompt, list(self.stats))}

    def send(self, request_id: str, prompt: RoutedPrompt, replica: str) -> None:
        self.table.chosen(request_id, prompt, replica)
        self.table.routed(request_id, replica)


def prompt(tokens: Iterable[int], session: str | None = None, **more: Any) -> RoutedPrompt:
    ids = list(tokens)
    return RoutedPrompt(
        len(ids),
        tuple(chunk_hashes(chunk_chain(ids, CHUNK))),
        None if session is None else session_hash(session),
        **more,
    )


LONG = prompt(range(1000))


def test_a_prompt_counts_as_held_from_the_decision_on():
    fixture = Fixture()
    fixture.table.chosen("1", LONG, "a")
    assert fixture.seen(prompt([*range(640), 7, 7]), "live") == {"a": 640, "b": 0}


def test_a_decision_that_nobody_confirms_is_forgotten():
    fixture = Fixture()
    fixture.table.chosen("1", LONG, "a")
    fixture.pass_lag()
    assert fixture.seen(LONG, "live") == {"a": 0, "b": 0}
    assert fixture.seen(LONG, "load") == {"a": 0, "b": 0}


def test_a_request_that_runs_is_believed_for_as_long_as_it_runs_and_a_moment_longer():
    fixture = Fixture()
    fixture.send("1", LONG, "a")
    fixture.now += 100 * LAG_NS
    assert fixture.seen(LONG, "live")["a"] == 992
    assert fixture.seen(LONG, "load") == {"a": 1, "b": 0}
    fixture.table.completed("1")
    assert fixture.seen(LONG, "live")["a"] == 992
    assert fixture.seen(LONG, "load") == {"a": 0, "b": 0}
    fixture.pass_lag()
    assert fixture.seen(LONG, "live")["a"] == 0


def test_a_request_that_another_replica_accepted_counts_there():
    fixture = Fixture()
    fixture.table.chosen("1", LONG, "a")
    fixture.table.routed("1", "b")
    assert fixture.seen(LONG, "live") == {"a": 0, "b": 992}
    assert fixture.seen(LONG, "load") == {"a": 0, "b": 1}


def test_what_a_replica_publishes_is_known_and_what_it_publishes_no_more_is_forgotten():
    fixture = Fixture()
    fixture.publish("b", prefixes=[LONG], n_parallel=8)
    assert fixture.seen(LONG, "live") == {"a": 0, "b": 992}
    assert fixture.seen(LONG, "n_parallel") == {"a": 4, "b": 8}
    fixture.publish("b", prefixes=[prompt(range(100))])
    assert fixture.seen(LONG, "live") == {"a": 0, "b": 96}


def test_a_thinned_chain_matches_up_to_the_last_chunk_that_was_told():
    fixture = Fixture()
    fixture.stats["a"] = {"prefixes": pack_hashes(LONG.chain[3::4])}
    fixture.update()
    # of 480 in common, told are 128, 256, 384, 512, ...
    assert fixture.seen(prompt([*range(500), 1, 2]), "live")["a"] == 384


def test_load_of_other_routers_is_what_our_own_requests_do_not_explain():
    fixture = Fixture()
    fixture.send("1", LONG, "a")
    fixture.send("2", LONG, "a")
    fixture.table.completed("2")  # the replica may not have noticed when it published
    fixture.publish("a", load=5)
    assert fixture.seen(LONG, "load")["a"] == 1 + 3
    fixture.publish("a", load=0)
    assert fixture.seen(LONG, "load")["a"] == 1


def test_a_dead_replica_takes_everything_with_it():
    fixture = Fixture()
    fixture.send("1", prompt(range(1000), "s"), "a")
    fixture.publish("a", prefixes=[LONG], load=3)
    fixture.table.forget("a")
    fixture.table.completed("1")
    del fixture.stats["a"]
    fixture.stats["a"] = {}
    fixture.update()  # the same name again: nothing of the old one is left
    same = prompt(range(1000), "s")
    assert fixture.seen(same, "live") == fixture.seen(same, "load") == {"a": 0, "b": 0}
    assert not any(fixture.seen(same, "has_session").values())


def test_a_replica_that_is_not_known_yet_is_empty():
    views = Fixture("a").table.views(LONG, ["a", "new"])
    assert [(view.key, view.live, view.load) for view in views] == [("a", 0, 0), ("new", 0, 0)]


def test_a_node_has_what_was_computed_on_it_unless_it_was_too_short_to_be_saved():
    fixture = Fixture()
    fixture.send("1", LONG, "a")
    fixture.send("2", prompt(range(5000, 5400)), "b")
    for request_id in "12":
        fixture.table.completed(request_id)
    fixture.pass_lag()
    assert fixture.seen(LONG, "near") == {"a": 992, "b": 0}
    assert fixture.seen(prompt(range(5000, 5400)), "near") == {"a": 0, "b": 0}


def test_a_session_is_where_it_was_sent_last():
    fixture = Fixture()
    fixture.send("1", prompt(range(10), "s"), "b")
    assert fixture.seen(prompt([], "s"), "has_session") == {"a": False, "b": True}
    assert not any(fixture.seen(prompt([], "t"), "has_session").values())


def test_an_affinity_is_where_its_last_request_went_until_that_replica_dies():
    fixture = Fixture()
    fixture.send("1", prompt(range(10), affinity=7), "b")
    assert fixture.seen(prompt(range(90), affinity=7), "has_affinity") == {"a": False, "b": True}
    assert not any(fixture.seen(prompt(range(10)), "has_affinity").values())
    fixture.send("2", prompt(range(10), affinity=7), "a")
    assert fixture.seen(prompt([], affinity=7), "has_affinity") == {"a": True, "b": False}
    fixture.table.forget("a")
    assert not any(fixture.seen(prompt([], affinity=7), "has_affinity").values())


def test_a_twin_is_where_the_last_request_of_its_key_runs_or_ran_a_moment_ago():
    fixture = Fixture()
    fixture.send("1", prompt(range(10), join=7), "b")
    assert fixture.seen(prompt(range(10), join=7, joins=True), "has_twin") == {"a": False, "b": True}
    for other in (prompt(range(10), join=7), prompt(range(10), join=8, joins=True), prompt(range(10))):
        assert not any(fixture.seen(other, "has_twin").values())
    fixture.table.completed("1")
    assert fixture.seen(prompt([], join=7, joins=True), "has_twin")["b"]
    fixture.pass_lag()
    assert not any(fixture.seen(prompt([], join=7, joins=True), "has_twin").values())


def test_a_session_that_its_replica_has_no_more_is_forgotten():
    fixture = Fixture()
    fixture.send("1", prompt(range(10), "s"), "b")
    fixture.table.completed("1")
    fixture.publish("b", sessions=["s"])
    fixture.pass_lag()
    assert fixture.seen(prompt([], "s"), "has_session")["b"]
    fixture.publish("b", sessions=[])
    assert not any(fixture.seen(prompt([], "s"), "has_session").values())


def test_a_session_that_another_router_placed_is_known_from_what_replicas_publish():
    fixture = Fixture()
    fixture.publish("a", sessions=["s"])
    assert fixture.seen(prompt([], "s"), "has_session") == {"a": True, "b": False}


def test_a_session_that_a_replica_may_only_have_no_room_to_tell_stays():
    fixture = Fixture()
    fixture.send("1", prompt(range(10), "s"), "b")
    fixture.table.completed("1")
    fixture.publish("b", sessions=["other"], all_sessions=False)
    fixture.pass_lag()
    assert fixture.seen(prompt([], "s"), "has_session") == {"a": False, "b": True}


def test_another_attempt_knows_where_it_failed():
    fixture = Fixture()
    fixture.send("call 1", prompt(range(100), request="r"), "a")
    assert fixture.seen(prompt(range(100), request="r", attempt=2), "has_failed") == {"a": True, "b": False}
    fixture.send("call 2", prompt(range(100), request="r", attempt=2), "b")
    assert fixture.seen(prompt(range(100), request="r", attempt=3), "has_failed") == {"a": True, "b": True}
    assert not any(fixture.seen(prompt(range(100), request="r"), "has_failed").values())  # a new request of that name


def test_a_new_conversation_needs_a_place_and_a_continued_one_has_its_own():
    fixture = Fixture()
    fixture.publish("a", prefixes=[LONG], tails=[RoutedPrompt(chain=LONG.chain[-1:])], n_empty=0)
    fixture.publish("b", n_empty=1)
    branch = prompt([*range(640), *range(5000, 5100)])
    assert fixture.seen(prompt(range(1100)), "full") == {"a": False, "b": False}
    assert fixture.seen(branch, "full") == {"a": True, "b": False}
    fixture.send("1", branch, "b")
    assert fixture.seen(prompt(range(9000, 9100)), "full") == {"a": True, "b": True}


def test_a_model_whose_kv_cannot_be_cut_holds_ends_alone():
    fixture = Fixture()
    fixture.publish("a", whole=True)
    fixture.send("1", LONG, "a")
    assert fixture.seen(prompt(range(2000)), "live")["a"] == 992
    assert fixture.seen(prompt(range(640)), "live")["a"] == 0


def test_what_one_replica_publishes_badly_costs_the_others_nothing():
    fixture = Fixture()
    fixture.stats = {"a": {"prefixes": b"odd"}, "b": {"prefixes": pack_hashes(LONG.chain)}}
    with pytest.raises(ValueError, match="multiple"):
        fixture.update()
    assert fixture.seen(LONG, "live") == {"a": 0, "b": 992}


@given(st.lists(st.tuples(st.sampled_from("crdflp"), st.integers(0, 5), st.sampled_from("ab")), max_size=60))
def test_whatever_happens_in_whatever_order_nothing_is_left_at_the_end(steps):
    fixture = Fixture()
    for what, number, replica in steps:
        request_id = str(number)
        match what:
            case "c":
                fixture.table.chosen(request_id, prompt(range(number, 500), str(number)), replica)
            case "r":
                fixture.table.routed(request_id, replica)
            case "d":
                fixture.table.completed(request_id)
            case "f":
                fixture.table.forget(replica)
                fixture.update()
            case "l":
                fixture.now += LAG_NS // 2
            case "p":
                fixture.publish(replica, load=number)
        assert all(load >= 0 for load in fixture.seen(LONG, "load").values())
    for number in range(6):
        fixture.table.completed(str(number))
    for name in "ab":
        fixture.publish(name, load=0, n_empty=4)
    fixture.pass_lag()
    for number in range(6):
        asked = prompt(range(number, 500))
        assert fixture.seen(asked, "live") == fixture.seen(asked, "load") == {"a": 0, "b": 0}
