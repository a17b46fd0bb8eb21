"""Which replica gets a request, by table and by law. Pure."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.routing.score import ReplicaView, RouteWeights, cost, ranked

WEIGHTS = RouteWeights(guard_tokens=512, node_share=0.75)


def view(key: str, **known: object) -> ReplicaView[str]:
    return ReplicaView(key, **{"n_parallel": 4, **known})


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        pytest.param({"live": 960}, {}, "a", id="most of the prompt in the context"),
        pytest.param({"live": 480}, {"live": 960}, "b", id="more of it"),
        pytest.param({}, {"near": 960}, "b", id="in the first tier of its node"),
        pytest.param({"live": 960}, {"near": 960}, "a", id="in the context rather than in a tier"),
        pytest.param({"load": 1}, {}, "b", id="nobody knows it: less load"),
        pytest.param({"turn": 7}, {"turn": 3}, "b", id="nobody knows it, equal load: whose turn is longer ago"),
        pytest.param({"live": 960, "load": 3}, {}, "a", id="busy, but nobody waits"),
        pytest.param({"live": 960, "load": 6}, {}, "b", id="a hot replica sheds"),
        pytest.param({"live": 64, "load": 4}, {}, "b", id="a short match is not worth waiting for"),
        pytest.param({"live": 960, "load": 6}, {"load": 6}, "a", id="all are hot"),
        pytest.param(
            {"live": 64, "full": True, "load": 1},
            {},
            "b",
            id="an empty sequence elsewhere rather than another's conversation",
        ),
        pytest.param({"has_affinity": True, "load": 1}, {}, "a", id="an affinity is worth a neighbour"),
        pytest.param({"has_affinity": True}, {"live": 320}, "b", id="known tokens are worth more"),
        pytest.param({"has_session": True, "load": 9}, {"live": 960}, "a", id="a session stays"),
        pytest.param(
            {"has_failed": True, "live": 960, "has_session": True}, {"load": 9}, "b", id="not again where it failed"
        ),
    ],
)
def test_the_better_one_comes_first(a, b, first):
    for views in ([view("a", **a), view("b", **b)], [view("b", **b), view("a", **a)]):
        assert ranked(views, 1000, WEIGHTS)[0] == first


def test_a_hot_replica_sheds_as_soon_as_waiting_costs_more_than_computing():
    holder = view("holder", live=1000)
    other = view("other")
    order = [
        "holder" if ranked([replace(holder, load=load), other], 1000, WEIGHTS)[0] == "holder" else "other"
        for load in range(10)
    ]
    assert order == ["holder"] * 5 + ["other"] * 5  # four run, one waits: 160 + 512 < 1000; two wait: 192 + 1024 > 1000
    patient = replace(WEIGHTS, guard_tokens=4 * WEIGHTS.guard_tokens)
    assert ranked([replace(holder, load=3), other], 1000, patient)[0] == "holder"
    assert ranked([replace(holder, load=4), other], 1000, patient)[0] == "other"


@st.composite
def views_strategy(draw: st.DrawFn) -> list[ReplicaView[str]]:
    counts = st.integers(0, 3000)
    return [
        view(
            f"r{i}",
            live=draw(counts),
            near=draw(counts),
            load=draw(st.integers(0, 50)),
            full=draw(st.booleans()),
            has_session=draw(st.booleans()),
            has_affinity=draw(st.booleans()),
            has_failed=draw(st.booleans()),
            turn=draw(st.integers(0, 9)),
        )
        for i in range(draw(st.integers(1, 6)))
    ]


weights_strategy = st.builds(RouteWeights, guard_tokens=st.floats(0, 5000), node_share=st.floats(0, 0.99))


@given(views_strategy(), st.integers(0, 4000), weights_strategy)
def test_every_replica_that_is_there_is_ranked_once_and_no_other(views, n_prompt, weights):
    assert sorted(ranked(views, n_prompt, weights)) == sorted(one.key for one in views)


@given(views_strategy(), st.integers(0, 4000), weights_strategy, st.data())
def test_a_longer_match_never_ranks_worse(views, n_prompt, weights, data):
    at = data.draw(st.integers(0, len(views) - 1))
    longer = replace(views[at], live=views[at].live + data.draw(st.integers(0, 1000)))
    after = [*views[:at], longer, *views[at + 1 :]]
    assert ranked(after, n_prompt, weights).index(longer.key) <= ranked(views, n_prompt, weights).index(longer.key)


@given(views_strategy(), st.integers(0, 4000), weights_strategy, st.data())
def test_more_load_never_ranks_better(views, n_prompt, weights, data):
    at = data.draw(st.integers(0, len(views) - 1))
    busier = replace(views[at], load=views[at].load + data.draw(st.integers(0, 50)))
    after = [*views[:at], busier, *views[at + 1 :]]
    assert ranked(after, n_prompt, weights).index(busier.key) >= ranked(views, n_prompt, weights).index(busier.key)


@given(st.integers(2, 6), st.integers(1, 40), st.integers(1, 2000), weights_strategy)
def test_what_nobody_knows_is_spread_evenly_whether_it_stays_or_ends_at_once(n_replicas, n_requests, n_prompt, weights):
    for stays in (True, False):
        views = {f"r{i}": view(f"r{i}") for i in range(n_replicas)}
        sent = dict.fromkeys(views, 0)
        for turn in range(1, n_requests + 1):
            first = ranked(list(views.values()), n_prompt, weights)[0]
            sent[first] += 1
            views[first] = replace(views[first], turn=turn, load=views[first].load + stays)
        assert max(sent.values()) - min(sent.values()) <= 1


@given(views_strategy(), st.integers(0, 4000), weights_strategy)
def test_costs_are_never_negative(views, n_prompt, weights):
    assert all(cost(one, n_prompt, weights) >= 0 for one in views)
