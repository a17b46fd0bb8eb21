"""The snapshot of the cluster: what is in it, and what it says of parts that do not answer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from deployments.dialects.erllama_admin.cluster_snapshot import ClusterWatch
from deployments.http.answers import Answer
from deployments.http.model_library import ModelPhase
from deployments.http.options import HttpOptions
from deployments.http.registry import ModelRegistry
from deployments.ingress.http_app import all_dialects, make_http_app
from erllama.errors import EngineStopped, StoreUnavailable
from tests.support.admin_site import TEXT, site
from tests.support.cluster_fakes import NODES, RELEASE, FakeCluster, WatchedModel, replica_state
from tests.support.http_fakes import http_client, served
from tests.support.hub_fakes import LOADED, FakeLibrary, manifest

pytestmark = pytest.mark.anyio

URL = "/erllama/v1/cluster"


def watch(*models, cluster=None, library=None, timeout_s=0.05, **more):
    registry = ModelRegistry(models, library=library)
    return ClusterWatch(registry, cluster or FakeCluster(), timeout_s, **more)


async def card(*models, **more):
    return (await watch(*models, **more).snapshot()).card()


async def test_real_replicas_tell_what_they_do_and_have_counted(tmp_path):
    async with site(tmp_path, n=2) as one:
        await one.kept()
        await one.kept(TEXT + "and more")
        told = (await one.http.get(URL)).json()
    [model] = told["models"]
    assert (model["id"], model["from"], model["state"], len(model["replicas"])) == ("demo", "config", "ready", 2)
    assert {replica["state"] for replica in model["replicas"]} == {"idle"}
    assert {replica["n_ctx"] for replica in model["replicas"]} == {4096}
    assert sum(replica["cached_tokens"] for replica in model["replicas"]) == 900
    hits = [hits for replica in model["replicas"] for hits, n in replica["hits"].items() if n]
    assert sorted(hits) == ["cold", "partial:disk"]
    assert [tier["name"] for tier in told["tiers"]] == ["disk", "disk"]
    assert (told["nodes"], told["scheduler"], told["unanswered"]) == ([], None, [])


async def test_a_snapshot_has_nodes_models_tiers_and_the_scheduler():
    told = await card(served(WatchedModel(), aliases=("chat",)))
    one, two = told["nodes"]
    assert (one["id"], one["memory_bytes"], one["memory_used_bytes"]) == ("n1", 1000, 600)
    assert (one["gpu_memory_bytes"], one["gpu_memory_used_bytes"], one["pressure"]) == (200, 185, "exhausted")
    assert (two["memory_bytes"], two["memory_used_bytes"], two["gpu_memory_bytes"], two["pressure"]) == (
        *(800, None, None, None),
    )
    [model] = told["models"]
    [replica] = model["replicas"]
    assert model["aliases"] == ["chat"]
    assert replica["sequences"] == [
        {"request_id": "req-1", "state": "generating", "n_given": 100, "n_cached": 60, "n_kv": 104, "n_tokens": 105}
    ]
    assert replica["hits"] == {"exact:live": 2, "partial:disk": 3, "cold": 4}
    assert (replica["evictions"], replica["evicted"]) == (4, {"budget": 3, "gone": 1})
    assert (replica["prefill_tokens_per_s"], replica["prefill_seconds_saved"]) == (200.0, 1.5)
    [tier] = told["tiers"]
    assert (tier["name"], tier["bytes"], tier["budget_bytes"], tier["objects"]) == ("disk", 5000, 10_000, 6)
    assert (told["scheduler"]["evictions"], told["scheduler"]["last"][0]["bytes"]) == (3, RELEASE.bytes)
    json.dumps(told)


async def test_what_was_not_measured_is_null():
    model = WatchedModel(answers=[Answer(replica_state(prefill_tokens_per_s=0.0))])
    [replica] = (await card(served(model)))["models"][0]["replicas"]
    assert (replica["prefill_tokens_per_s"], replica["prefill_seconds_saved"]) == (None, None)


@pytest.mark.parametrize(
    ("ready", "state", "reason"),
    [
        (True, "ready", ""),
        (False, "loading", ""),
        (None, "asleep", ""),
        (EngineStopped("no such file"), "failed", "no such file"),
    ],
)
async def test_the_state_of_a_configured_model(ready, state, reason):
    [model] = (await card(served(WatchedModel(state=ready))))["models"]
    assert (model["state"], model["reason"], len(model["replicas"])) == (state, reason, ready is True)


@pytest.mark.parametrize(
    ("phase", "state", "asked"),
    [
        (ModelPhase.UNLOADED, "not_loaded", False),
        (ModelPhase.WAITING, "loading", False),
        (ModelPhase.LOADING, "loading", False),
        (ModelPhase.LOADED, "ready", True),
        (ModelPhase.SLEEPING, "asleep", True),
        (ModelPhase.LEAVING, "ready", True),
        (ModelPhase.FAILED, "failed", False),
    ],
)
async def test_the_state_of_a_model_of_the_hub(phase, state, asked):
    library = FakeLibrary(manifest("a"), manifest("demo"), model=WatchedModel())
    library.standings = {"a": replace(LOADED, phase=phase, reason="as it is")}
    models = (await card(served(WatchedModel()), library=library))["models"]
    assert [(model["id"], model["from"]) for model in models] == [("demo", "config"), ("a", "hub")]
    assert (models[1]["state"], models[1]["reason"], len(models[1]["replicas"])) == (state, "as it is", asked)


async def test_parts_that_do_not_answer_are_named_and_the_rest_is_told():
    failed = Answer(error=StoreUnavailable("the disk is gone"))
    model = served(WatchedModel(answers=[Answer(replica_state()), failed]))
    told = await card(model, cluster=FakeCluster(told_nodes=EngineStopped("no cluster")))
    assert told["unanswered"] == ["nodes: no cluster", "model demo: the disk is gone"]
    assert [len(model["replicas"]) for model in told["models"]] == [1]
    silent = await card(served(WatchedModel()), cluster=FakeCluster(hangs=True))
    assert silent["unanswered"] == [f"{part}: no answer within 0.05 s" for part in ("nodes", "memory scheduler")]
    assert (silent["nodes"], silent["scheduler"], len(silent["models"][0]["replicas"])) == ([], None, 1)


async def test_a_replica_that_hangs_hides_no_other(tmp_path):
    async with site(tmp_path, hangs=True, ready_timeout_s=0.2) as one:
        told = (await one.http.get(URL)).json()
    [model] = told["models"]
    assert (model["state"], len(model["replicas"])) == ("ready", 1)
    assert told["unanswered"] == ["model demo: a replica of the model did not answer within 0.2 s"]


async def test_many_who_ask_get_one_snapshot_a_second():
    cluster, now = FakeCluster(), [0.0]
    one = watch(served(WatchedModel()), cluster=cluster, clock=lambda: now[0])
    first = await one.snapshot()
    assert (await one.snapshot()) is first
    now[0] = 1.1
    assert (await one.snapshot()) is not first
    assert cluster.n_asked == 2


@pytest.mark.parametrize(("key", "status"), [("ops", 200), ("guest", 403), ("nobody", 401)])
async def test_only_an_admin_may_see_the_cluster(key, status):
    keys = ({"key": "ops", "admin": True}, {"key": "guest", "name": "guest"})
    app = make_http_app(
        [served(WatchedModel())], HttpOptions(api_keys=keys), dialects=all_dialects(cluster=FakeCluster())
    )
    async with http_client(app, authorization=f"Bearer {key}") as client:
        reply = await client.get(URL)
    assert reply.status_code == status
    if status == 200:
        assert [node["id"] for node in reply.json()["nodes"]] == [node.id for node in NODES]
