"""`python -m tests.support.two_nodes FOLDER`: two Ray nodes with a replica each; the one that
serves a stream dies with all its processes. Then the other one, under a stream of a model of the hub.

Prints one JSON object for each. Under Serve's defaults, in a process of its own: a process can be the driver
of one cluster only.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

from deployments.app import build_app
from deployments.config import HubSpec, deployment_name
from deployments.hub.specs import loadable_of
from deployments.jobs.cluster import Cluster as AppCluster
from deployments.jobs.remote_model import RemoteModel
from erllama.demo import demo_model_path
from erllama.events import Done, Event, Tokens
from erllama.hub.config import HubConfig
from erllama.hub.hub import Hub
from erllama.request import GenerationRequest, SamplingParams
from tests.support.serve_process import free_port
from tests.support.streams import busiest, replica_pids

N_TOKENS = 5000
HUB_MODELS = ("tiny:a", "tiny:b")
HUB_DEFAULTS = {"n_ctx": 8192, "n_parallel": 1, "n_threads": 1, "type_k": "q8_0", "type_v": "q8_0"}


def main(folder: str) -> None:
    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory})
    try:
        nodes = [cluster.add_node(num_cpus=1, resources={"model": 1}, **memory) for _ in range(2)]
        ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()}, proxy_location="HeadOnly")
        serve.run(build_app(args(folder)), name="erllama", route_prefix="/")
        print(json.dumps(kill_a_node(cluster, nodes)), flush=True)
        print(json.dumps(kill_the_hubs_node(cluster, nodes)), flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()


def args(folder: str) -> dict[str, Any]:
    model = {
        "id": "demo", "path": "demo", "n_ctx": 8192, "n_threads": 1, "num_cpus": 0.5, "num_replicas": 2, "resources": {"model": 1},
        "type_k": "q8_0", "type_v": "q8_0",
    }  # fmt: skip
    policy = {
        "min_tokens": 32,
        "cold_min_tokens": 32,
        "continued_interval": 64,
        "boundary_trim_tokens": 0,
        "restore_always": True,
    }
    hub = Hub(HubConfig(dir=Path(folder) / "hub"))
    list(hub.pull(str(demo_model_path()), HUB_MODELS[0]))
    hub.copy(*HUB_MODELS)
    spec = HubSpec(dir=Path(folder) / "hub", enabled=True, defaults=HUB_DEFAULTS)
    need = loadable_of(hub, spec, HUB_MODELS[0], 8 << 30)
    one_each = need.need_bytes + need.process_bytes // 2
    return {
        "models": [model],
        "store": {"tiers": [{"url": f"{folder}/kv"}]},
        "policy": policy,
        "hub": {"enabled": True, "dir": str(spec.dir), "defaults": HUB_DEFAULTS, "memory_bytes": one_each},
    }


def kill_the_hubs_node(cluster: Cluster, nodes: list[Any]) -> dict[str, Any]:
    """Two models of the hub, one on the head and one on the node that is left, which dies."""
    request = GenerationRequest(
        "h", tuple(range(300, 700)), SamplingParams(temperature=0.9, seed=4), max_tokens=N_TOKENS, ignore_eos=True
    )
    app = AppCluster.connect()
    assert set(HUB_MODELS) < set(app.models())
    for name in HUB_MODELS:
        app.model(name).complete([5], response_tokens=1)
    [(name, node)] = [(name, node) for name in HUB_MODELS for node in nodes if node.node_id == hub_node(name)]
    model = app.model(name)
    ids: list[int] = []
    killed_at = 0
    for events in model.generate(request):
        ids += ids_in(events)
        if len(ids) > 2000 and not killed_at:
            killed_at = len(ids)
            cluster.remove_node(node, allow_graceful=False)
    same = ids == [token for events in model.generate(request) for token in ids_in(events)]
    return {"same": same, "killed_at": killed_at, "n_tokens": len(ids), "moved": hub_node(name) != node.node_id}


def ids_in(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Tokens) for token in event.ids]


def hub_node(name: str) -> str:
    """The id of the node where a model of the hub runs."""
    applications = _get_global_client().get_serve_details()["applications"]
    deployment = deployment_name(name)
    [replicas] = [
        app["deployments"][deployment]["replicas"] for app in applications.values() if deployment in app["deployments"]
    ]
    return str(replicas[0]["node_id"])


def kill_a_node(cluster: Cluster, nodes: list[Any]) -> dict[str, Any]:
    request = GenerationRequest(
        "r", tuple(range(300, 700)), SamplingParams(temperature=0.9, seed=4), max_tokens=N_TOKENS, ignore_eos=True
    )
    ids: list[int] = []
    killed_at, pause_s, done = 0, 0.0, None
    last = time.monotonic()
    model = RemoteModel.connect("demo")
    for events in model.generate(request):
        pause_s, last = max(pause_s, time.monotonic() - last), time.monotonic()
        ids += ids_in(events)
        done = events[-1]
        if len(ids) > 2000 and not killed_at:
            killed_at = len(ids)
            cluster.remove_node(node_of(nodes, busiest(replica_pids("model-demo"))), allow_graceful=False)
    assert isinstance(done, Done), done
    same = ids == [token for events in model.generate(request) for token in ids_in(events)]
    stats = done.stats
    return {
        "same": same,
        "killed_at": killed_at,
        "resumed": stats.resumed_tokens,
        "computed": stats.computed_tokens,
        "pause_s": pause_s,
    }


def node_of(nodes: list[Any], pid: int) -> Any:
    deployments = _get_global_client().get_serve_details()["applications"]["erllama"]["deployments"]
    (node_id,) = [replica["node_id"] for replica in deployments["model-demo"]["replicas"] if replica["pid"] == pid]
    (node,) = [node for node in nodes if node.node_id == node_id]
    return node


if __name__ == "__main__":
    main(sys.argv[1])
