"""`KvRouter` as Serve calls it, with replicas that are only names: no Ray process."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from deployments.config import BuildArgs
from deployments.routing.prompt import chunk_chain, chunk_hashes, pack_hashes
from deployments.routing.router import KvRouter, router_config
from erllama.request import GenerationRequest

DEPLOYMENT = DeploymentID(name="model-demo", app_name="erllama")


def args(**model: Any) -> BuildArgs:
    routing = model.pop("routing", {})
    return BuildArgs.model_validate(
        {"models": [{"id": "demo", "path": "demo", **model}], "routing": routing, "store": {"tiers": []}}
    )


def config_of(**model: Any) -> Any:
    parsed = args(**model)
    return router_config(parsed.models[0], parsed.routing, parsed.store.config(), parsed.policy)


class Fixture:
    """A router and its replicas. `ask` chooses for a call, and tells the router that the best one
    took it.
    """

    def __init__(self, n_replicas: int = 3) -> None:
        self.router = KvRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
        self.router.initialize_state(**config_of(num_replicas=n_replicas).request_router_kwargs)
        self.replicas = [self.replica(f"r{i}") for i in range(n_replicas)]
        self.router.update_replicas(self.replicas)
        self.n_asked = 0

    @staticmethod
    def replica(name: str) -> Any:
        async def queue_len(deadline_s: float) -> int:
            return 0

        return SimpleNamespace(
            replica_id=ReplicaID(name, DEPLOYMENT),
            node_id="n",
            routing_stats={},
            max_ongoing_requests=10,
            get_queue_len=queue_len,
        )

    async def ask(self, method: str, *call: Any) -> list[list[str]]:
        self.n_asked += 1
        metadata = RequestMetadata(f"q{self.n_asked}", f"i{self.n_asked}", call_method=method)
        pending = PendingRequest(args=list(call), kwargs={}, metadata=metadata)
        ranks = await self.router.choose_replicas(self.replicas, pending)
        assert pending.routing_context.should_backoff
        self.router.on_request_routed(pending, ranks[0][0].replica_id, None)
        self.router.on_request_completed(ranks[0][0].replica_id, f"i{self.n_asked}")
        return [[replica.replica_id.unique_id for replica in rank] for rank in ranks]

    async def generate(self, first: int, n: int = 600, **more: Any) -> list[list[str]]:
        tokens = tuple(range(first, first + n))
        return await self.ask("generate", GenerationRequest(f"g{self.n_asked}", tokens, **more))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


pytestmark = pytest.mark.anyio


async def test_each_replica_is_a_rank_of_its_own_and_a_known_prompt_goes_where_it_was():
    fixture = Fixture()
    first = await fixture.generate(0)
    assert sorted(rank[0] for rank in first) == ["r0", "r1", "r2"]
    assert [len(rank) for rank in first] == [1, 1, 1]
    await fixture.generate(5000)
    assert (await fixture.generate(0, 700))[0] == first[0]


async def test_unknown_prompts_go_round():
    fixture = Fixture()
    firsts = [(await fixture.generate(1000 * i))[0][0] for i in range(12)]
    assert {firsts.count(name) for name in ("r0", "r1", "r2")} == {4}


async def test_what_another_router_sent_is_known_from_the_replica():
    fixture = Fixture()
    fixture.replicas[2].routing_stats = {
        "prefixes": pack_hashes(chunk_hashes(chunk_chain(range(600), 32))),
        "load": 0,
        "n_parallel": 4,
    }
    fixture.router.update_replicas(fixture.replicas)
    assert (await fixture.generate(0))[0] == ["r2"]


async def test_a_dead_replica_is_not_asked_again_and_its_prompts_go_elsewhere():
    fixture = Fixture(2)
    ((name,), _) = await fixture.generate(0)
    (dead,) = [r for r in fixture.replicas if r.replica_id.unique_id == name]
    fixture.router.on_replica_actor_died(dead.replica_id)
    fixture.replicas.remove(dead)
    assert await fixture.generate(0) == [[r.replica_id.unique_id] for r in fixture.replicas]


async def test_a_call_that_names_its_replica_reaches_that_one_and_any_other_once_it_is_gone():
    fixture = Fixture()
    assert await fixture.ask("attach", "r1", "request") == [["r1"]]
    assert len((await fixture.ask("attach", "gone", "request"))[0]) == 2


async def test_a_request_that_may_join_goes_where_its_twin_runs_whatever_that_costs():
    fixture = Fixture()
    metadata = RequestMetadata("q", "i", call_method="generate")
    first = GenerationRequest("first", tuple(range(600)), join_key="k")
    ranks = await fixture.router.choose_replicas(
        fixture.replicas, PendingRequest(args=[first], kwargs={}, metadata=metadata)
    )
    home = ranks[0][0].replica_id.unique_id
    others = [await fixture.generate(9000, join_key="other", joins=True) for _ in range(3)]
    assert {ranks[0][0] for ranks in others} != {home}
    assert [(await fixture.generate(0, join_key="k", joins=True))[0] for _ in range(9)] == [[home]] * 9


async def test_calls_that_any_replica_may_answer_are_left_to_serve():
    fixture = Fixture()
    (rank,) = await fixture.ask("tokenize", "text")
    assert len(set(rank)) == 2
    (rank,) = [await fixture.router.choose_replicas(fixture.replicas[:1], None)]
    assert rank == [fixture.replicas[:1]]


async def test_whatever_goes_wrong_falls_back_and_is_logged_once(monkeypatch, caplog):
    fixture = Fixture()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("injected")

    for name in ("views", "chosen", "routed", "completed", "update", "forget"):
        monkeypatch.setattr(fixture.router._table, name, broken)
    with caplog.at_level(logging.WARNING, "deployments.routing.router"):
        for _ in range(3):
            (rank,) = await fixture.generate(0)
            assert len(set(rank)) == 2
        fixture.router.update_replicas(fixture.replicas)
        fixture.router.on_replica_actor_died(fixture.replicas[0].replica_id)
    (record,) = [record for record in caplog.records if record.name == "deployments.routing.router"]
    assert "injected" in record.getMessage()


@pytest.mark.parametrize(
    ("model", "routed"),
    [
        ({"num_replicas": 1}, False),
        ({"num_replicas": 2}, True),
        ({"autoscaling": {"min_replicas": 0, "max_replicas": 1}}, False),
        ({"autoscaling": {"min_replicas": 0, "max_replicas": 2}}, True),
        ({"num_replicas": 2, "routing": {"enabled": False}}, False),
    ],
)
def test_models_with_several_replicas_are_routed(model, routed):
    assert (config_of(**model) is not None) == routed


def test_the_knobs_arrive():
    config = config_of(
        num_replicas=2, n_parallel=3, routing={"chunk_tokens": 64, "guard_tokens": 7, "stats_period_s": 2}
    )
    assert config.request_routing_stats_period_s == 2
    assert config.request_router_kwargs == {
        "chunk_tokens": 64, "guard_tokens": 7.0, "n_parallel": 3, "node_share": 0.0, "node_min_tokens": 512, "lag_s": 6.0,
    }  # fmt: skip


def test_a_store_makes_a_node_s_first_tier_count():
    parsed = BuildArgs.model_validate(
        {"models": [{"id": "demo", "path": "demo", "num_replicas": 2}], "store": {"tiers": [{"url": "/x"}]}}
    )
    config = router_config(parsed.models[0], parsed.routing, parsed.store.config(), parsed.policy)
    assert config is not None
    assert config.request_router_kwargs["node_share"] > 0
