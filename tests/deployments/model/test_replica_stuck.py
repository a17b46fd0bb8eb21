"""When a replica counts as stuck: beyond what aborting a decode can cure."""

import asyncio

import pytest

from deployments.config import ModelSpec
from deployments.model.replica import ModelReplica, stuck_after_s


class FakeModel:
    def __init__(self, *_: object, **__: object) -> None:
        self.asked: list[float] = []

    def prepare_grammars(self) -> None:
        pass

    def check_alive(self, stuck_after_s: float) -> None:
        self.asked.append(stuck_after_s)


@pytest.mark.parametrize("budget_s", [0.1, 120.0, 3600.0])
def test_an_engine_has_time_for_an_aborted_decode_and_the_next_one(budget_s: float):
    assert stuck_after_s(budget_s) > 2 * budget_s + 60


def test_without_a_budget_there_is_a_bound_all_the_same():
    assert stuck_after_s(0.0) == 600.0


@pytest.mark.parametrize("budget_s", [0.0, 7.5])
def test_the_health_check_follows_the_budget_of_the_model(budget_s: float):
    model = FakeModel()
    replica = ModelReplica(
        ModelSpec(id="m", path="x", decode_budget_s=budget_s), n_cpus=1, make_model=lambda *_, **__: model
    )
    asyncio.run(replica.check_health())
    assert model.asked == [stuck_after_s(budget_s)]
