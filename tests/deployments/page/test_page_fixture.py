"""What the tests of the cluster view show has the shape of what the server answers: else they would prove
nothing.
"""

import time

import pytest

from deployments.dialects.erllama_admin.cluster import ClusterNode, MemoryRelease, SchedulerState
from deployments.dialects.erllama_admin.cluster_shapes import node_card, scheduler_card
from tests.support.admin_site import TEXT, site
from tests.support.page_cluster import CLUSTER, REQUESTS, WHY, after_eviction

pytestmark = pytest.mark.anyio


async def test_replicas_tiers_and_requests(tmp_path):
    async with site(tmp_path) as here:
        await here.kept(TEXT[:600])
        real = (await here.http.get("/erllama/v1/cluster")).json()
        requests = (await here.http.get("/erllama/v1/requests")).json()
        why = (await here.http.get(f"/erllama/v1/requests/{requests['data'][0]['id']}/why")).json()
    assert CLUSTER.keys() == real.keys()
    model, shown = real["models"][0], after_eviction()["models"][0]
    assert shown.keys() <= model.keys()
    assert shown["replicas"][0].keys() <= model["replicas"][0].keys()
    assert CLUSTER["tiers"][0].keys() <= real["tiers"][0].keys()
    assert REQUESTS.keys() <= requests.keys()
    assert WHY.keys() <= why.keys()
    assert WHY["prompt"].keys() <= why["prompt"].keys()


def test_nodes_and_the_scheduler():
    node = node_card(ClusterNode("n", "10.0.0.1", True, 2, 0, 1), [])
    assert CLUSTER["nodes"][0].keys() <= node.keys()
    release = MemoryRelease(time.time(), "demo", "a", "n", "pressure", "store", 1, 0.1, "done")
    scheduler = scheduler_card(SchedulerState(time.time(), 1, 1, last=(release,)))
    shown = after_eviction()["scheduler"]
    assert shown.keys() <= scheduler.keys()
    assert shown["last"][0].keys() <= scheduler["last"][0].keys()
    assert {one["pressure"] for one in CLUSTER["nodes"]} <= {"none", "high", "exhausted"}
